"""The referee: allocator events of a real CPU step, as torch.profiler saw them, beside our trace.

The profiler's allocator events come from c10's own reporter, not from a dispatch mode, so nothing
of the recorder's machinery can make the two agree. Each event is given to the outermost operator
that the trace knows by name (composites such as `aten::linear` never reach a dispatch mode); what
is left after the named exceptions must be the same births in the same order, the same deaths
between them, and the same live bytes.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.trace.exemptions import SCALAR_BYTES, Event, exemption_of
from tests.trace.tiny import CONFIGS, SIZES, Case
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from rigsize.run.packing import first_position, pack
from rigsize.run.step import StepRecipe, inference_step, micro_step
from rigsize.trace.capture import Traced
from rigsize.trace.model import build, forward_arguments, load_config, make_batch
from rigsize.trace.recorder import ALLOC, FREE, RawTrace

ALIASES = {"aten::new_zeros": "aten::zeros"}
"""`value_selecting_reduction_backward` asks for zeros in other words under a dispatch mode."""
ALWAYS_KNOWN = frozenset(
    {
        "aten::copy",
        "aten::add",
        "aten::index_add",
        "aten::scatter_add",
        "aten::sum",
        "aten::_index_put_impl",
    }
)
"""Operators with scratch that may be in the trace only as in-place forms, or only as a scalar."""


def traced(case: Case) -> RawTrace:
    """Our trace of the case, dispatched as on a CPU."""
    options = case.options()
    model = Traced(load_config(CONFIGS[case.family], options), options, "cpu")
    return model.record(SIZES, padded=case.padded, hold_output=case.hold_output)


def trace_events(trace: RawTrace) -> list[Event]:
    """Births and deaths of the trace; operators without their overload, as the profiler has it."""
    births: dict[int, Event] = {}
    events = []
    for event in trace.events:
        if event.kind == ALLOC:
            name = event.op.partition(".")[0]
            births[event.storage] = Event(ALIASES.get(name, name), event.num_bytes)
            events.append(births[event.storage])
        elif event.kind == FREE and event.storage in births:
            born = births[event.storage]
            events.append(Event(born.op, born.num_bytes, born))
    return events


def real_batch(case: Case) -> dict[str, Any]:
    """The trace's own batch with values that a real step accepts."""
    options = case.options()
    batch: dict[str, Any] = make_batch(options, SIZES, "cpu", padded=case.padded)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in batch.items():
        few = name == "labels" and case.task in ("sequence-classification", "token-classification")
        high = SIZES["B"] if case.task == "embedding" and name == "labels" else 3 if few else 1000
        if isinstance(tensor, torch.Tensor):
            tensor.random_(0 if high < 1000 else 4, high, generator=generator)
    if case.unpadded:
        config = load_config(CONFIGS[case.family], options)
        lengths = [SIZES["S"], SIZES["N"] - SIZES["S"]]
        batch["packing"] = pack(lengths)
        first = first_position(config)
        batch["position_ids"] = torch.cat([torch.arange(first, first + n) for n in lengths])[None]
    elif case.padded:
        batch["attention_mask"].fill_(1)[0, -3:] = 0
    if case.family in ("bart", "t5"):  # their classifiers read the one end-of-text of each text
        batch["input_ids"][:, -4] = load_config(CONFIGS[case.family], options).eos_token_id
    if "positions" in batch:
        batch["positions"] %= batch["input_ids"].numel()
    return batch


def real_step(case: Case) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A real model on the CPU, and one step of it."""
    options = case.options()
    torch.manual_seed(0)
    config = load_config(CONFIGS[case.family], options)
    model = build(config, options, "cpu")
    batch = real_batch(case) | forward_arguments(config, options)
    recipe = StepRecipe(
        task=case.task,
        autocast_dtype=torch.bfloat16 if case.compute == "amp" else None,
        device_type="cpu",
        hold_output=case.hold_output,
    )
    # A look at the first and last tokens, to warn of padding: no part of the step, not traced.
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
    held: list[Any] = []

    def step() -> None:
        if case.training:
            micro_step(model, batch, recipe)
        else:
            held.append(inference_step(model, batch, recipe))

    return model, step


def profiled(case: Case) -> Any:
    """The profiler's tree of one real step on the CPU, the second of two."""
    model, step = real_step(case)
    step()
    model.zero_grad()
    return profile_once(step)


