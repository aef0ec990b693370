"""Strategy: how the work is done on each device."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.spec.checks import integer, one_of
from rigsize.spec.precision import PrecisionPolicy, find_policy
from rigsize.spec.workload import MAX_BATCH

OPTIMIZERS = (
    "adamw-foreach",
    "adamw-fused",
    "adamw-loop",
    "adamw-8bit",
    "sgd",
    "sgd-momentum",
    "adafactor",
)
OPTIMIZER_ALIASES = {"adamw": "adamw-foreach"}
"""torch's default on CUDA is foreach."""
ATTENTIONS = ("sdpa", "eager", "flash")
RECOMPUTES = ("none", "block")
PARALLELS = ("single",)
NOT_YET = {
    "parallel": ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"),
    "offload": ("cpu", "cpu-params", "optimizer", "activations"),
    "method": ("lora", "dora", "ia3", "prefix", "prompt", "qlora", "int8-lora"),
    "recompute": ("selective",),
    "loss": ("masked", "chunked"),
}
"""Contract values that a later release answers; named so that the refusal can say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How: precision, optimizer and its implementation, batch, attention, recompute."""

    precision: str = "fp32"
    optimizer: str = "adamw-foreach"
    micro_batch: int = 1
    """Texts a device at a time, B."""
    accumulation: int = 1
    """Micro-batches an optimizer step."""
    recompute: str = "none"
    attention: str = "sdpa"
    hold_output: bool = True
    """The loop keeps the model's output object alive through the backward pass."""
    max_grad_norm: float | None = 1.0
    """Gradient clipping before the step; None for none."""

    def __post_init__(self) -> None:
        find_policy(self.precision)
        one_of("optim", self.optimizer, OPTIMIZERS)
        one_of("attention", self.attention, ATTENTIONS)
        one_of("recompute", self.recompute, RECOMPUTES)
        integer("batch-size", self.micro_batch, 1, MAX_BATCH)
        integer("grad-accum", self.accumulation, 1, 10_000_000)

    @property
    def policy(self) -> PrecisionPolicy:
        """The precision policy by its name."""
        return find_policy(self.precision)
