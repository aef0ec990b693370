"""Searches over the estimate: the largest batch that fits, and what makes a run fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rigsize.edit_times import EditTime, step_s, time_of_edit
from rigsize.errors import SizingError, UnsupportedCombination
from rigsize.estimate import (
    Estimate,
    build,
    check_workload,
    estimate,
    fits_on,
    host_of,
    profile_for,
    with_batch,
)
from rigsize.keys import key_for
from rigsize.memory.replay import replay_exact
from rigsize.models import ModelSource, max_positions
from rigsize.point import point_of
from rigsize.program.bound import least_states_bytes
from rigsize.program.mesh import accumulation_for, mesh_of
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.spec.strategy import FSDPS, SHARDS_WEIGHTS
from rigsize.spec.workload import MAX_BATCH, MAX_LENGTH, with_length
from rigsize.trace.profile import Profile
from rigsize.trace.store import stored_profile

MOST_TRACES = 2
"""New traces that `cheapest_edits` may ask for: each takes seconds."""
MOST_REPLAYS = 24
"""Candidates that `cheapest_edits` replays, whatever they save, before it settles."""


def largest_batch(
    source: ModelSource, workload: Workload, strategy: Strategy, cluster: Cluster
) -> int:
    """The largest micro-batch whose replay fits; 0 if not even one text does.

    Doubling, then bisection: memory grows with the batch, and every answer is a replay. Where the
    host's memory is known, a batch has to fit it, too; on a CPU that alone.
    """
    if strategy.tokens_per_batch is not None:
        raise UnsupportedCombination(
            "batch-size", "auto", "a budget of tokens sets the batch", hint="give one of the two"
        )
    fits = _fits(source, workload, strategy, cluster)
    return _largest(lambda batch: fits(workload, with_batch(strategy, batch)), MAX_BATCH)


LENGTH_STEP = 8
"""Tokens: lengths that are multiples of it are one domain, and no kernel pads them."""


def longest_context(
    source: ModelSource, workload: Workload, strategy: Strategy, cluster: Cluster
) -> int:
    """The longest text, or prompt, whose replay fits, in steps of 8 tokens; 0 if 8 do not.

    Not longer than the model's positions, less the tokens that are written behind a prompt.
    """
    fits = _fits(source, with_length(workload, LENGTH_STEP), strategy, cluster)

    def length_fits(steps: int) -> bool:
        return fits(with_length(workload, steps * LENGTH_STEP), strategy)

    behind = workload.new_tokens if workload.generates and workload.task == "causal-lm" else 0
    longest = (max_positions(source.config) or MAX_LENGTH) - behind
    return _largest(length_fits, longest // LENGTH_STEP) * LENGTH_STEP


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 for none, if whatever is smaller fits too."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(
    source: ModelSource, workload: Workload, strategy: Strategy, cluster: Cluster
) -> Callable[[Workload, Strategy], bool]:
    check_workload(source, workload, strategy)
    known: list[Profile] = []  # one profile answers all sizes of its domains

    def fits(workload: Workload, tried: Strategy) -> bool:
        point = point_of(workload, tried)
        profile = next((p for p in known if p.covers(point)), None)
        if profile is None:
            profile = profile_for(source, workload, tried, cluster.accelerator, point)
            known.append(profile)
        program = build(source, profile, tried, cluster, point)
        capacity, on_cpu = cluster.host_memory_bytes, cluster.accelerator.is_cpu
        if capacity is not None:
            played = replay_exact(program) if on_cpu else None
            host = host_of(source, profile, point, workload, tried, program, played)
            if host.high_bytes > capacity or on_cpu:
                return host.high_bytes <= capacity
        return fits_on(program, cluster.accelerator)

    return fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of the strategy, replayed."""

    name: str
    """In words."""
    flags: str
    """What to add to the command."""
    workload: Workload
    strategy: Strategy
    saved_bytes: int
    """Device peak before less after."""
    device_peak_bytes: int
    host_peak_bytes: int
    """Of a node: what is saved on the card may lie there."""
    verdict: str
    """Of card and, where its memory is known, host."""
    saved_on_host_bytes: int = 0
    """What a micro-step sends there with `--offload activations`."""
    time: EditTime | None = None
    """What it costs in time; None before `cheapest_edits` has looked."""


@dataclass(frozen=True, slots=True)
class _Change:
    name: str
    flags: str
    apply: Callable[[Strategy], Strategy]


