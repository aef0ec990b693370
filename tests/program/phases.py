"""Live bytes at the end of each phase and the peak within it: a Program's beside a real run's.

The real run is watched through torch.profiler's allocator events, as in `tests/trace/referee.py`,
and says where its phases begin with `mark`. Tensors of at most 8 bytes and the named exemptions of
`tests/trace/exemptions.py` count on neither side, nor does the batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from tests.trace.exemptions import SCALAR_BYTES, exemption_of
from tests.trace.referee import _birth, _chain, profile_once, trace_events, traced
from tests.trace.tiny import CONFIGS, SIZES, Case
from torch._C._profiler import _EventType
from torch.profiler import record_function

from rigsize.program.build import Program, build_program
from rigsize.program.environment import Environment
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy
from rigsize.trace.domains import exact_label
from rigsize.trace.profile import Profile, TraceKey
from rigsize.trace.session import Session

MARK = "rigsize phase "
FLATTEN = "aten::flatten_dense_tensors"
ON_CPU = Environment(device="cpu", compute_capability=(0, 0), sm_count=1, max_threads_per_sm=1)


class Phase(NamedTuple):
    """What was alive in one phase."""

    name: str
    end_bytes: int
    peak_bytes: int


def mark(phase: str) -> None:
    """Names what the real run does from here on."""
    with record_function(MARK + phase):
        pass


def real_phases(case: Case, run: Callable[[], None], *, sends: bool = False) -> list[Phase]:
    """The phases of a real run on the CPU, in order.

    What a real collective `sends` may die on gloo's own thread, which the profiler does not watch:
    a flat copy without a death ends where the next thing happens that is none.
    """
    known = frozenset(event.op for event in trace_events(traced(case)))
    gc.collect()
    gc.disable()
    try:
        tree = profile_once(run)
    finally:
        gc.enable()
    phases: list[Phase] = []
    live = peak = 0
    name = ""
    for change in _changes(tree, known, sends):
        if isinstance(change, int):
            live += change
            peak = max(peak, live)
            continue
        if name:
            phases.append(Phase(name, live, peak))
        name, peak = change, live
    return phases


def _walk(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        yield from _walk(node.children)


def _changes(tree: Any, known: frozenset[str], sends: bool) -> Iterator[int | str]:
    """Bytes born (or died, negative) and the names of phases, in the order of time."""
    nodes = sorted(_walk(tree), key=lambda node: node.start_time_ns)
    nodes = [n for n in nodes if n.typed[0] == _EventType.Allocation or n.name.startswith(MARK)]
    died_at = _deaths(nodes)
    left_out: set[int] = set()
    elsewhere = 0
    for index, node in enumerate(nodes):
        is_flat = sends and any(n.name == FLATTEN for n in _chain(node))
        if elsewhere and not is_flat:
            yield -elsewhere
            elsewhere = 0
        if node.typed[0] != _EventType.Allocation:
            yield node.name.removeprefix(MARK)
            continue
        found = node.typed[1]
        if found.alloc_size > 0:
            death = died_at.get(index)
            died = [] if death is None else _chain(nodes[death])
            birth = _birth(found.alloc_size, _chain(node), died, known)
            if exemption_of(birth) is None and found.alloc_size > SCALAR_BYTES:
                yield found.alloc_size
                elsewhere += found.alloc_size if is_flat and death is None else 0
            elif death is not None:
                left_out.add(death)
        elif index not in left_out:
            yield found.alloc_size


def _deaths(nodes: list[Any]) -> dict[int, int]:
    """Index of a birth to that of its death."""
    born: dict[int, int] = {}
    deaths: dict[int, int] = {}
    for index, node in enumerate(nodes):
        if node.typed[0] == _EventType.Allocation:
            found = node.typed[1]
            if found.alloc_size > 0:
                born[found.ptr] = index
            elif found.ptr in born:
                deaths[born.pop(found.ptr)] = index
    return deaths


@cache
def profile_of(case: Case) -> Profile:
    """The case traced for the CPU, at its one size."""
    key = TraceKey(
        config_digest="0" * 16,
        task=case.task,
        use="training",
        compute=case.compute,
        attention=case.attention,
        padded=case.padded,
        recompute=case.recompute,
        device="cpu",
        num_labels=3,
        hold_output=case.hold_output,
        loss=case.loss,
        adapter=case.adapter.text() if case.adapter else "",
    )
    return Session(CONFIGS[case.family], key, 128).profile([exact_label(_point(case))])


def _point(case: Case) -> dict[str, int]:
    return {"B": SIZES["B"], "S": SIZES["S"], "T": SIZES["T"] if "t5" in case.family else 0}


def program_of(case: Case, strategy: Strategy, mesh: Mesh) -> Program:
    """The Program of a rank on CPUs."""
    return build_program(profile_of(case), _point(case), strategy, ON_CPU, mesh)


def program_phases(program: Program, steps: int = 3) -> list[Phase]:
    """The phases of a Program, in order; `load` is everything before the first step.

    What a wrapper does before the second step belongs to that step's first forward pass.
    """
    timeline = program.timeline
    sizes = [
        0 if size <= SCALAR_BYTES or place.category == "inputs" else size
        for size, place in zip(timeline.sizes, timeline.places, strict=True)
    ]
    phases: list[Phase] = []
    live = carried = 0
    for name in ["load", *(name for n in range(steps) for name in program.step(n))]:
        operations = program.slices[name]
        starts = program.phase_starts.get(name) or [(0, name)]
        ends = [index for index, _ in starts[1:]] + [len(operations)]
        for (start, phase), end in zip(starts, ends, strict=True):
            peak = max(live, carried)
            for operation in operations[start:end]:
                live += sizes[operation] if operation >= 0 else -sizes[~operation]
                peak = max(peak, live)
            carried = peak if name == "second" else 0
            if name != "second":
                phases.append(Phase(phase, live, peak))
    return phases
