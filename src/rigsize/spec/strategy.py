"""Strategy: how the work is done on each device."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.spec.checks import integer, one_of, share
from rigsize.spec.optimizers import (
    OPTIMIZERS,
    SIXTEEN_BIT_ONLY,
    WHOLE_MATRICES,
    fails_on_shards,
)
from rigsize.spec.precision import PrecisionPolicy, find_policy
from rigsize.spec.recompute import check_recompute
from rigsize.spec.workload import MAX_BATCH
from rigsize.spec.zero import ZEROS, check_zero, zero_policy

ATTENTIONS = ("sdpa", "eager", "flash")
LOSSES = ("all", "masked", "chunked")
PARALLELS = ("single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")
FSDPS = ("fsdp", "hsdp")
SHARDS_WEIGHTS = (*FSDPS, "zero3")
"""Weights lie spread over the ranks and are gathered layer by layer."""
LATER_PARALLELS = ("tensor", "pipeline", "context", "expert")
"""Other ways to split a model: each changes what every rank computes, not only what it holds."""
OFFLOADS = ("none", "cpu", "cpu-params", "optimizer", "activations")
METHODS = (
    "full",
    "lora",
    "dora",
    "ia3",
    "adalora",
    "prefix",
    "prompt",
    "qlora",
    "int8-lora",
)
LORA_METHODS = ("lora", "dora", "adalora", "qlora", "int8-lora")
QUANTIZATIONS = ("none", "nf4", "nf4-double", "int8", "int8-torchao", "int4-torchao", "fp8")
"""How base weights are stored: bitsandbytes' NF4 (QLoRA's double quantisation too) and LLM.int8,
torchao's weight-only int8 and int4, fp8 with a scale a row."""
STORED_BY: dict[str, tuple[str, ...]] = {
    "qlora": ("nf4-double", "nf4"),
    "int8-lora": ("int8",),
    "int8": ("int8", "int8-torchao"),
    "int4": ("nf4", "nf4-double", "int4-torchao"),
    "fp8": ("fp8",),
}
"""By method or precision: how it may store weights, first what it does unasked."""
PROMPT_METHODS = ("prefix", "prompt")
"""They put positions before the text, which moves every row that a head could select."""
NOT_YET = {"parallel": LATER_PARALLELS}
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
    shard_size: int | None = None
    """Ranks that hold one copy of the states together (hsdp); None is the devices of a node."""
    reshard_after_forward: bool = True
    """FSDP2 frees a block's whole parameters after its forward pass and gathers them again."""
    bucket_view: bool = False
    """DDP's `gradient_as_bucket_view`: no second copy of the gradients."""
    offload: str = "none"
    """cpu: FSDP2's `CPUOffloadPolicy`, shards, gradients and optimizer on the host; ZeRO's
    optimizer and parameters. cpu-params: ZeRO-3's parameters alone. optimizer: its states and step.
    activations: saved tensors, by `torch.autograd.graph.save_on_cpu`."""
    method: str = "full"
    lora_rank: int = 8
    """Of the LoRA methods."""
    rslora: bool = False
    """Scaled by the root of the rank (Kalajdzievski 2023); memory does not change."""
    lora_dropout: float = 0.0
    """Before the adapter's first product; peft's default is none."""
    lora_targets: str | None = None
    """Module names, comma separated; None is peft's choice for the architecture."""
    adapter_dtype: str = "fp32"
    """fp32 (peft's default for 16-bit weights) or `same` as the weights."""
    virtual_tokens: int = 20
    """Virtual tokens of prefix and prompt."""
    quantization: str = "none"
    """How base weights are stored, one of QUANTIZATIONS; `none` is what the precision and the
    method say (`stored_as`)."""
    optimizer_in_backward: bool = False
    """Each parameter is stepped on when its gradient is ready, and the gradient freed."""
    compile: bool = False
    """`torch.compile` of the model."""

    def __post_init__(self) -> None:
        find_policy(self.precision)
        one_of("optim", self.optimizer, OPTIMIZERS)
        one_of("attention", self.attention, ATTENTIONS)
        check_recompute(self.recompute)
        integer("batch-size", self.micro_batch, 1, MAX_BATCH)
        integer("grad-accum", self.accumulation, 1, 10_000_000)
        one_of("loss", self.loss, LOSSES)
        one_of("parallel", self.parallel, PARALLELS)
        one_of("offload", self.offload, OFFLOADS)
        one_of("method", self.method, METHODS)
        one_of("adapter-dtype", self.adapter_dtype, ("fp32", "same"))
        integer("lora-rank", self.lora_rank, 1, 65_536)
        one_of("quantization", self.quantization, QUANTIZATIONS)
        integer("virtual-tokens", self.virtual_tokens, 1, 65_536)
        share("lora-dropout", self.lora_dropout)
        if self.lora_targets is not None and not self.lora_targets.strip(" ,"):
            raise SpecError(
                "lora-targets",
                self.lora_targets,
                "names no module",
                allowed=("names, comma separated", "all-linear"),
            )
        if self.shard_size is not None:
            integer("shard-size", self.shard_size, 1, 100_000_000)
        if self.tokens_per_batch is not None:
            integer("tokens-per-batch", self.tokens_per_batch, 1, 10**9)
        self._check_together()

    def _check_together(self) -> None:
        sharded = (*FSDPS, *ZEROS)
        if self.offload in ("cpu", "cpu-params") and self.parallel not in sharded:
            raise UnsupportedCombination(
                "offload",
                self.offload,
                f"needs sharded parameters, parallel is {self.parallel}",
                hint="--parallel fsdp, also on one device",
            )
        self._check_optimizer_offload()
        if self.optimizer in SIXTEEN_BIT_ONLY and self.precision != "bf16":
            raise UnsupportedCombination(
                "optim",
                self.optimizer,
                "stochastic rounding is for bf16 weights",
                hint="--precision bf16, or --optim adamw-fused",
            )
        self._check_in_backward()
        if self.optimizer in WHOLE_MATRICES and self.parallel in sharded:
            raise UnsupportedCombination(
                "optim",
                self.optimizer,
                f"a step needs whole matrices, {self.parallel} leaves a rank its shard",
                hint="--parallel ddp, or --optim adamw-fused",
            )
        self._check_sharded_step()
        if self.method == "adalora" and (self.parallel in sharded or self.optimizer_in_backward):
            raise UnsupportedCombination(
                "method",
                self.method,
                "ranks are chosen by whole matrices and all gradients, behind the optimizer step",
                nearest="lora",
            )
        if self.method == "prefix" and self.recompute != "none":
            raise UnsupportedCombination(
                "recompute",
                self.recompute,
                "prefix tuning hands each block a cache, which recomputing would fill twice",
                allowed=("none",),
            )
        if self.parallel in ZEROS:
            check_zero(self)
        if self.method in PROMPT_METHODS and self.loss != "all":
            raise UnsupportedCombination(
                "loss", self.loss, f"{self.method} tuning moves the positions", allowed=("all",)
            )
        if self.parallel in FSDPS and self.policy.loss_scaling:
            raise UnsupportedCombination(
                "precision",
                self.precision,
                "no gradient scaler works on sharded gradients",
                allowed=("fp32", "tf32", "amp-bf16", "bf16"),
                nearest="amp-bf16",
            )

    def _check_sharded_step(self) -> None:
        why = fails_on_shards(self.optimizer) if self.parallel in FSDPS else None
        if why is not None:
            raise UnsupportedCombination(
                "optim",
                self.optimizer,
                why,
                allowed=[name for name in OPTIMIZERS if fails_on_shards(name) is None],
                nearest="adamw-8bit-torchao" if "8bit" in self.optimizer else "adamw-fused",
            )

    def _check_optimizer_offload(self) -> None:
        if self.offload != "optimizer":
            return
        if self.parallel in FSDPS:
            raise UnsupportedCombination(
                "offload",
                self.offload,
                "FSDP2 moves shards, gradients and optimizer to the host together or not at all",
                allowed=("none", "cpu", "activations"),
                nearest="cpu",
            )
        if self.parallel in ("single", "ddp") and self.policy.loss_scaling:
            raise UnsupportedCombination(
                "precision",
                self.precision,
                "no gradient scaler works on gradients that left the device",
                allowed=("fp32", "tf32", "amp-bf16", "bf16"),
                nearest="amp-bf16",
            )
        if self.optimizer_in_backward:
            raise UnsupportedCombination(
                "offload",
                self.offload,
                "the step in the backward pass would wait for the host after every gradient",
                allowed=("none", "activations"),
                nearest="none",
            )

    def _check_in_backward(self) -> None:
        """A step in backward has one gradient of one micro-batch of one rank, and no other."""
        if not self.optimizer_in_backward:
            return
        refused = (
            (self.accumulation > 1, "gradients are to be added up first", "--grad-accum 1"),
            (self.parallel != "single", f"{self.parallel} averages gradients after it", "one GPU"),
            (self.policy.loss_scaling, "a gradient scaler looks at all of them", "amp-bf16"),
            (self.max_grad_norm is not None, "clipping needs them all", "--max-grad-norm 0"),
        )
        for is_so, why, nearest in refused:
            if is_so:
                raise UnsupportedCombination("optim-in-backward", "yes", why, nearest=nearest)

    @property
    def steps_on_host(self) -> bool:
        """Whether the optimizer's step, and its states, are the host's."""
        return self.offload in ("cpu", "optimizer")

    @property
    def gradients_leave(self) -> bool:
        """Whether they go to the host in every micro-step, not once a step.

        FSDP2 sends them with all it has, ZeRO-2 and 3 wherever they step there (`program.zero`,
        `program.zero3`).
        """
        if self.offload == "optimizer":
            return self.parallel in ("zero2", "zero3")
        return self.offload == "cpu"

    @property
    def stored_as(self) -> str:
        """How base weights are stored: what was asked for, else what method or precision mean."""
        if self.quantization != "none":
            return self.quantization
        return (STORED_BY.get(self.method) or STORED_BY.get(self.precision, ("none",)))[0]

    @property
    def compute(self) -> str:
        """What is traced: fp32, amp or half.

        FSDP2's own mixed precision hands 16-bit weights to layers that run without autocast, as
        torchtitan has it: its amp-bf16 computes as half does, over fp32 shards.
        """
        compute = self.policy.compute
        return "half" if compute == "amp" and self.parallel in FSDPS else compute

    @property
    def policy(self) -> PrecisionPolicy:
        """The precision policy by its name."""
        policy = find_policy(self.precision)
        return zero_policy(policy) if self.parallel in ZEROS else policy
