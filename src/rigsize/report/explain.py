"""`--explain`: who holds the bytes at the peak, and how memory moves within a step.

Bytes are as the program requests them, before the allocator rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rigsize.estimate import Estimate
from rigsize.trace.sizes import Expression, evaluate, monomials_at
from rigsize.units import GIB, format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.trace.profile import Event, Profile

__all__ = [
    "Explanation",
    "Holder",
    "Sample",
    "Tensor",
    "explain",
    "explain_document",
    "explain_text",
]

WIDTH, HEIGHT = 60, 8
"""Columns and rows of the chart."""
_SHORT = {
    "forward": "fwd",
    "backward": "bwd",
    "optimizer": "opt",
    "prefill": "prefill",
    "decode": "decode",
}
"""Phases named under the chart; the others are a column wide."""
MOST_MODULES = 20
MOST_TENSORS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A module and what of it lives at the peak."""

    module: str
    """`*` stands for every layer's number."""
    category: str
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One storage alive at the peak."""

    num_bytes: int
    category: str
    module: str
    op: str
    size: str
    """How its bytes depend on the batch, `12,288·B·S`; empty where no trace says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Requested bytes alive, at one operation of the step."""

    phase: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything `--explain` shows."""

    holders: tuple[Holder, ...]
    tensors: tuple[Tensor, ...]
    phase_peaks: Mapping[str, int]
    """Allocated peak of each phase of the last step."""
    step: int
    """Which step `samples` show, from 1: the one of the peak, or the first steady one."""
    samples: tuple[Sample, ...]
    kernels: Mapping[str, str]
    point: Mapping[str, int]


def explain(estimate: Estimate, profile: Profile | None = None) -> Explanation:
    """The explanation; `profile` is what the estimate was made from and gives the expressions."""
    step = max(1, estimate.replay.peak.step) if estimate.replay.steps > 1 else 0
    return Explanation(
        holders=_holders(estimate),
        tensors=_tensors(estimate, profile),
        phase_peaks=estimate.replay.phase_peaks,
        step=step + 1,
        samples=_samples(estimate, step),
        kernels=estimate.program.kernels,
        point=estimate.point,
    )


# -- at the peak --------------------------------------------------------------------------------


def _holders(estimate: Estimate) -> tuple[Holder, ...]:
    timeline = estimate.program.timeline
    groups: dict[tuple[str, str], list[int]] = {}
    for storage in estimate.replay.live:
        place = timeline.places[storage]
        key = (_module(place.module, place.category), place.category)
        groups.setdefault(key, []).append(timeline.sizes[storage])
    found = [
        Holder(module=module, category=category, num_tensors=len(sizes), num_bytes=sum(sizes))
        for (module, category), sizes in groups.items()
    ]
    return tuple(sorted(found, key=lambda holder: -holder.num_bytes))


def _module(path: str, category: str) -> str:
    """A weight's path ends with its own name, which is no module."""
    return path.rpartition(".")[0] or path if category.startswith("weights.") else path


def _tensors(estimate: Estimate, profile: Profile | None) -> tuple[Tensor, ...]:
    timeline = estimate.program.timeline
    largest = sorted(estimate.replay.live, key=lambda s: -timeline.sizes[s])[:MOST_TENSORS]
    held = estimate.program.stepped or estimate.program.parameters
    shapes = {
        p.storage: (p.shape, p.itemsize) for p in held if p.storage >= 0 and not p.packed_bytes
    }
    sizes = _Expressions(profile, estimate.point)
    found = []
    for storage in largest:
        place, num_bytes = timeline.places[storage], timeline.sizes[storage]
        shape = shapes.get(storage)
        size = _shape(*shape) if shape else sizes.of(place.module, place.op, num_bytes)
        found.append(
            Tensor(
                num_bytes=num_bytes,
                category=place.category,
                module=place.module,
                op=place.op,
                size=size,
            )
        )
    return tuple(found)


def _shape(shape: tuple[int, ...], itemsize: int) -> str:
    return "·".join(f"{size:,}" for size in (*shape, itemsize))


class _Expressions:
    """Size expressions of the trace by module, operator and bytes."""

    def __init__(self, profile: Profile | None, point: Mapping[str, int]) -> None:
        profiles = [p for p in (profile, profile and profile.decode) if p is not None]
        bodies = [body for p in profiles if (body := p.body_at(point)) is not None]
        events = [e for body in bodies for t in body.templates for e in t]
        self.values = monomials_at(point)
        self.by_place: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            if event.size:
                self.by_place.setdefault((event.module, event.op), []).append(event)

    def of(self, module: str, op: str, num_bytes: int) -> str:
        for event in self.by_place.get((module, op), ()):
            if evaluate(event.size, self.values) == num_bytes:
                return show_expression(event.size)
        return ""


def show_expression(size: Expression) -> str:
    """`12,288·B·S + 768`; S8 is S rounded up to a multiple of 8."""
    terms = []
    for coefficient, monomial in size:
        letters = "·".join(_factors(monomial))
        terms.append(f"{coefficient:,}·{letters}" if letters else f"{coefficient:,}")
    return " + ".join(terms)


def _factors(monomial: str) -> Iterator[str]:
    for part in monomial.split("."):
        if part != "1":
            # S8, S128 and M/8 are one length, BS is two.
            yield from [part] if part[-1].isdigit() else part


# -- over the step ------------------------------------------------------------------------------


