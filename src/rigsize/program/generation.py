"""The Program of generation with a cache: load, prefill, then decoding steps at growing lengths.

Each step is the traced one, lowered at its own number of keys; what it leaves (cache, ids, scores)
is what the next one finds, storage by storage, so that old and new keys of a layer are alive
together just as long as `torch.cat` needs both. Mirrors `run.generation`, and with it
transformers' `generate`.

    load      weights, buffers, the prompt
    first     the first prefill ever, which also makes the cuBLAS workspace; `micro`, a later one
    decode.K  the step that attends to K keys
    end       everything but the weights dies with the call
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rigsize.errors import TraceFailed
from rigsize.program.build import Builder, Program
from rigsize.program.environment import Environment
from rigsize.program.lower import CARRY, FREE, WORKSPACE, Lowered, Lowering, Primitive, is_state
from rigsize.program.mesh import ALONE, Mesh
from rigsize.program.micro_step import MicroStep
from rigsize.program.tiling import Tiled
from rigsize.program.timeline import Place, Timeline
from rigsize.spec.strategy import Strategy
from rigsize.trace.profile import Body, Profile
from rigsize.trace.sizes import monomials_at

__all__ = ["build_generation", "key_lengths", "stretches"]

CACHES = ("state:cache.", "state:cross_cache.")
WHOLE_STEPS = 3
"""At either end of a stretch of decoding steps, those that are lowered and replayed whole."""
MOST_OPERATIONS = 100_000
"""Of all steps between them; a longer text is replayed at evenly spread steps."""
LARGE_BYTES = 2**20
"""Above this a storage has a pool of its own kind, apart from a step's many small ones."""


def key_lengths(point: Mapping[str, int], *, encodes: bool) -> range:
    """Keys of every decoding step up to the last, C: the first token comes from the prefill itself.

    A decoder's cache begins with the prompt, that of an encoder-decoder with its start token.
    """
    before = 1 if encodes else point["S"]
    return range(before + 1, point.get("C", before) + 1)


def stretches(lengths: range, limits: Sequence[int]) -> list[range]:
    """The steps in pieces that share one sequence of events: to the first window, past it."""
    cuts = [lengths.start, *(n + 1 for n in limits if n + 1 in lengths), lengths.stop]
    return [range(start, stop) for start, stop in itertools.pairwise(cuts) if stop > start]


def build_generation(
    profile: Profile,
    point: Mapping[str, int],
    strategy: Strategy,
    environment: Environment,
    mesh: Mesh = ALONE,
    *,
    vocabulary: int = 0,
) -> Program:
    """The Program of one call of `generate` at {B, S, C}; TraceFailed outside the proved domains.

    `profile` is the prefill's, with that of the steps behind it.
    """
    encodes = profile.key.task == "seq2seq-lm"
    builder = _Builder(profile, point, strategy, environment, mesh, vocabulary)
    return builder.generate(profile.decode, key_lengths(point, encodes=encodes))


@dataclass(slots=True)
class _Step:
    """One forward pass and what it leaves."""

    micro: MicroStep
    before: Mapping[str, int]
    """Storages by the name under which this pass finds them."""
    state: dict[str, int] = field(default_factory=dict)
    """The same for the next pass."""
    keys: int = 0
    layers: dict[int, int] = field(default_factory=dict)
    """Of an outline's storages, those that a layer makes."""
    num_storages: int = 0
    """Numbered from the pass's first; equal where two passes were lowered alike."""

    @property
    def operations(self) -> list[int]:
        """Allocations and frees."""
        return self.micro.operations


