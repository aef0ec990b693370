"""Muon's step: momentum and the Newton-Schulz iteration on matrices, fused AdamW on the rest."""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.foreach import FP32_BYTES, HALF_BYTES
from rigsize.program.optimizer_state import Step, assign
from rigsize.program.timeline import Parameter
from rigsize.spec.optimizers import muon_takes

__all__ = ["in_groups", "muon"]

NEWTON_SCHULZ_STEPS = 5
"""torch's default, `ns_steps`."""


def in_groups(name: str, parameters: Sequence[Parameter]) -> list[Parameter]:
    """Parameters in the order of the optimizer's groups: Muon's matrices come before the rest."""
    if name != "muon":
        return list(parameters)
    return sorted(parameters, key=lambda p: not muon_takes(p.name, p.shape))


def muon(step: Step, parameters: Sequence[Parameter]) -> None:
    """One matrix after another, each update alive until the next has its own.

    Of a matrix [m, n], m the smaller: the update in its dtype, two bf16 iterates of its size (of
    16-bit weights the update is the first) and two, for a moment three, bf16 products [m, m]. Then
    AdamW makes its states. Source: torch/optim/_muon.py (`_single_tensor_muon`,
    `_zeropower_via_newtonschulz`); `run/optimizers.py` (`MuonAndAdamW`).
    """
    matrices = [p for p in parameters if muon_takes(p.name, p.shape)]
    for parameter in matrices:
        step.make_states(parameter)
    held: dict[str, int] = {}
    for parameter in matrices:
        assign(step, held, "update", step.temporary(parameter.num_bytes, "lerp"))
        assign(step, held, "update", _newton_schulz(step, parameter))
        if step.device == "cpu" and parameter.itemsize == FP32_BYTES:
            step.scratch(parameter.num_bytes, "add_")  # CUDA's kernel casts as it adds
    if held:
        step.timeline.free(held["update"])
    for parameter in parameters:
        step.make_states(parameter)


def _newton_schulz(step: Step, parameter: Parameter) -> int:
    """The iterate after the last step; the caller frees what it was given."""
    half = parameter.numel * HALF_BYTES
    square = min(parameter.shape) ** 2 * HALF_BYTES
    held: dict[str, int] = {}
    if parameter.itemsize == FP32_BYTES:
        held["iterate"] = step.temporary(half, "bfloat16")
    for _ in range(NEWTON_SCHULZ_STEPS):
        assign(step, held, "gram", step.temporary(square, "matmul"))
        assign(step, held, "gram_update", step.temporary(square, "addmm"))
        assign(step, held, "iterate", step.temporary(half, "addmm"))
    step.timeline.free(held["gram"])
    step.timeline.free(held["gram_update"])
    return held["iterate"]