def _samples(estimate: Estimate, step: int) -> tuple[Sample, ...]:
    """Bytes alive after every operation of a step."""
    program = estimate.program
    sizes = program.timeline.sizes
    alive: dict[int, None] = {}
    for name in ["load", *(n for number in range(step) for n in program.step(number))]:
        for operation in program.slices[name]:
            if operation >= 0:
                alive[operation] = None
            else:
                alive.pop(~operation, None)
    total = sum(sizes[storage] for storage in alive)
    found: list[Sample] = []
    for name in program.step(step):
        starts = dict(program.phase_starts.get(name) or [(0, name)])
        phase = name
        for index, operation in enumerate(program.slices[name]):
            phase = starts.get(index, phase)
            total += sizes[operation] if operation >= 0 else -sizes[~operation]
            found.append(Sample(phase=phase, num_bytes=total))
    return tuple(found)


def chart(samples: Sequence[Sample], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Rows of text: the highest bytes of each column as a bar, the peak's column marked."""
    if not samples:
        return []
    columns = [
        max(s.num_bytes for s in samples[start:end]) for start, end in _cuts(len(samples), width)
    ]
    top = max(columns)
    low = min(columns)
    floor = 0 if low < top / 2 else int(2 * low - top)  # else nothing would be seen to move
    span = max(1, top - floor)
    peak = columns.index(top)
    lines = []
    for row in range(height, 0, -1):
        bar = "".join("#" if (c - floor) * height > (row - 0.5) * span else " " for c in columns)
        label = floor + span * row // height
        lines.append(f"{label / GIB:9.2f} |{bar.rstrip()}")
    lines.append(f"{floor / GIB:9.2f} +{'-' * len(columns)}")
    lines.append(" " * 11 + " " * peak + "^ peak")
    return [*lines, " " * 11 + _phase_axis(samples, len(columns))]


def _cuts(length: int, width: int) -> list[tuple[int, int]]:
    width = min(width, length)
    edges = [length * column // width for column in range(width + 1)]
    return list(itertools.pairwise(edges))


def _phase_axis(samples: Sequence[Sample], width: int) -> str:
    """Each phase's name where it begins, left out where the one before it is in the way."""
    axis = ""
    for index, sample in enumerate(samples):
        if index and samples[index - 1].phase == sample.phase:
            continue
        column, name = index * width // len(samples), _SHORT.get(sample.phase, "")
        if name and column >= len(axis):
            axis = axis.ljust(column) + "|" + name
    return axis


# -- reports ------------------------------------------------------------------------------------


def explain_text(found: Explanation) -> Iterator[RenderableType]:
    """For people."""
    from rigsize.report.console import table

    made = table(
        "Alive at the peak, by module (bytes as requested)",
        *("module", "holds", "tensors", "bytes"),
        right=("tensors", "bytes"),
    )
    for holder in found.holders[:MOST_MODULES]:
        name = holder.module or "(the step itself)"
        made.add_row(
            name, holder.category, f"{holder.num_tensors:,}", format_bytes(holder.num_bytes)
        )
    rest = found.holders[MOST_MODULES:]
    if rest:
        count = f"{sum(holder.num_tensors for holder in rest):,}"
        made.add_row(f"{len(rest)} more", "", count, format_bytes(sum(h.num_bytes for h in rest)))
    yield made
    yield _tensor_table(found)
    yield _over_the_step(found)
    yield _kernels(found)


def _tensor_table(found: Explanation) -> RenderableType:
    from rigsize.report.console import table

    legend = ", ".join(f"{name} = {value:,}" for name, value in found.point.items() if value)
    made = table(
        f"The largest tensors at the peak; size in bytes with {legend}",
        *("bytes", "holds", "module", "operator", "size"),
        right=("bytes",),
    )
    for tensor in found.tensors:
        op = tensor.op or "parameter"
        made.add_row(
            format_bytes(tensor.num_bytes), tensor.category, tensor.module, op, tensor.size
        )
    return made


def _over_the_step(found: Explanation) -> RenderableType:
    from rich.text import Text

    lines = [f"GiB alive over step {found.step} (as requested), operation by operation", ""]
    lines += [*chart(found.samples), "", "Allocated peak by phase"]
    for phase, num_bytes in found.phase_peaks.items():
        lines.append(f"  {phase.replace('_', ' '):16} {format_bytes(num_bytes):>12}")
    return Text("\n".join([*lines, ""]), no_wrap=True, overflow="ignore")


def _kernels(found: Explanation) -> str:
    if not found.kernels:
        return "Attention kernels: none is chosen here"
    lines = [f"  {kernel}: {_every(modules)}" for kernel, modules in _by_kernel(found).items()]
    return "\n".join(["Attention kernels, and why", *lines])


def _by_kernel(found: Explanation) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for module, kernel in found.kernels.items():
        groups.setdefault(kernel, []).append(module)
    return groups


def _every(modules: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(modules) - shown} more" if len(modules) > shown else ""
    return ", ".join(modules[:shown]) + more


def explain_document(found: Explanation) -> dict[str, Any]:
    """For programs; the curve as the chart's columns have it."""
    curve = [
        {
            "phase": found.samples[start].phase,
            "bytes": max(s.num_bytes for s in found.samples[start:end]),
        }
        for start, end in (_cuts(len(found.samples), WIDTH) if found.samples else [])
    ]
    return {
        "modules": [_renamed(asdict(holder)) for holder in found.holders],
        "largest": [_renamed(asdict(tensor)) for tensor in found.tensors],
        "phase_peaks_bytes": dict(found.phase_peaks),
        "step": found.step,
        "alive_over_step": curve,
        "attention_kernels": dict(found.kernels),
        "sizes_at": dict(found.point),
    }


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    return {("bytes" if key == "num_bytes" else key): value for key, value in document.items()}