@dataclass(frozen=True, slots=True)
class Outline:
    """A decoding step without what is small and dies in it, at any number of keys.

    Every size is linear in the keys but for a kernel's rounding of a few bytes, so two lowered
    steps tell those between.
    """

    operations: tuple[tuple[int, str], ...]
    """(storage of the step, or -1, name of a state that is freed): see `step`."""
    sizes: dict[int, tuple[int, int]]
    """Bytes of a storage of the step at `first` and `last` keys."""
    state: dict[str, int | str]
    """What the next step finds: a storage of this one, or what this one found under a name."""
    places: dict[int, Place]
    layers: dict[int, int]
    """Which layer makes a storage of the step."""
    first: int
    last: int

    def step(self, timeline: Timeline, keys: int, before: Mapping[str, int]) -> _Step:
        """The step at a number of keys, on storages of its own."""
        made = _Step(MicroStep(timeline, len(timeline.sizes)), before)
        storages: dict[int, int] = {}
        for number, name in self.operations:
            if name:
                made.operations.append(~before[name])
            elif number >= 0:
                size = self._size(number, keys)
                storages[number] = timeline.storage(size, self.places[number])
                made.operations.append(storages[number])
            else:
                made.operations.append(~storages[~number])
        made.layers = {storages[number]: layer for number, layer in self.layers.items()}
        made.state = {
            name: before[found] if isinstance(found, str) else storages[found]
            for name, found in self.state.items()
        }
        return made

    def _size(self, number: int, keys: int) -> int:
        low, high = self.sizes[number]
        grown = (high - low) * (keys - self.first)
        return low + -(-grown // (self.last - self.first))


def outline_of(low: _Step, high: _Step, layer_of: Mapping[int, int]) -> Outline:
    """The outline between two steps of one stretch; operations are those of the later one."""
    timeline, base = high.micro.timeline, high.micro.base
    names = {storage: name for name, storage in high.before.items()}
    lasting = set(high.state.values())
    kept = {
        storage - base
        for storage in high.operations
        if storage >= base and (storage in lasting or timeline.sizes[storage] > LARGE_BYTES)
    }
    operations: list[tuple[int, str]] = []
    for operation in high.operations:
        storage = operation if operation >= 0 else ~operation
        if storage < base:
            operations.append((0, names[storage]))
        elif storage - base in kept:
            number = storage - base
            operations.append((number if operation >= 0 else ~number, ""))
    earlier = {s: low.state[name] for name, s in high.state.items() if name in low.state}
    if low.num_storages == high.num_storages:
        earlier |= {base + n: low.micro.base + n for n in kept}
    sizes = {
        n: (timeline.sizes[earlier.get(base + n, base + n)], timeline.sizes[base + n]) for n in kept
    }
    state: dict[str, int | str] = {
        name: storage - base if storage >= base else names[storage]
        for name, storage in high.state.items()
    }
    places = {n: timeline.places[base + n] for n in kept}
    layers = {n: layer_of[base + n] for n in kept if base + n in layer_of}
    return Outline(tuple(operations), sizes, state, places, layers, low.keys, high.keys)


class _Builder(Builder):
    """Adds passes that find and leave state to the build of one device."""

    def generate(self, decode: Profile | None, lengths: range) -> Program:
        """Load, prefill, and the decoding steps at some of these numbers of keys."""
        slices = {"load": self._load()}
        lowered = self._lowered(self.profile, self.body, self.values)
        first = self._pass(Tiled(self.profile, self.body, lowered), {})
        slices["first"] = first.micro.first(alone=True)
        slices["micro"] = first.micro.micro(alone=True)
        self.program = Program(
            timeline=self.timeline,
            slices=slices,
            parameters=self.parameters,
            training=False,
            accumulation=1,
            kernels=lowered.kernels,
            phase_starts={name: [(0, "prefill")] for name in ("first", "micro")},
            mesh=self.mesh,
            layer_of=self.layer_of,
        )
        self.program.assumptions = sorted(lowered.assumptions)
        self.state = first.state
        for stretch in stretches(lengths, decode.limits if decode else ()):
            assert decode is not None, "a decoding step has a profile"
            self._stretch(decode, stretch)
        slices["end"] = [~storage for storage in self.state.values()]
        return self.program

    def _stretch(self, decode: Profile, lengths: range) -> None:
        """The first and last steps whole, and those between without what is small and passing."""
        for keys in lengths[:WHOLE_STEPS]:
            low = self._decode(decode, keys)
        middle, last = lengths[WHOLE_STEPS:-WHOLE_STEPS], lengths[WHOLE_STEPS:][-WHOLE_STEPS:]
        if middle:
            # Lowered out of turn: only its sizes are read, it is in no slice.
            high = self._lowered_pass(decode, middle[-1], low.state)
            outline = outline_of(low, high, self.layer_of)
            every = self._spread(outline, middle)
            for keys in middle[::-1][::every][::-1]:
                step = outline.step(self.timeline, keys, self.state)
                self.layer_of.update(step.layers)
                self._append_step(keys, step)
        for keys in last:
            self._decode(decode, keys)

    def _spread(self, outline: Outline, middle: range) -> int:
        """One in how many of the steps between is replayed."""
        every = -(-len(middle) * len(outline.operations) // MOST_OPERATIONS)
        if every > 1:
            self.program.assumptions.append(
                f"one in {every} of {len(middle):,} decoding steps is replayed, as if the text grew"
                f" by {every} tokens at once"
            )
        return every

    def _decode(self, profile: Profile, keys: int) -> _Step:
        step = self._lowered_pass(profile, keys, self.state)
        self._append_step(keys, step)
        return step

    def _append_step(self, keys: int, step: _Step) -> None:
        name = f"decode.{keys}"
        self.program.slices[name] = step.operations
        self.program.phase_starts[name] = [(0, "decode")]
        self.program.decoding.append(name)
        self.state = step.state

    def _lowered_pass(self, profile: Profile, keys: int, before: Mapping[str, int]) -> _Step:
        point = {**self.point, "C": keys}
        body = profile.body_at(point)
        if body is None:
            problem = "its decoding steps differ from one length to the next"
            raise TraceFailed("max-new-tokens", keys, problem)
        lowered = self._lowered(profile, body, monomials_at(point))
        kernels = {f"{module} (decode)": why for module, why in lowered.kernels.items()}
        self.program.kernels |= kernels
        more = lowered.assumptions.difference(self.program.assumptions)
        self.program.assumptions.extend(sorted(more))
        step = self._pass(Tiled(profile, body, lowered), before)
        step.keys = keys
        return step

    def _lowered(self, profile: Profile, body: Body, values: Mapping[str, int]) -> Lowered:
        half = self.strategy.policy.half_dtype
        environment, categories = self.environment, self.categories
        return Lowering(profile, body, values, environment, categories, half).run()

    def _pass(self, stream: Tiled, before: Mapping[str, int]) -> _Step:
        """One forward pass over a state; what is in neither the old nor the new one dies in it."""
        step = _Step(MicroStep(self.timeline, self._number(stream)), before)
        step.num_storages = len(stream.sizes)
        for segment in stream.segments():
            for primitive in segment.primitives:
                self._play(step, stream, primitive, segment.group, before)
        self._release(step, before)
        for name, storage in step.state.items():
            if name.startswith(CACHES):
                self.timeline.recategorise(storage, "cache")
        return step

    def _play(
        self,
        step: _Step,
        stream: Tiled,
        primitive: Primitive,
        group: int,
        before: Mapping[str, int],
    ) -> None:
        if primitive.kind == WORKSPACE:
            if not before:  # the handle of this thread has it since the prefill
                self._append(step.micro, stream, primitive, group)
            return
        if is_state(primitive.ref):
            storage = before.get(stream.name(str(primitive.ref[1]), group))
            if storage is None:
                return  # the caller's own ids, or what only a later pass has
        else:
            storage = step.micro.base + stream.resolve(primitive.ref, group)
        if primitive.kind == CARRY:
            step.state[stream.name(primitive.name, group)] = storage
        else:
            step.micro.operations.append(~storage if primitive.kind == FREE else storage)

    def _release(self, step: _Step, before: Mapping[str, int]) -> None:
        """What no later pass finds: the caller's loop lets go of it."""
        alive = dict.fromkeys(before.values())
        for operation in step.micro.operations:
            if operation >= 0:
                alive[operation] = None
            else:
                alive.pop(~operation, None)
        kept = set(step.state.values())
        step.micro.operations.extend(~storage for storage in alive if storage not in kept)