def profile_once(step: Callable[[], None]) -> Any:
    """The profiler's tree of one call, allocations among its nodes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    return prof.profiler.kineto_results.experimental_event_tree()


def _allocations(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        if node.typed[0] == _EventType.Allocation:
            yield node
        yield from _allocations(node.children)


def _chain(node: Any) -> list[Any]:
    """The operators around a node, outermost first."""
    chain = []
    while (node := node.parent) is not None:
        chain.append(node)
    return chain[::-1]


def _only_wraps(node: Any, inside: list[Any]) -> bool:
    """A frame of autocast or autograd, with another operator below it that dispatch sees first.

    Autocast casts the arguments of an operator and calls it again; autograd clones what an in-place
    operator is about to overwrite and its backward still wants.
    """
    within = inside[0].name if inside else ""
    if within == "aten::to" and node.name != "aten::sum":  # which sums again itself, in float
        return any(child.name == node.name for child in node.children)
    return within == "aten::clone" and bool(node.name.endswith("_"))


def _birth(num_bytes: int, born: list[Any], died: list[Any], known: frozenset[str]) -> Event:
    """Gives a birth to the outermost known operator around it.

    In-place operators never give birth in the trace: what dies inside them is their scratch.
    """
    for index, node in enumerate(born):
        if _only_wraps(node, born[index + 1 :]):
            continue
        name = ALIASES.get(node.name, node.name)
        scratch = any(node is other for other in died)
        if name in known or (scratch and name.removesuffix("_") in known | ALWAYS_KNOWN):
            path = tuple(inner.name for inner in born[index + 1 :])
            return Event(name, num_bytes, path=path, scratch=scratch)
    return Event("", num_bytes, path=tuple(node.name for node in born))


def profiler_events(tree: Any, known: frozenset[str]) -> list[Event]:
    """Births and deaths as the CPU allocator reported them; what lived before is left out."""
    return [event for _, event in timed_events(tree, known)]


def timed_events(tree: Any, known: frozenset[str]) -> list[tuple[int, Event]]:
    """The same with their times in nanoseconds."""
    nodes = sorted(_allocations(tree), key=lambda node: node.start_time_ns)
    born_at: dict[int, int] = {}
    death_of: dict[int, int] = {}
    for index, node in enumerate(nodes):
        found = node.typed[1]
        if found.alloc_size > 0:
            born_at[found.ptr] = index
        elif found.ptr in born_at:
            death_of[born_at.pop(found.ptr)] = index
    events: list[Event | None] = [None] * len(nodes)
    for index, node in enumerate(nodes):
        if node.typed[1].alloc_size <= 0:
            continue
        death = death_of.get(index)
        died = [] if death is None else _chain(nodes[death])
        birth = _birth(node.typed[1].alloc_size, _chain(node), died, known)
        events[index] = birth
        if death is not None:
            events[death] = Event(birth.op, birth.num_bytes, birth)
    told = zip(nodes, events, strict=True)
    return [(node.start_time_ns, event) for node, event in told if event is not None]


def without_exempted(events: Sequence[Event]) -> tuple[list[Event], collections.Counter[str]]:
    """The events that count, and how often each rule was used."""
    used: collections.Counter[str] = collections.Counter()
    kept = []
    for event in events:
        rule = exemption_of(event.born or event)
        if rule is None:
            kept.append(event)
        elif event.born is None:
            used[rule] += 1
    return kept, used


def without_scalars(events: Sequence[Event]) -> list[Event]:
    """The trace's side of the one exemption that is not scratch."""
    return [event for event in events if event.num_bytes > SCALAR_BYTES]


