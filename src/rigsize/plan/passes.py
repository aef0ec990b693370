"""What a forward and a backward pass have alive at most, counted in the trace itself.

A bound from below of what a Program would hold: the traced storages, each rounded as the allocator
rounds, followed from birth to death through all layers. What kernels take beside their outputs,
and what segments leave unused, comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rigsize.program.lower import HALF_BYTES, SAVES
from rigsize.program.tiling import tile
from rigsize.program.timeline import Parameter
from rigsize.trace.profile import Body, Event, Profile, Ref
from rigsize.trace.sizes import Expression, evaluate, monomials_at

__all__ = ["Passes", "Spread", "sent_bytes"]

_BLOCK_BYTES = 512
"""The allocator rounds up to it."""
_FLOAT = "float32"


class Spread(NamedTuple):
    """How the ranks of a way share what a pass makes."""

    kept_share: float
    """Of a parameter's gradient, what stays on the card once it is complete."""
    gathers: bool = False
    """FSDP: a layer's weights are whole around its own code, the root's all through; a layer's
    gradients wait for its end, where they are copied to be reduced."""
    reduced_ratio: int = 1
    """Bytes of a gradient while it is reduced over those that it is made in."""
    bucket_bytes: int = 0
    """Made for the first gradient of a pass, for as long as it goes on."""


class _Op(NamedTuple):
    slot: int
    """Of the sizes."""
    change: int
    """1 is born, -1 dies, 0 is a gradient now."""
    owned: bool
    """Within the layer's own code."""


class _Run(NamedTuple):
    """A template that runs several times in a row, in one layer after the other."""

    backward: bool
    in_layer: bool
    gathered_bytes: int
    """Of the weights of each of the layers."""
    template: int
    times: int


class _Entry(NamedTuple):
    """A template at a size: bytes that it adds, and its highest points from its start."""

    added: int
    gradients: int
    """Of what it adds."""
    owned_peak: int
    """In the layer's own code, gradients whole."""
    peaks: tuple[tuple[int, int], ...]
    """(alive, gradients among it) of its high points: one is highest for any share kept."""


@dataclass(frozen=True, slots=True)
class _Attention:
    """A tensor that the fused operator makes: a product of its sizes."""

    factors: tuple[Expression, ...]
    half: bool


_Size = Expression | _Attention