def cheapest_edits(answer: Estimate, count: int = 3) -> list[Edit]:
    """The `count` cheapest changes that make it fit, else those that save most.

    Cheap is what costs the user least, in this order: another implementation of the same
    optimizer, a smaller micro-batch with accumulation, recompute (a third more arithmetic), what
    changes rounding, and last what goes to the host, where it waits for its bus. Single changes
    come before pairs, pairs before triples.
    """
    if is_hopeless(answer):
        return []
    tried: list[Edit] = []
    found: list[Edit] = []
    replays = traces = 0
    for combination in _combinations(answer):
        if replays == MOST_REPLAYS or len(found) == count:
            break
        kinds = _kinds(_flags(combination))
        if any(_kinds(edit.flags) <= kinds for edit in found):
            continue  # a part of it is enough, or it is another size of the same change
        strategy = _applied(answer.strategy, combination)
        if not _is_stored(answer, strategy):
            if traces == MOST_TRACES:
                continue
            traces += 1
        replays += 1
        edit = _try(answer, combination, strategy)
        if edit is not None:
            tried.append(edit)
            found += [edit] if edit.verdict != "does_not_fit" else []
    return _timed(answer, found or sorted(tried, key=lambda e: -e.saved_bytes)[:count])


def _timed(answer: Estimate, edits: list[Edit]) -> list[Edit]:
    """Each with what it costs in time, where that is known without a trace."""
    if not edits:
        return []
    before = step_s(answer, answer.strategy, _sent_bytes(answer))
    return [
        replace(edit, time=time_of_edit(answer, before, edit.strategy, edit.saved_on_host_bytes))
        for edit in edits
    ]


def _sent_bytes(answer: Estimate) -> int:
    return sum(map(sum, answer.program.saved_on_host.values()))


HOPELESS = 50
"""No edits together save as much as this many times the card."""


def is_hopeless(answer: Estimate) -> bool:
    """Whether `cheapest_edits` does not even look."""
    capacity, need = answer.fit.capacity_bytes, answer.memory.device_peak_bytes
    return capacity is not None and need is not None and need > HOPELESS * capacity


def _kinds(flags: str) -> set[str]:
    """The flags; all micro-batches are one, for a smaller one than fits is no other change."""
    words = [w for w in _split(flags) if not w.startswith(("--grad-accum", "--tokens-per-batch"))]
    return {"--batch-size" if word.startswith("--batch-size") else word for word in words}


def _combinations(answer: Estimate) -> Iterator[tuple[_Change, ...]]:
    """Single changes, pairs, triples, each flag once; what its bound rules out is left out.

    Not so the triples: where nothing fits, they are what saves most.
    """
    changes = _changes(answer)
    for number in range(1, 4):
        for combination in itertools.combinations(changes, number):
            flags = [word for change in combination for word in _names(change)]
            if len(set(flags)) < len(flags):
                continue
            try:
                strategy = _applied(answer.strategy, combination)
            except UnsupportedCombination:  # an optimizer in backward with accumulation, say
                continue
            if number == 3 or _could_fit(answer, strategy):
                yield combination


def _names(change: _Change) -> list[str]:
    return [word for word in change.flags.split() if word.startswith("--")]


def _changes(answer: Estimate) -> list[_Change]:
    strategy = answer.strategy
    if not answer.workload.training:
        fewer = _smaller_batches(strategy, training=False)
        return [*fewer, *_lower_precision(answer), *_offloads(answer)]
    changes = []
    if strategy.optimizer in ("adamw-foreach", "adamw-loop"):
        changes.append(_option("fused AdamW, same mathematics", "--optim", "adamw-fused"))
    if strategy.parallel == "ddp" and answer.cluster.devices > 1:
        changes.append(_option("states sharded over the ranks", "--parallel", "fsdp"))
    changes += _smaller_batches(strategy, training=True)
    if strategy.recompute == "none":
        changes.append(_option("recompute per block", "--recompute", "block"))
    changes += _lower_precision(answer)
    if strategy.optimizer.startswith("adamw") and strategy.optimizer != "adamw-8bit":
        changes.append(_option("8-bit AdamW states", "--optim", "adamw-8bit"))
    return [*changes, *_offloads(answer)]


