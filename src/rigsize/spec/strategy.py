"""Strategy: how the work is done on each device."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.errors import UnsupportedCombination
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
RUN_ONLY_OPTIMIZERS = ("adamw-sr",)
"""`train` and `measure` run them, estimates do not answer them yet: torchao's AdamW with stochastic
rounding of bf16 weights."""
OPTIMIZER_ALIASES = {"adamw": "adamw-foreach"}
"""torch's default on CUDA is foreach."""
ATTENTIONS = ("sdpa", "eager", "flash")
RECOMPUTES = ("none", "block")
LOSSES = ("all", "masked", "chunked")
PARALLELS = ("single", "ddp", "fsdp")
OFFLOADS = ("none", "cpu")
METHODS = ("full", "lora", "dora", "ia3", "prefix", "prompt")
PROMPT_METHODS = ("prefix", "prompt")
"""They put positions before the text, which moves every row that a head could select."""
NOT_YET = {
    "parallel": ("hsdp", "zero1", "zero2", "zero3"),
    "offload": ("cpu-params", "optimizer", "activations"),
    "method": ("qlora", "int8-lora"),
    "recompute": ("selective",),
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
    loss: str = "all"
    """Where the LM head runs: all positions, the masked (labelled) ones, or these in chunks."""
    tokens_per_batch: int | None = None
    """Token budget of an unpadded micro-batch; None for `micro_batch` texts."""
    parallel: str = "single"
    offload: str = "none"
    """cpu: FSDP2's `CPUOffloadPolicy`, shards, gradients and optimizer on the host."""
    method: str = "full"
    lora_rank: int = 8
    """Of lora and dora."""
    lora_targets: str | None = None
    """Module names, comma separated; None is peft's choice for the architecture."""
    adapter_dtype: str = "fp32"
    """fp32 (peft's default for 16-bit weights) or `same` as the weights."""
    virtual_tokens: int = 20
    """Virtual tokens of prefix and prompt."""

    def __post_init__(self) -> None:
        find_policy(self.precision)
        one_of("optim", self.optimizer, (*OPTIMIZERS, *RUN_ONLY_OPTIMIZERS))
        one_of("attention", self.attention, ATTENTIONS)
        one_of("recompute", self.recompute, RECOMPUTES)
        integer("batch-size", self.micro_batch, 1, MAX_BATCH)
        integer("grad-accum", self.accumulation, 1, 10_000_000)
        one_of("loss", self.loss, LOSSES)
        one_of("parallel", self.parallel, PARALLELS)
        one_of("offload", self.offload, OFFLOADS)
        one_of("method", self.method, METHODS)
        one_of("adapter-dtype", self.adapter_dtype, ("fp32", "same"))
        integer("lora-rank", self.lora_rank, 1, 65_536)
        integer("virtual-tokens", self.virtual_tokens, 1, 65_536)
        if self.tokens_per_batch is not None:
            integer("tokens-per-batch", self.tokens_per_batch, 1, 10**9)
        self._check_together()

    def _check_together(self) -> None:
        if self.offload != "none" and self.parallel != "fsdp":
            raise UnsupportedCombination(
                "offload",
                self.offload,
                f"needs sharded parameters, parallel is {self.parallel}",
                hint="--parallel fsdp, also on one device",
            )
        if self.optimizer == "adamw-sr" and self.precision != "bf16":
            raise UnsupportedCombination(
                "optim",
                self.optimizer,
                "stochastic rounding is for bf16 weights",
                hint="--precision bf16, or --optim adamw-fused",
            )
        if self.method in PROMPT_METHODS and self.loss != "all":
            raise UnsupportedCombination(
                "loss", self.loss, f"{self.method} tuning moves the positions", allowed=("all",)
            )
        if self.parallel == "fsdp" and self.policy.loss_scaling:
            raise UnsupportedCombination(
                "precision",
                self.precision,
                "no gradient scaler works on sharded gradients",
                allowed=("fp32", "tf32", "amp-bf16", "bf16"),
                nearest="amp-bf16",
            )

    @property
    def policy(self) -> PrecisionPolicy:
        """The precision policy by its name."""
        return find_policy(self.precision)
