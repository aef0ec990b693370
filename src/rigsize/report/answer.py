"""An Estimate together with what was asked around it; every report is made from this."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.estimate import Estimate
from rigsize.report.timed import NOT_TIMED, Timed
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GIGABIT_BYTES

if TYPE_CHECKING:
    from rigsize.search import Edit

__all__ = [
    "Answer",
    "command_for",
    "command_of",
    "least_bytes",
    "state_bytes_per_parameter",
    "trained_bytes_per_parameter",
]

FITS, DOES_NOT_FIT = 0, 3
_HALF_BYTES = 2
_SMALLEST_STATES = 2.0
"""Bytes a parameter of 8-bit AdamW, its scales left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a report needs beyond the Estimate."""

    estimate: Estimate
    assumed: tuple[str, ...] = ()
    """Settings chosen for the user, in words."""
    notes: tuple[str, ...] = ()
    """Beyond the Estimate's own."""
    requested_headroom_bytes: int = 0
    """Already taken off the Estimate's capacity."""
    fail_over_bytes: int | None = None
    usual: Estimate | None = None
    """Of a usual batch, where lengths are known; `estimate` is of the worst."""
    usual_words: str = ""
    edits: tuple[Edit, ...] = ()
    """What would make it fit, or else save most."""
    timed: Timed = NOT_TIMED

    @property
    def capacity_bytes(self) -> int | None:
        """Of the card itself."""
        usable = self.estimate.fit.capacity_bytes
        return None if usable is None else usable + self.requested_headroom_bytes

    @property
    def headroom_bytes(self) -> int | None:
        """Left of the card itself; negative when it does not fit."""
        left = self.estimate.fit.headroom_bytes
        return None if left is None else left + self.requested_headroom_bytes

    @property
    def peak_bytes(self) -> int:
        """Of the device, on a CPU of the allocations."""
        memory = self.estimate.memory
        device = memory.device_peak_bytes
        return memory.allocated_peak_bytes if device is None else device

    @property
    def over_limit(self) -> bool:
        """Whether `--fail-over` is exceeded."""
        return self.fail_over_bytes is not None and self.peak_bytes > self.fail_over_bytes

    @property
    def exit_code(self) -> int:
        """3 when it does not fit or is above the user's limit."""
        misfit = self.estimate.fit.verdict == "does_not_fit"
        return DOES_NOT_FIT if misfit or self.over_limit else FITS

    @property
    def command(self) -> str:
        """The command that asks this very question, every setting written out."""
        plain = command_of("estimate", self.estimate, self.requested_headroom_bytes)
        return " ".join([plain, *map(shlex.quote, self.timed.command)])


def command_of(verb: str, estimate: Estimate, headroom_bytes: int = 0) -> str:
    """`rigsize estimate MODEL --task ...` with every setting that changes the answer."""
    asked = (estimate.workload, estimate.strategy, estimate.cluster)
    return command_for(verb, *asked, headroom_bytes)


def command_for(
    verb: str, workload: Workload, strategy: Strategy, cluster: Cluster, headroom_bytes: int = 0
) -> str:
    """The same of a run that nobody has estimated yet."""
    words = ["rigsize", verb, workload.model, "--task", workload.task, "--use", workload.use]
    words += ["--max-length", str(workload.max_length)]
    if workload.max_target_length is not None:
        words += ["--max-target-length", str(workload.max_target_length)]
    if workload.task.endswith("-classification"):
        words += ["--num-labels", str(workload.num_labels)]
    words += _padding_words(workload, strategy)
    words += ["--precision", strategy.precision, "--attention", strategy.attention]
    words += ["--batch-size", str(strategy.micro_batch)]
    if workload.training:
        words += ["--grad-accum", str(strategy.accumulation), "--optim", strategy.optimizer]
        words += ["--recompute", strategy.recompute, *_loss_words(workload, strategy)]
        words += ["--max-grad-norm", f"{strategy.max_grad_norm or 0:g}"]
        words += [] if strategy.hold_output else ["--no-hold-output"]
    words += [*_generation_words(workload), *_adapter_words(strategy), *_sharding_words(strategy)]
    words += ["--gpus", _gpus(cluster)]
    table = cluster.accelerator.table
    words += ["--accelerators", table] if table else []
    words += ["--headroom", f"{headroom_bytes}B"] if headroom_bytes else []
    host_bytes = cluster.host_memory_bytes
    asks_nodes = verb in ("estimate", "emit")
    words += ["--host-memory", f"{host_bytes}B"] if host_bytes and asks_nodes else []
    rate = cluster.network_bytes_per_s
    if rate is not None and cluster.nodes > 1 and asks_nodes:
        words += ["--network", f"{rate / GIGABIT_BYTES:.10g}"]
    return shlex.join(words)


def _gpus(cluster: Cluster) -> str:
    """`A100-40GB`, `A100-40GB:8`, `A100-40GB:8x2`."""
    if cluster.devices == 1:
        return cluster.accelerator.id
    nodes = f"x{cluster.nodes}" if cluster.nodes > 1 else ""
    return f"{cluster.accelerator.id}:{cluster.per_node}{nodes}"


_PLAIN = Strategy()
"""What is not written out: the defaults of what few runs change."""
_ADAPTER_FLAGS = {
    "lora_rank": "--lora-rank",
    "lora_targets": "--lora-targets",
    "lora_dropout": "--lora-dropout",
    "adapter_dtype": "--adapter-dtype",
    "virtual_tokens": "--virtual-tokens",
    "quantization": "--quantization",
}
_SHARDING_FLAGS = {"parallel": "--parallel", "shard_size": "--shard-size", "offload": "--offload"}
_SWITCHES = {
    "bucket_view": "--bucket-view",
    "optimizer_in_backward": "--optim-in-backward",
    "compile": "--compile",
}