def _offloads(answer: Estimate) -> Iterator[_Change]:
    """What may go to the host; combinations that nothing runs are left out where they are made."""
    strategy, training = answer.strategy, answer.workload.training
    if strategy.offload != "none":
        return
    if training and strategy.parallel not in FSDPS:
        yield _option("optimizer states and step on the host", "--offload", "optimizer")
    if strategy.parallel in SHARDS_WEIGHTS:  # what `offload cpu` is for
        yield _option("parameters and states on the host", "--offload", "cpu")
    elif not answer.workload.generates and strategy.parallel in ("single", "ddp"):
        held = "parameters and states" if training else "parameters"
        name = f"{held} on the host, gathered block by block"
        yield _Change(
            name,
            "--parallel fsdp --offload cpu",
            lambda s: replace(s, parallel="fsdp", offload="cpu"),
        )
    if training:
        yield _option("saved activations on the host", "--offload", "activations")


_FIELDS = {
    "--offload": "offload",
    "--optim": "optimizer",
    "--parallel": "parallel",
    "--precision": "precision",
    "--recompute": "recompute",
}


def _option(name: str, flag: str, value: str) -> _Change:
    return _Change(name, f"{flag} {value}", lambda s: replace(s, **{_FIELDS[flag]: value}))  # type: ignore[arg-type]


def _smaller_batches(strategy: Strategy, *, training: bool) -> Iterator[_Change]:
    """Halves of the micro-batch; in training the global batch stays, by accumulation."""
    total = strategy.micro_batch * strategy.accumulation
    micro = strategy.micro_batch // 2
    while micro >= 1:
        more = accumulation_for(total, micro) if training else 1
        flags = f"--batch-size {micro}" + (f" --grad-accum {more}" if training else "")
        tokens = with_batch(strategy, micro).tokens_per_batch
        flags += f" --tokens-per-batch {tokens}" if tokens else ""
        name = f"micro-batch {micro}" + (f", accumulation {more}" if training else "")
        yield _Change(name, flags, lambda s, m=micro, a=more: with_batch(s, m, a))  # type: ignore[misc]
        micro //= 4 if micro > 8 else 2


def _lower_precision(answer: Estimate) -> list[_Change]:
    precision = answer.strategy.precision
    if not answer.workload.training:
        halves = [] if answer.strategy.policy.compute == "half" else ["bf16"]
        return [_option(f"{p} weights", "--precision", p) for p in halves]
    changes = []
    if precision in ("fp32", "tf32"):
        changes.append(_option("bf16 autocast", "--precision", "amp-bf16"))
    if precision not in ("bf16", "fp16-master"):
        changes.append(_option("pure bf16 weights and states", "--precision", "bf16"))
    return changes


def is_stored(
    source: ModelSource, workload: Workload, strategy: Strategy, cluster: Cluster
) -> bool:
    """Whether its memory is answered without a trace."""
    key = key_for(source, workload, strategy, cluster.accelerator)
    return stored_profile(key, point_of(workload, strategy)) is not None


def _is_stored(answer: Estimate, strategy: Strategy) -> bool:
    return is_stored(answer.source, answer.workload, strategy, answer.cluster)


def _flags(combination: tuple[_Change, ...]) -> str:
    return " ".join(change.flags for change in combination)


def _split(flags: str) -> list[str]:
    return [f"--{flag.strip()}" for flag in flags.split("--") if flag.strip()]


def _applied(strategy: Strategy, combination: tuple[_Change, ...]) -> Strategy:
    for change in combination:
        strategy = change.apply(strategy)
    return strategy


def _could_fit(answer: Estimate, strategy: Strategy) -> bool:
    """Whether weights, gradients and states alone leave room: a bound, no replay."""
    accelerator, training = answer.cluster.accelerator, answer.workload.training
    capacity = accelerator.capacity_bytes
    if capacity is None:
        return True
    mesh = mesh_of(strategy, answer.cluster, training=training)
    least = least_states_bytes(answer.program.parameters, strategy, mesh, training=training)
    return least <= capacity - accelerator.context_bytes.value.low


def _try(answer: Estimate, combination: tuple[_Change, ...], strategy: Strategy) -> Edit | None:
    try:
        after = estimate(answer.source, answer.workload, strategy, answer.cluster)
    except SizingError:  # a model without a block to recompute, say: no edit then
        return None
    before_bytes, after_bytes = answer.memory.device_peak_bytes, after.memory.device_peak_bytes
    if before_bytes is None or after_bytes is None or after_bytes >= before_bytes:
        return None
    return Edit(
        name=" + ".join(change.name for change in combination),
        flags=_flags(combination),
        workload=answer.workload,
        strategy=strategy,
        saved_bytes=before_bytes - after_bytes,
        device_peak_bytes=after_bytes,
        host_peak_bytes=after.host.peak_bytes,
        verdict=after.fit.verdict,
        saved_on_host_bytes=_sent_bytes(after),
    )
