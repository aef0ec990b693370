"""What of the machine and its libraries decides kernels and their scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.errors import UnsupportedCombination

if TYPE_CHECKING:
    from rigsize.hardware.accelerators import Accelerator
    from rigsize.spec.strategy import Strategy

TORCH_VERSION = (2, 13)
CUDNN_VERSION = (9, 20, 0)
"""Bundled with torch 2.13.0+cu130 (knowledge: transformers PR #48163)."""
_DEFAULT_SM = (108, 2048)
"""An A100's, where a row does not know its own; it only limits the staging of large sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A CUDA device, or the CPU."""

    device: str
    """cuda or cpu."""
    compute_capability: tuple[int, int]
    sm_count: int
    max_threads_per_sm: int
    torch_version: tuple[int, int] = TORCH_VERSION
    cudnn_version: tuple[int, int, int] | None = CUDNN_VERSION
    force_flash: bool = False
    """`--attention flash`: the user's choice instead of torch's."""


def environment_of(accelerator: Accelerator, strategy: Strategy) -> Environment:
    """The environment of an accelerator row under the tested library versions."""
    if accelerator.is_cpu:
        return Environment(
            device="cpu", compute_capability=(0, 0), sm_count=1, max_threads_per_sm=1
        )
    if accelerator.software_stack != "cuda" or accelerator.compute_capability is None:
        raise UnsupportedCombination(
            "gpus",
            accelerator.id,
            "only CUDA devices and cpu are answered so far",
            hint=f"software stack of this row: {accelerator.software_stack}",
        )
    capability = accelerator.compute_capability
    if strategy.attention == "flash":
        _check_flash(accelerator, strategy)
    return Environment(
        device="cuda",
        compute_capability=capability,
        sm_count=accelerator.sm_count or _DEFAULT_SM[0],
        max_threads_per_sm=accelerator.max_threads_per_sm or _DEFAULT_SM[1],
        force_flash=strategy.attention == "flash",
    )


def _check_flash(accelerator: Accelerator, strategy: Strategy) -> None:
    capability = accelerator.compute_capability or (0, 0)
    if capability < (8, 0):
        raise UnsupportedCombination(
            "attention",
            "flash",
            f"{accelerator.id} is {accelerator.arch}, flash attention needs sm_80 or newer",
            allowed=("sdpa", "eager"),
        )
    if strategy.policy.half_dtype == "float32":
        raise UnsupportedCombination(
            "attention",
            "flash",
            f"flash attention has no fp32 kernel and precision is {strategy.precision}",
            allowed=("sdpa", "eager"),
            hint="take amp-bf16 or bf16",
        )
