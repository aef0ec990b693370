"""What DeepSpeed's ZeRO cannot do, or does otherwise than the name of a setting says."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from rigsize.errors import UnsupportedCombination
from rigsize.spec.precision import PrecisionPolicy

if TYPE_CHECKING:
    from rigsize.spec.strategy import Strategy

__all__ = ["ZEROS", "check_zero", "zero_policy"]

ZEROS = ("zero1", "zero2", "zero3")
_ENGINE_OF = {"amp-bf16": "bf16", "amp-fp16": "fp16-master"}
"""16-bit weights with fp32 masters are what DeepSpeed's bf16 and fp16 engines hold."""
_FLAT_VECTORS = (
    "adamw-foreach",
    "adamw-fused",
    "adamw-loop",
    "adamw-8bit",
    "lion",
    "lion-8bit",
    "sgd",
    "sgd-momentum",
    "rmsprop",
)
"""What steps on a flat vector as on a matrix; those that DeepSpeed does not list itself need its
`zero_allow_untested_optimizer`."""
_OFFLOADS = {"zero1": ("none", "optimizer"), "zero2": ("none", "optimizer")}


@lru_cache
def zero_policy(policy: PrecisionPolicy) -> PrecisionPolicy:
    """The policy of a ZeRO run: fp32 masters and states, beside fp32 weights, too.

    Source: deepspeed 0.19.8, `weights_partition` of runtime/zero/stage_1_and_2.py,
    `_create_fp32_partitions` of stage3.py.
    """
    return replace(policy, master_bytes=4, state_bytes=4, note="fp32 masters, partitioned")


def check_zero(strategy: Strategy) -> None:
    """Raises UnsupportedCombination, naming what would work."""
    if strategy.precision in _ENGINE_OF:
        raise UnsupportedCombination(
            "precision",
            strategy.precision,
            "DeepSpeed's 16-bit engines hold 16-bit weights and fp32 masters; its autocast mode is"
            " not answered",
            allowed=("fp32", "tf32", "bf16", "fp16-master"),
            nearest=_ENGINE_OF[strategy.precision],
        )
    if strategy.optimizer not in _FLAT_VECTORS:
        raise UnsupportedCombination(
            "optim",
            strategy.optimizer,
            f"{strategy.parallel} gives the optimizer flat vectors in torch's own tensors",
            allowed=_FLAT_VECTORS,
            nearest="adamw-8bit" if "8bit" in strategy.optimizer else "adamw-fused",
        )
    if strategy.optimizer_in_backward:
        raise UnsupportedCombination(
            "optim-in-backward",
            True,
            f"{strategy.parallel} steps when all gradients are reduced",
            hint="--parallel single or ddp",
        )
    _check_offload(strategy)
    _check_adapter(strategy)


def _check_offload(strategy: Strategy) -> None:
    allowed = _OFFLOADS.get(strategy.parallel)
    if allowed is not None and strategy.offload in ("cpu", "cpu-params"):
        raise UnsupportedCombination(
            "offload",
            strategy.offload,
            f"{strategy.parallel} keeps all parameters on the device; zero3 can offload them",
            allowed=allowed,
            nearest="optimizer",
        )


def _check_adapter(strategy: Strategy) -> None:
    half = strategy.policy.compute == "half"
    if strategy.method != "full" and half and strategy.adapter_dtype == "fp32":
        raise UnsupportedCombination(
            "adapter-dtype",
            "fp32",
            f"DeepSpeed casts the whole model to {strategy.policy.half_dtype}, adapters included",
            allowed=("same",),
            nearest="same",
        )
