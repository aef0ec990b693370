"""A lowered body tiled to full depth: every layer's storages numbered, its segments in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rigsize.program.lower import Lowered, Primitive
from rigsize.program.timeline import Place
from rigsize.trace.passages import full_passage, passage_at
from rigsize.trace.profile import Body, Profile


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the step that belongs to one layer, or to none."""

    phase: str
    group: int
    """0, or the full layer's number (from 1)."""
    primitives: list[Primitive]
    span: tuple[int, int] | None
    """Of a layer: which of them are its own code (`Lowered.spans`)."""


class Tiled:
    """The lowered templates tiled to full depth: storages numbered, segments in order."""

    def __init__(self, profile: Profile, body: Body, lowered: Lowered) -> None:
        self.profile, self.body, self.lowered = profile, body, lowered
        self.layers = profile.full_layers()
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        start = 1
        for stack in profile.representative:
            self.firsts.append(start)
            start += len(stack)
            self.lasts.append(start - 1)
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.places: list[Place] = []
        for traced in [0, *(layer[2] for layer in self.layers)]:
            self.offsets.append(len(self.sizes))
            self.sizes.extend(lowered.groups[traced].sizes)
            self.places.extend(lowered.groups[traced].places)

    def name(self, pattern: str, group: int) -> str:
        """A parameter's full name from its pattern in a layer."""
        return pattern.replace("*", str(self.layers[group - 1][1]), 1) if group else pattern

    def resolve(self, ref: tuple[object, ...], group: int) -> int:
        """The storage number of a reference from `group`."""
        kind, ordinal = ref[0], ref[-1]
        assert isinstance(ordinal, int)
        if kind == "own":
            return self.offsets[group] + ordinal
        if kind == "global":
            return self.offsets[0] + ordinal
        if kind == "near":
            assert isinstance(ref[1], int)
            return self.offsets[group + ref[1]] + ordinal
        _, stack, end, offset, _ = ref
        assert isinstance(stack, int)
        assert isinstance(offset, int)
        owner = (self.lasts if end else self.firsts)[stack] + offset
        return self.offsets[owner] + ordinal

    def segments(self) -> Iterator[Segment]:
        """What runs, in order."""
        templates, spans = self.lowered.templates, self.lowered.spans
        for phase, layer, traced, number in tile(self.profile, self.body):
            key = (number, traced)
            yield Segment(phase, layer, templates[key], spans.get(key) if layer else None)


def tile(profile: Profile, body: Body) -> Iterator[tuple[str, int, int, int]]:
    """(phase, full layer, traced layer, template) of what runs at full depth, in order."""
    traced_layers, full_layers = profile.traced_layers(), profile.full_layers()
    stack_of = {g: k for k, groups in enumerate(traced_layers) for g in groups}
    full, start = [], 1
    for stack in profile.representative:
        full.append(range(start, start + len(stack)))
        start += len(stack)
    schedule, index = body.schedule, 0
    while index < len(schedule):
        phase, group, number = schedule[index]
        if group == 0:
            yield phase, 0, 0, number
            index += 1
            continue
        k = stack_of[group]
        groups = passage_at(schedule, index, traced_layers[k])
        assert groups is not None, "fold has checked the order"
        numbers = {g: n for _, g, n in schedule[index : index + len(groups)]}
        for layer in full_passage(groups, traced_layers[k], full[k]):
            traced = full_layers[layer - 1][2]
            yield phase, layer, traced, numbers[traced]
        index += len(groups)