def live_bytes(events: Iterable[Event]) -> tuple[int, int]:
    """Peak and end."""
    peak = live = 0
    for event in events:
        live += event.num_bytes if event.born is None else -event.num_bytes
        peak = max(peak, live)
    return peak, live


def births_by_operator(events: Iterable[Event]) -> dict[str, collections.Counter[int]]:
    """The multiset of sizes of each operator."""
    found: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for event in events:
        if event.born is None:
            found[event.op][event.num_bytes] += 1
    return found


def in_order(events: Sequence[Event]) -> list[Event]:
    """Births of one operator that follow each other without a death, sorted by size.

    In which order one kernel makes its outputs is its own business.
    """
    ordered: list[Event] = []
    for key, run in itertools.groupby(events, key=lambda e: (e.born is None, e.op)):
        is_birth, found = key[0], list(run)
        ordered += sorted(found, key=lambda e: e.num_bytes) if is_birth else found
    return ordered


def signature(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """The whole sequence: births as (operator, bytes), the deaths between two births as a set."""
    ordered = in_order(events)
    births = [event for event in ordered if event.born is None]
    number = {id(event): index for index, event in enumerate(births)}
    lines: list[tuple[Any, ...]] = []
    for is_birth, run in itertools.groupby(ordered, key=lambda e: e.born is None):
        if is_birth:
            lines += [("born", number[id(e)], e.op, e.num_bytes) for e in run]
        else:
            dead = sorted((number[id(e.born)], e.op, e.num_bytes) for e in run)
            lines.append(("dead", *dead))
    return lines


@dataclass(slots=True)
class Verdict:
    """Everything in which the two sides differ; all empty when they agree."""

    peaks: list[str]
    operators: list[str]
    births: list[str]
    deaths: list[str]
    used: collections.Counter[str]

    def __str__(self) -> str:
        parts = {
            "peak and end": self.peaks,
            "per operator": self.operators,
            "order of births": self.births,
            "order of deaths": self.deaths,
        }
        return "\n".join(f"{name}: {line}" for name, lines in parts.items() for line in lines)


def compare(trace: RawTrace, tree: Any, *, folds: bool = True) -> Verdict:
    """Referees one trace against the profiler's tree of the same step.

    Without `folds` a batch of products and one product are the same: over a frozen weight
    `should_fold` of ATen/native/LinearAlgebra.cpp looks at the strides of the input, and those of a
    dimension of one token are not the same in attention's meta kernel and its CPU kernel.
    """
    ours = without_scalars(trace_events(trace))
    theirs, used = without_exempted(profiler_events(tree, known_operators(trace_events(trace))))
    for event in () if folds else (*ours, *theirs):
        event.op = {"aten::bmm": "aten::mm"}.get(event.op, event.op)
    peaks = []
    if live_bytes(ours) != live_bytes(theirs):
        peaks.append(f"trace {live_bytes(ours)}, profiler {live_bytes(theirs)}")
    a, b = signature(ours), signature(theirs)
    births_a, births_b = ([x[2:] for x in s if x[0] == "born"] for s in (a, b))
    births = _first_difference(births_a, births_b)
    deaths = [] if births else _first_difference(a, b)
    return Verdict(peaks, _operator_differences(ours, theirs), births, deaths, used)


def known_operators(events: Iterable[Event]) -> frozenset[str]:
    """Operators that the dispatch mode saw giving birth."""
    return frozenset(event.op for event in events)


def _operator_differences(ours: Sequence[Event], theirs: Sequence[Event]) -> list[str]:
    a, b = births_by_operator(ours), births_by_operator(theirs)
    lines = []
    for op in sorted(a.keys() | b.keys()):
        if a[op] != b[op]:
            lines.append(
                f"{op or 'no operator'}: only trace {dict(a[op] - b[op])},"
                f" only profiler {dict(b[op] - a[op])}"
            )
    return lines


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> list[str]:
    for index, (x, y) in enumerate(itertools.zip_longest(a, b)):
        if x != y:
            before = a[max(0, index - 3) : index]
            return [f"at {index} of {len(a)}: trace {x}, profiler {y}; before: {before}"]
    return []
