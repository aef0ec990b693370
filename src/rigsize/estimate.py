"""The answer: Workload x Strategy x Cluster to memory, its ledger and whether it fits.

One line of calls: profile (stored, cached or traced) -> Program -> replay -> Estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rigsize.errors import UnsupportedCombination
from rigsize.hardware.accelerators import Accelerator
from rigsize.keys import key_for
from rigsize.memory.compiled import as_assumed, least_bytes
from rigsize.memory.host import HostEstimate, host_memory, run_of
from rigsize.memory.ledger import LedgerRow
from rigsize.memory.outside import communication, outside
from rigsize.memory.peaks import BOUNDS, Peak, allocated_beside, peaks_of
from rigsize.memory.replay import Replay, replay, replay_exact
from rigsize.models import ModelSource, check_lengths, check_task
from rigsize.point import assumed_sizes, point_of
from rigsize.program.build import Program, build_program
from rigsize.program.environment import TORCH_VERSION, environment_of
from rigsize.program.generation import build_generation
from rigsize.program.mesh import mesh_of
from rigsize.program.placement import Placement, split
from rigsize.remarks import adapted, assumptions, kept_logits, notes, recomputed
from rigsize.spec import Cluster, Strategy, Workload, check_together
from rigsize.spec.optimizers import muon_takes, no_matrix_for_muon
from rigsize.spec.quantization import (
    assumptions_of,
    check_checkpoint,
)
from rigsize.spec.zero import ZEROS
from rigsize.trace.profile import Profile
from rigsize.trace.store import find_profile
from rigsize.units import format_bytes

Verdict = Literal["fits", "tight", "does_not_fit", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """One device's memory in bytes; the rows of the ledger sum to the device peak."""

    allocated_peak_bytes: int
    """`torch.cuda.max_memory_allocated`; on cpu the live bytes of all tensors."""
    reserved_peak_bytes: int | None
    """`torch.cuda.max_memory_reserved`; None on cpu."""
    device_peak_bytes: int | None
    """Reserved plus the CUDA context and NCCL's communicators; None on cpu."""
    low_bytes: int
    high_bytes: int
    """The device peak with context and communicators at the low and high end of their bands."""
    peak_moment: str
    """When the peak is, in words."""
    ledger: tuple[LedgerRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether it fits the device, and the host where its memory is known."""

    verdict: Verdict
    """The worse of the card's and the host's."""
    capacity_bytes: int | None
    headroom_bytes: int | None
    """Capacity less the device peak; negative when it does not fit."""
    host_verdict: Verdict = "unknown"
    host_capacity_bytes: int | None = None
    """Of one node."""
    host_headroom_bytes: int | None = None
    card_verdict: Verdict | None = None
    """The card's own, where the host's memory was asked about; None elsewhere."""

    @property
    def of_card(self) -> Verdict:
        """The verdict without the host."""
        return self.card_verdict or self.verdict

    @property
    def host_is_worse(self) -> bool:
        """The host decides the verdict."""
        return self.verdict == self.host_verdict != self.of_card

    @property
    def fits(self) -> bool:
        """Tight fits are fits: one end of the context's band leaves room, the other does not."""
        return self.verdict in ("fits", "tight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Three counts that are easily taken for one another."""

    model: int
    """What is built for the task: backbone and head."""
    trainable: int
    head: int
    """Of it, the task head."""
    checkpoint: int | None
    """What the published file holds, unused parts included."""
    checkpoint_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """One of several devices that hold a model together (`program.placement`)."""

    device: int
    weight_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The whole answer."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    cluster: Cluster
    point: Mapping[str, int]
    """The sizes of the micro-batch, {B, S, T} and M, N where it has them (`rigsize.point`)."""
    memory: MemoryEstimate
    host: HostEstimate
    fit: Fit
    parameters: Parameters
    versions: dict[str, str]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    program: Program
    """The Program, for explanations; of several devices the fullest one's."""
    replay: Replay
    devices: tuple[DeviceShare, ...] = ()
    """Where one model is spread over several, each of them."""


def estimate(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    *,
    profile: Profile | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Estimate:
    """The memory of one device for this run.

    Raises a SizingError for what cannot be answered. `profile` overrides the stored one (a Record
    is compared under its own library versions). `sizes` of {B, S, T, M, N} are those that a run
    really had, in place of what the workload lets expect.
    """
    check_workload(source, workload, strategy)
    accelerator = cluster.accelerator
    point = point_of(workload, strategy)
    point |= {symbol: size for symbol, size in (sizes or {}).items() if symbol in point}
    if profile is None:
        profile = profile_for(source, workload, strategy, accelerator, point)
    whole = build(source, profile, strategy, cluster, point)
    program, played, verdict, shares = _worst(whole, accelerator)
    memory = _memory(program, played, accelerator)
    if strategy.compile:
        memory, verdict = _compiled(memory, verdict, program, accelerator)
    verdict, beside_steps = _beside_steps(program, played, verdict, accelerator)
    on_cpu = played if accelerator.is_cpu else None
    host = host_of(source, profile, point, workload, strategy, whole, on_cpu)
    assumed = () if sizes else assumed_sizes(workload, strategy)
    return Estimate(
        source=source,
        workload=workload,
        strategy=strategy,
        cluster=cluster,
        point=point,
        memory=memory,
        host=host,
        fit=_with_host(_fit(verdict, program, played, accelerator), host, cluster),
        devices=shares,
        parameters=_parameters(source, program),
        versions={**profile.versions, "assumed_torch": ".".join(map(str, TORCH_VERSION))},
        assumptions=(
            *assumed,
            *assumptions_of(strategy, training=workload.training),
            *assumptions(program, accelerator),
            *host.assumptions,
        ),
        notes=(
            *source.notes,
            *notes(workload, strategy, accelerator),
            *adapted(source, strategy),
            *recomputed(strategy, len(profile.full_layers())),
            *beside_steps,
            *kept_logits(program, workload, strategy, _free_at_rest(program, played, accelerator)),
            *host.notes,
        ),
        program=program,
        replay=played,
    )


def host_of(
    source: ModelSource,
    profile: Profile,
    point: Mapping[str, int],
    workload: Workload,
    strategy: Strategy,
    program: Program,
    on_cpu: Replay | None = None,
) -> HostEstimate:
    """The host memory of a node that runs this Program.

    Where the host is the device, `on_cpu` is the Program's replay.
    """
    return host_memory(
        run_of(
            source,
            profile,
            point,
            workload,
            strategy,
            program.mesh,
            saved=program.saved_on_host,
            paged_bytes=program.paged_bytes,
            tensors_bytes=None if on_cpu is None else on_cpu.allocated_peak_bytes,
        )
    )


def _beside_steps(
    program: Program, played: Replay, verdict: Verdict, accelerator: Accelerator
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict with evaluation and export, and what to say where one has no room.

    They are replayed only where their own sum is above the steps' peak, which is rare: a step's
    forward pass keeps as much, and its backward pass adds gradients.
    """
    capacity, room = accelerator.capacity_bytes, played.capacity_bytes
    if verdict not in ("fits", "tight") or capacity is None or room is None:
        return verdict, ()
    above = allocated_beside(program, played)
    above = {n: size for n, size in above.items() if size > played.allocated_peak_bytes}
    if not above:
        return verdict, ()
    high = outside(program.mesh, accelerator).high
    moments = replay(program, capacity_bytes=room, beside_steps=True).moments
    missing = [n for n in above if n not in moments or moments[n][1] + high > capacity]
    said = tuple(
        f"the steps fit, {name} beside them may not: it allocates"
        f" {'at most ' if name in BOUNDS else ''}{format_bytes(above[name])}"
        for name in missing
    )
    return ("tight" if missing else verdict), said


def _free_at_rest(program: Program, played: Replay, accelerator: Accelerator) -> int | None:
    """Of the card between steps, where its capacity is known and the steps fit."""
    capacity = accelerator.capacity_bytes
    if capacity is None or accelerator.is_cpu:
        return None
    return capacity - outside(program.mesh, accelerator).mid - played.at_rest_bytes


def peaks(answer: Estimate) -> tuple[Peak, ...]:
    """The peak of each moment of the run: one more replay, through what is beside the steps."""
    program, accelerator = answer.program, answer.cluster.accelerator
    if accelerator.is_cpu:
        return peaks_of(replay_exact(program, beside_steps=True), None)
    room = answer.replay.capacity_bytes
    played = replay(program, capacity_bytes=room, beside_steps=True)
    return peaks_of(played, outside(program.mesh, accelerator))


def profile_for(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    accelerator: Accelerator,
    point: Mapping[str, int] | None = None,
) -> Profile:
    """The profile of this run, by default at the sizes to be expected: stored or traced now."""
    key = key_for(source, workload, strategy, accelerator)
    sizes = point or point_of(workload, strategy)
    found = find_profile(source, key, sizes)
    if not sizes.get("C"):
        return found
    return replace(found, decode=find_profile(source, replace(key, cache="decode"), sizes))


def build(
    source: ModelSource,
    profile: Profile,
    strategy: Strategy,
    cluster: Cluster,
    point: Mapping[str, int],
) -> Program:
    """The Program of one rank; nothing leaves a device that is the host itself."""
    if cluster.accelerator.is_cpu:
        strategy = replace(strategy, offload="none")
    make = build_generation if profile.key.cache else build_program
    program = make(
        profile,
        point,
        strategy,
        environment_of(cluster.accelerator, strategy),
        mesh_of(strategy, cluster, training=profile.key.use == "training"),
        vocabulary=int(source.config.get("vocab_size") or 0),
    )
    if strategy.parallel == "single" and cluster.devices > 1:
        program.devices, left_out = _place(program, source, profile, cluster)
        program.assumptions += _placed(cluster, left_out)
    trained = [p for p in program.stepped if p.trainable]
    matrices = any(muon_takes(p.name, p.shape) for p in trained)
    if program.training and strategy.optimizer == "muon" and not matrices:
        raise no_matrix_for_muon()
    return program


def _place(
    program: Program, source: ModelSource, profile: Profile, cluster: Cluster
) -> tuple[list[Program], tuple[str, ...]]:
    """The part of each device, and what of the model would be left to the disk."""
    from rigsize.trace.device_map import device_map

    accelerator, devices = cluster.accelerator, cluster.devices
    if accelerator.capacity_bytes is None:
        raise UnsupportedCombination(
            "gpus", accelerator.id, "no capacity is known to spread a model over"
        )
    free = accelerator.capacity_bytes - accelerator.context_bytes.value.mid
    paths = profile.stack_paths
    layers = tuple(f"{paths[k]}.{index}" for k, index, _ in profile.full_layers())
    found = device_map(source, profile.key, [free] * devices)
    placement = Placement.of(found, layers, devices)
    return split(program, placement), placement.left_out


def _placed(cluster: Cluster, left_out: tuple[str, ...]) -> list[str]:
    lines = [
        f"device_map='auto' spreads the layers over {cluster.devices} devices, one running at a"
        " time; the fullest is answered"
    ]
    if left_out:
        lines.append(
            f"device_map='auto' would leave {len(left_out)} modules to the disk; they are counted"
            " on the last device"
        )
    return lines


def fits_on(program: Program, accelerator: Accelerator) -> bool:
    """Whether the verdict is `fits`: it holds also at the high end of the context's band."""
    if program.devices:
        return all(fits_on(part, accelerator) for part in program.devices)
    capacity = accelerator.capacity_bytes
    if accelerator.is_cpu or capacity is None:
        raise UnsupportedCombination(
            "gpus",
            accelerator.id,
            "no capacity is known to fit a batch into",
            hint="--host-memory 64GiB says what there is" if accelerator.is_cpu else "",
        )
    beside = outside(program.mesh, accelerator)
    played = replay(program, capacity_bytes=capacity - beside.mid)
    ended = played.out_of_memory is None
    return ended and played.reserved_peak_bytes + beside.high <= capacity


def check_workload(source: ModelSource, workload: Workload, strategy: Strategy) -> None:
    """Refuses what each record alone cannot see."""
    check_task(source.config, workload.task)
    check_together(workload, strategy)
    check_checkpoint(source.config, strategy)
    check_lengths(source, workload, strategy)
    if workload.max_target_length and workload.task != "seq2seq-lm":
        raise UnsupportedCombination(
            "max-target-length",
            workload.max_target_length,
            f"only seq2seq-lm has target tokens, the task is {workload.task}",
        )
    _check_targets(strategy)
    _refuse_later(strategy)


def _check_targets(strategy: Strategy) -> None:
    """A block is traced once for all of its kind, so what adapts one of them alone is not known."""
    for target in (strategy.lora_targets or "").split(","):
        if any(part.isdigit() for part in target.split(".")):
            raise UnsupportedCombination(
                "lora-targets",
                target.strip(),
                "a block of its own is not answered: all of a kind are adapted alike",
                hint="leave out the number",
            )


def _refuse_later(strategy: Strategy) -> None:
    """FSDP2 has no offload of parameters alone; `check_zero` has looked at ZeRO's."""
    if strategy.offload == "cpu-params" and strategy.parallel not in ZEROS:
        raise UnsupportedCombination(
            "offload",
            strategy.offload,
            "not answered yet",
            allowed=("none", "cpu", "optimizer", "activations"),
        )


_WORST_FIRST: tuple[Verdict, ...] = ("does_not_fit", "unknown", "tight", "fits")


def _worst(
    program: Program, accelerator: Accelerator
) -> tuple[Program, Replay, Verdict, tuple[DeviceShare, ...]]:
    """The Program that decides, its replay and verdict, and every device where there are more."""
    if not program.devices:
        return program, *_play(program, accelerator), ()
    played = [_play(part, accelerator) for part in program.devices]
    shares = tuple(
        DeviceShare(
            device=number,
            weight_bytes=_weights(part),
            allocated_peak_bytes=replayed.allocated_peak_bytes,
            reserved_peak_bytes=replayed.reserved_peak_bytes,
            verdict=verdict,
        )
        for number, (part, (replayed, verdict)) in enumerate(
            zip(program.devices, played, strict=True)
        )
    )
    fullest = min(
        shares, key=lambda s: (_WORST_FIRST.index(s.verdict), -s.reserved_peak_bytes)
    ).device
    return program.devices[fullest], *played[fullest], shares


def _weights(program: Program) -> int:
    timeline = program.timeline
    return sum(
        timeline.sizes[o]
        for o in program.slices["load"]
        if o >= 0 and timeline.places[o].category.startswith("weights")
    )


def _play(program: Program, accelerator: Accelerator) -> tuple[Replay, Verdict]:
    """The replay to report, and the verdict over the band of the context."""
    if accelerator.is_cpu:
        return replay_exact(program), "unknown"
    capacity = accelerator.capacity_bytes
    if capacity is None:
        return replay(program), "unknown"
    beside = outside(program.mesh, accelerator)
    played = replay(program, capacity_bytes=capacity - beside.mid)
    if played.out_of_memory:
        lenient = replay(program, capacity_bytes=capacity - beside.low)
        verdict: Verdict = "does_not_fit" if lenient.out_of_memory else "tight"
        return (replay(program), verdict) if verdict == "does_not_fit" else (lenient, verdict)
    return played, "fits" if played.reserved_peak_bytes + beside.high <= capacity else "tight"


def _compiled(
    memory: MemoryEstimate, verdict: Verdict, program: Program, accelerator: Accelerator
) -> tuple[MemoryEstimate, Verdict]:
    """The eager figures as a bound from above, and what no compiler removes as one from below."""
    low = least_bytes(memory.ledger)
    if not accelerator.is_cpu:
        beside = outside(program.mesh, accelerator)
        low -= beside.mid - beside.low
    capacity = accelerator.capacity_bytes
    if verdict == "does_not_fit" and capacity is not None and low <= capacity:
        verdict = "tight"
    bounded = replace(
        memory, low_bytes=min(low, memory.low_bytes), ledger=as_assumed(memory.ledger)
    )
    return bounded, verdict


def _fit(verdict: Verdict, program: Program, played: Replay, accelerator: Accelerator) -> Fit:
    capacity = accelerator.capacity_bytes
    if verdict == "unknown" or capacity is None:
        return Fit(verdict=verdict, capacity_bytes=capacity, headroom_bytes=None)
    used = played.reserved_peak_bytes + outside(program.mesh, accelerator).mid
    return Fit(verdict=verdict, capacity_bytes=capacity, headroom_bytes=capacity - used)


def _with_host(fit: Fit, host: HostEstimate, cluster: Cluster) -> Fit:
    """The verdict of card and host together."""
    capacity = cluster.host_memory_bytes
    if capacity is None:
        return fit
    on_cpu = cluster.accelerator.is_cpu
    verdict: Verdict = "fits" if host.high_bytes <= capacity else "tight"
    if host.low_bytes > capacity:
        verdict = "does_not_fit"
    return replace(
        fit,
        verdict=verdict if on_cpu else min(fit.verdict, verdict, key=_WORST_FIRST.index),
        card_verdict=fit.verdict,
        host_verdict=verdict,
        host_capacity_bytes=capacity,
        host_headroom_bytes=capacity - host.peak_bytes,
    )


def _memory(program: Program, played: Replay, accelerator: Accelerator) -> MemoryEstimate:
    rows = ledger(program, played)
    moment = describe_moment(program, played)
    if accelerator.is_cpu:
        total = played.allocated_peak_bytes
        return MemoryEstimate(
            allocated_peak_bytes=total,
            reserved_peak_bytes=None,
            device_peak_bytes=None,
            low_bytes=total,
            high_bytes=total,
            peak_moment=moment,
            ledger=tuple(rows),
        )
    context, added = accelerator.context_bytes, communication(program.mesh, accelerator)
    beside = outside(program.mesh, accelerator)
    reserved = played.reserved_peak_bytes
    cached = reserved - played.live_requested_bytes
    rows.append(LedgerRow(name="allocator", num_bytes=cached, basis="derived"))
    rows.append(LedgerRow(name="context", num_bytes=context.value.mid, basis=context.basis))
    if added is not None:
        rows.append(LedgerRow(name="communication", num_bytes=added.value.mid, basis=added.basis))
    return MemoryEstimate(
        allocated_peak_bytes=played.allocated_peak_bytes,
        reserved_peak_bytes=reserved,
        device_peak_bytes=reserved + beside.mid,
        low_bytes=reserved + beside.low,
        high_bytes=reserved + beside.high,
        peak_moment=moment,
        ledger=tuple(rows),
    )


_STRONGEST_FIRST = ("traced", "derived", "assumed")


def ledger(program: Program, played: Replay) -> list[LedgerRow]:
    """What lives at the peak by category, as requested, largest first.

    A row is no better founded than the weakest of its storages.
    """
    totals: dict[str, int] = {}
    bases: dict[str, str] = {}
    timeline = program.timeline
    for storage in played.live:
        place = timeline.places[storage]
        totals[place.category] = totals.get(place.category, 0) + timeline.sizes[storage]
        bases[place.category] = max(
            bases.get(place.category, "traced"), place.basis, key=_STRONGEST_FIRST.index
        )
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return [LedgerRow(name=n, num_bytes=b, basis=bases[n]) for n, b in ranked]


def describe_moment(program: Program, played: Replay) -> str:
    """`backward of step 2, at _log_softmax_backward_data`."""
    peak = played.peak
    operation = program.slices[peak.slice][peak.index]
    place = program.timeline.places[operation if operation >= 0 else ~operation]
    phase = {"optimizer": "optimizer step"}.get(peak.phase, peak.phase)
    where = f" in {place.module}" if place.module else ""
    at = f"at {place.op or place.category}{where}"
    if "end" in program.slices:
        return f"{_pass_of(peak.slice)}, {at}"
    micro = ", a later micro-step" if peak.slice in ("accumulate", "last") else ""
    return f"{phase} of step {peak.step + 1}{micro}, {at}"


def _pass_of(name: str) -> str:
    """A slice of `program.generation` in words."""
    kind, _, keys = name.partition(".")
    return f"decoding step with {int(keys):,} keys" if kind == "decode" else "prefill"


def _parameters(source: ModelSource, program: Program) -> Parameters:
    total = sum(p.numel for p in program.parameters)
    head = sum(p.numel for p in program.parameters if p.category == "weights.lm_head")
    return Parameters(
        model=total,
        trainable=sum(p.numel for p in program.parameters if p.trainable),
        head=head,
        checkpoint=source.checkpoint_parameters,
        checkpoint_note=source.checkpoint_note,
    )


def with_batch(strategy: Strategy, micro_batch: int, accumulation: int | None = None) -> Strategy:
    """The strategy at another micro-batch; a budget of tokens goes with the number of texts."""
    tokens = strategy.tokens_per_batch
    return replace(
        strategy,
        micro_batch=micro_batch,
        accumulation=strategy.accumulation if accumulation is None else accumulation,
        tokens_per_batch=tokens and -(-tokens * micro_batch // strategy.micro_batch),
    )