def _changed(strategy: Strategy, flags: Mapping[str, str]) -> Iterator[str]:
    for field, flag in flags.items():
        value = getattr(strategy, field)
        if value != getattr(_PLAIN, field):
            yield from (flag, str(value))


def _generation_words(workload: Workload) -> Iterator[str]:
    for flag, value in (
        ("--prompt-length", workload.prompt_length),
        ("--max-new-tokens", workload.max_new_tokens),
    ):
        if value is not None:
            yield from (flag, str(value))


def _adapter_words(strategy: Strategy) -> Iterator[str]:
    if strategy.method != "full":
        yield from ("--method", strategy.method)
    yield from _changed(strategy, _ADAPTER_FLAGS)
    if strategy.rslora:
        yield "--rslora"


def _sharding_words(strategy: Strategy) -> Iterator[str]:
    yield from _changed(strategy, _SHARDING_FLAGS)
    yield from (flag for field, flag in _SWITCHES.items() if getattr(strategy, field))
    if not strategy.reshard_after_forward:
        yield "--no-reshard"


def _padding_words(workload: Workload, strategy: Strategy) -> list[str]:
    words = [] if workload.padding == "fixed" else ["--padding", workload.padding]
    if workload.padding != "unpadded":
        return words if workload.padding_in_batch else [*words, "--no-padding-in-batch"]
    budget = strategy.tokens_per_batch
    return words if budget is None else [*words, "--tokens-per-batch", str(budget)]


def _loss_words(workload: Workload, strategy: Strategy) -> list[str]:
    if strategy.loss == "all":
        return []
    words = ["--loss", strategy.loss]
    share = ["--mask-share", f"{workload.mask_share:g}"]
    return words + share if workload.task == "masked-lm" else words


def state_bytes_per_parameter(estimate: Estimate) -> float:
    """Optimizer states a trainable parameter, of the states that the Program really makes.

    Where they are sharded, of the parameters that this rank steps on.
    """
    program = estimate.program
    trainable = sum(p.numel for p in program.stepped if p.trainable)
    if not program.training or not trainable:
        return 0.0
    timeline = program.timeline
    made = [o for name in ("load", "first", "optimizer_first") for o in program.slices[name]]
    states = sum(
        timeline.sizes[operation]
        for operation in made
        if operation >= 0 and timeline.places[operation].category == "optimizer_states"
    )
    return states / trainable


def trained_bytes_per_parameter(estimate: Estimate) -> float:
    """The weight of a trainable parameter, and so its gradient: adapters have a dtype of their own.

    Of the policy's weights where nothing is trained.
    """
    trained = [p for p in estimate.program.parameters if p.trainable]
    numel = sum(p.numel for p in trained)
    if not numel:
        return float(estimate.strategy.policy.weight_bytes)
    return sum(p.numel * p.itemsize for p in trained) / numel


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a run's weights take, where some of them are quantised."""

    method: str
    """One of `spec.strategy.QUANTIZATIONS`."""
    quantized: int
    """Parameters stored that way."""
    quantized_bytes: int
    """Of them, scales and code tables included."""
    rest: int
    """Parameters that stay as they are."""
    rest_bytes: int

    @property
    def bytes_per_quantized(self) -> float:
        """0.5625 for NF4 alone; more where rows are short."""
        return self.quantized_bytes / self.quantized if self.quantized else 0.0

    @property
    def bytes_per_rest(self) -> float:
        """Of a parameter that is not quantised."""
        return self.rest_bytes / self.rest if self.rest else 0.0

    @property
    def bytes_per_parameter(self) -> float:
        """Over all of them."""
        return (self.quantized_bytes + self.rest_bytes) / (self.quantized + self.rest)


def stored(estimate: Estimate) -> Stored | None:
    """How the weights are stored, counted in the Program; None where none is quantised."""
    if estimate.strategy.stored_as == "none":
        return None
    program, timeline = estimate.program, estimate.program.timeline
    ours = [p for p in program.parameters if p.packed_bytes or p.itemsize == 1]
    scales = sum(
        timeline.sizes[operation]
        for operation in program.slices["load"]
        if operation >= 0 and timeline.places[operation].op == "scales"
    )
    others = [p for p in program.parameters if not (p.packed_bytes or p.itemsize == 1)]
    return Stored(
        method=estimate.strategy.stored_as,
        quantized=sum(p.numel for p in ours),
        quantized_bytes=scales + sum(p.num_bytes for p in ours),
        rest=sum(p.numel for p in others),
        rest_bytes=sum(p.num_bytes for p in others),
    )


def least_bytes(estimate: Estimate) -> int:
    """A bound from below: what no change of batch, recompute, precision or optimizer saves.

    bf16 weights, and in training as many gradients beside the smallest states on offer, all of
    them spread over the shards. Quantised weights are as they are.
    """
    counts, shards = estimate.parameters, estimate.program.mesh.shard
    held = stored(estimate)
    if held is not None:
        return held.quantized_bytes
    if not estimate.workload.training:
        return _HALF_BYTES * counts.model // shards
    states = min(_SMALLEST_STATES, state_bytes_per_parameter(estimate))
    whole = _HALF_BYTES * (counts.model + counts.trainable) + int(states * counts.trainable)
    return whole // shards