class Passes:
    """The pass of one body; its peaks at any size that the body is proved for."""

    def __init__(self, profile: Profile, body: Body, parameters: Iterable[Parameter]) -> None:
        self._sizes: dict[_Size, int] = {}
        """Slots by what they are the size of."""
        self._entries: dict[tuple[tuple[str, int], ...], list[_Entry]] = {}
        born = _born(profile, body)
        layers = profile.traced_layers()
        paths = tuple(f"{path}.*" for path in profile.stack_paths)
        self._templates: list[list[_Op]] = []
        self._gathered = _layer_bytes(parameters)
        numbers: dict[tuple[int, int], int] = {}
        self._order: list[_Run] = []
        for phase, layer, traced, number in tile(profile, body):
            known = numbers.get((number, traced))
            if known is None:
                known = numbers[number, traced] = len(self._templates)
                events = body.templates[number]
                self._templates.append(list(self._ops(events, traced, born, layers, paths)))
            gathered = self._gathered.get(layer, 0) if layer else 0
            run = _Run(phase == "backward", layer > 0, gathered, known, 1)
            if self._order and self._order[-1][:4] == run[:4]:
                run = run._replace(times=self._order.pop().times + 1)
            self._order.append(run)

    def _ops(
        self,
        events: tuple[Event, ...],
        group: int,
        born: Mapping[tuple[int, int], _Size],
        layers: list[list[int]],
        paths: tuple[str, ...],
    ) -> Iterator[_Op]:
        for event in events:
            owned = bool(group) and event.module.startswith(paths)
            if event.kind in _BEARS:
                for ref in _borne(event):
                    size = None if ref is None else born.get(_storage(ref, group, layers))
                    if size is not None:
                        yield _Op(self._slot(size), 1, owned)
            elif event.kind in ("free", "gradient") and event.ref is not None:
                size = born.get(_storage(event.ref, group, layers))
                if size is not None:
                    change = -1 if event.kind == "free" else 0
                    yield _Op(self._slot(size), change, owned or event.kind == "gradient")

    def _slot(self, size: _Size) -> int:
        return self._sizes.setdefault(size, len(self._sizes))

    def peak_bytes(self, point: Mapping[str, int], spread: Spread) -> int:
        """The most that is alive at once of what the pass itself makes, with FSDP's own."""
        key = tuple(point.items())
        entries = self._entries.get(key)
        if entries is None:
            entries = self._entries[key] = self._at(point)
        let_go = 1.0 - spread.kept_share
        if spread.gathers:
            return int(self._gathering(entries, let_go, spread.reduced_ratio))
        alive = gradients = 0
        peak = 0.0
        for run in self._order:
            entry = entries[run.template]
            last = run.times - 1
            for before in (0, last) if last else (0,):  # what adds up evenly is highest at an end
                beside = alive + before * entry.added
                earlier = gradients + before * entry.gradients
                beside += spread.bucket_bytes * (earlier > 0)
                for high, among in entry.peaks:
                    peak = max(peak, beside + high - let_go * (earlier + among))
            alive += run.times * entry.added
            gradients += run.times * entry.gradients
        return int(peak)

    def _gathering(self, entries: list[_Entry], let_go: float, ratio: int) -> float:
        """The root's gradients are whole until the end, a layer's to the end of its own code."""
        root = self._gathered.get(0, 0)
        alive, reduced, of_root = 0, 0, 0
        peak = 0.0
        for run in self._order:
            entry = entries[run.template]
            layers = run.backward and run.in_layer
            high = max((high for high, _ in entry.peaks), default=0)
            if run.in_layer and entry.owned_peak:
                high = max(high, entry.owned_peak + run.gathered_bytes)
            if layers:
                high = max(high, entry.added + entry.gradients * ratio)
            last = run.times - 1
            for before in (0, last) if last else (0,):
                earlier = reduced + before * entry.gradients * layers
                peak = max(peak, root + alive + before * entry.added - let_go * earlier + high)
            alive += run.times * entry.added
            if layers:
                reduced += run.times * entry.gradients
            else:
                of_root += run.times * entry.gradients
        return max(peak, alive - let_go * reduced + of_root * ratio)

    def _at(self, point: Mapping[str, int]) -> list[_Entry]:
        values = monomials_at(point)
        sizes = [-(-_bytes(size, values) // _BLOCK_BYTES) * _BLOCK_BYTES for size in self._sizes]
        return [_entry(ops, sizes) for ops in self._templates]


_BEARS = ("alloc", "attention", "attention_backward")


def _entry(ops: list[_Op], sizes: list[int]) -> _Entry:
    alive = gradients = owned_peak = 0
    highest = (0, 0)
    least_gradients = (0, 0)
    for slot, change, owned in ops:
        if change == 0:
            gradients += sizes[slot]
            continue
        alive += change * sizes[slot]
        if change < 0:
            continue
        if owned and alive > owned_peak:
            owned_peak = alive
        if alive > highest[0]:
            highest = alive, gradients
        if alive - gradients > least_gradients[0] - least_gradients[1]:
            least_gradients = alive, gradients
    return _Entry(alive, gradients, owned_peak, (highest, least_gradients))


def _bytes(size: _Size, values: Mapping[str, int]) -> int:
    if not isinstance(size, _Attention):
        return evaluate(size, values)
    product = HALF_BYTES if size.half else 2 * HALF_BYTES
    for factor in size.factors:
        product *= evaluate(factor, values)
    return product


def _born(profile: Profile, body: Body) -> dict[tuple[int, int], _Size]:
    """By (traced group, ordinal): the size of a storage."""
    layers = profile.traced_layers()
    found: dict[tuple[int, int], _Size] = {}
    calls: dict[tuple[int, int], Event] = {}
    for _, group, number in body.schedule:
        for event in body.templates[number]:
            if event.kind not in _BEARS or event.ref is None:
                continue
            storage = _storage(event.ref, group, layers)
            if event.kind == "alloc":
                found[storage] = event.size
                continue
            if event.kind == "attention":
                calls[storage] = event
            for ref, factors in zip(
                _borne(event), _factors(event.kind, calls[storage]), strict=False
            ):
                if ref is not None:
                    half = calls[storage].label[0] != _FLOAT
                    found[_storage(ref, group, layers)] = _Attention(factors, half)
    return found


def _borne(event: Event) -> tuple[Ref | None, ...]:
    """What an event bears: its own storage, or the gradients of attention's inputs."""
    return event.outputs[:3] if event.kind == "attention_backward" else (event.ref,)


def _factors(kind: str, call: Event) -> tuple[tuple[Expression, ...], ...]:
    """Of attention's output, or of the gradients of q, k and v."""
    batch, heads, queries, width, kv_heads, keys, value_width, *mask = call.numbers
    queried: tuple[Expression, ...] = (batch, queries)
    read: tuple[Expression, ...] = (batch, keys)
    if len(mask) > _MASK_SIZES:  # texts one after another
        queried = read = (mask[_MASK_SIZES],)
    if kind == "attention":
        return ((*queried, heads, value_width),)
    return (
        (*queried, heads, width),
        (*read, kv_heads, width),
        (*read, kv_heads, value_width),
    )


_MASK_SIZES = 4


def _layer_bytes(parameters: Iterable[Parameter]) -> dict[int, int]:
    """Weights of each layer, and of the root as 0, in the dtype that computes."""
    found: dict[int, int] = {}
    for parameter in parameters:
        found[parameter.layer] = found.get(parameter.layer, 0) + parameter.num_bytes
    return found


def _storage(ref: Ref, group: int, layers: list[list[int]]) -> tuple[int, int]:
    """(traced group that bore it, its ordinal there) of a reference from `group`."""
    kind, ordinal = ref[0], ref[-1]
    if kind == "own":
        return group, ordinal
    if kind == "near":
        return group + ref[1], ordinal
    if kind == "end":
        _, stack, end, offset, _ = ref
        return (layers[stack][-1] if end else layers[stack][0]) + offset, ordinal
    return (0 if kind == "global" else -1), ordinal


def sent_bytes(profile: Profile, point: Mapping[str, int]) -> int:
    """What `offload=activations` copies to the host in a micro-step at least.

    The copies that were traced; those of fused attention's own outputs come on top.
    """
    body = profile.body_at(point)
    if body is None:
        return 0
    values = monomials_at(point)
    by_group: dict[int, int] = {}
    for phase, group, number in body.schedule:
        if phase == "forward":
            events = (e for e in body.templates[number] if e.label and e.label[0] in SAVES)
            sent = sum(evaluate(event.numbers[0], values) for event in events)
            by_group[group] = by_group.get(group, 0) + sent
    layers = (traced for *_, traced in profile.full_layers())
    return sum(by_group.get(group, 0) for group in (0, *layers))
