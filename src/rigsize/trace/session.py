"""From a config to a Profile: choose the depth, trace, fold, prove each domain."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rigsize.errors import TraceFailed
from rigsize.spec.adapter import Adapter
from rigsize.spec.quantization import read_text
from rigsize.spec.recompute import recompute_period
from rigsize.trace.capture import Traced, named_parameters, resident_buffers
from rigsize.trace.depth import Depth, reduce_depth
from rigsize.trace.domains import decode_labels, label, sample_points, thresholds
from rigsize.trace.fold import LengthDependent, NotFolded, fold, mismatch
from rigsize.trace.fold_work import fold_work, work_mismatch
from rigsize.trace.model import BuildOptions, load_config, make_batch, named_tensors
from rigsize.trace.profile import Body, Profile, Tensor, TraceKey
from rigsize.trace.quantized import named_statistics, packed, shape_of
from rigsize.trace.recorder import RawTrace
from rigsize.trace.sizes import fit, monomials_at

FIT_POINTS = 5
FIT_POINTS_ONE_VARIABLE = 4
"""Where only the length varies: batch 1 without target tokens or selected rows."""
PROOFS = 1
"""Fresh traces that a body fitted in one domain must foretell, event by event, to hold in another.
`validation/check_profiles.py` adds three in every domain."""
FIRST_RADIUS = {"prefix": 0, "adalora": 2}
"""A prefix's cache for all layers is one tensor, made outside of them: of full depth alone.
The loss that AdaLoRA adds holds what it sums until the next layer but one is done."""
MOST_FULL_LAYERS = 64
"""A model whose layers cannot be tiled is traced whole up to this depth."""


class LengthMatters(TraceFailed):
    """No domain holds more than one size: a loop over positions, as in Mamba's reference code."""


class Session:
    """Traces one key of one config; models are built once per depth."""

    def __init__(
        self, values: Mapping[str, Any], key: TraceKey, max_positions: int | None = None
    ) -> None:
        warnings.filterwarnings("ignore", module="transformers")
        self.values, self.key = values, key
        self.max_positions = max_positions
        stored_as, half_dtype = read_text(key.quantization)
        self.options = BuildOptions(
            task=key.task,
            compute=key.compute,
            attention=key.attention,
            recompute=key.recompute,
            training=key.use == "training",
            num_labels=key.num_labels,
            loss=key.loss,
            unpadded=bool(key.unpadded),
            flash=key.unpadded != "grid",
            adapter=Adapter.parse(key.adapter),
            quantization=stored_as,
            half_dtype=half_dtype,
            generates=bool(key.cache),
        )
        self.full = load_config(values, self.options).to_dict()
        self.limits = thresholds(self.full, max_positions, cached=bool(key.cache))
        self._traced: tuple[Depth, Traced] | None = None
        self._work: Profile | str = "nothing was traced yet"
        """Of the domains of the last profile, or why there is none."""
        self._period = recompute_period(key.recompute) or 1
        adapter = self.options.adapter
        self._radius = FIRST_RADIUS.get(adapter.method, 1) if adapter else 1

    @classmethod
    def of(cls, profile: Profile, values: Mapping[str, Any], max_positions: int | None) -> Session:
        """A session at the depth at which a profile of `values` was traced."""
        session = cls(values, profile.key, max_positions)
        for radius in (1, 2, 0):
            depth = reduce_depth(values, session.full, radius, session._period)
            session._radius = radius
            if (depth.depths, depth.representative) == (
                profile.traced_depths,
                profile.representative,
            ):
                break
        return session

    def profile(self, labels: Iterable[str]) -> Profile:
        """The profile with every domain of `labels`; TraceFailed when none can be had."""
        return self._until_folded(labels, with_memory=True)

    def work(self, labels: Iterable[str]) -> Profile:
        """What a step computes in the same domains, as `trace.fold_work` tells it.

        Nothing is traced again where `profile` has just been asked for the same.
        """
        labels = list(labels)
        if isinstance(self._work, Profile) and set(labels) == set(self._work.domains):
            return self._work
        return self._until_folded(labels, with_memory=False)

    @property
    def work_so_far(self) -> Profile | None:
        """The work of the last profile's domains, where the same traces told it."""
        return self._work if isinstance(self._work, Profile) else None

    def _until_folded(self, labels: Iterable[str], *, with_memory: bool) -> Profile:
        wanted = [(name, points) for name in labels if (points := self._points(name))]
        if not wanted:
            raise TraceFailed("model", self.values.get("model_type"), "no size can be traced")
        # Unaligned lengths first: their sizes tell a padded length from a plain one, so that the
        # aligned domains can often be proved from the same body instead of being fitted again.
        wanted.sort(key=lambda item: ".sx." not in item[0])
        while True:
            try:
                if with_memory:
                    return self._profile(wanted)
                return self._work_alone(wanted)
            except LengthDependent as error:
                raise LengthMatters(
                    "model",
                    self.values.get("model_type"),
                    f"which operators run depends on the size of the batch ({error})",
                    hint="only the very size that is asked for can be traced",
                ) from error
            except NotFolded as error:
                self._widen(error)

    def _profile(self, wanted: list[tuple[str, list[dict[str, int]]]]) -> Profile:
        bodies, work = _Bodies(), _Bodies()
        failure = ""
        for name, points in wanted:
            traces: list[RawTrace] = []
            bodies.add(name, self._body(points, bodies.known, traces))
            try:
                if not failure:
                    work.add(name, self._work_body(points, work.known, traces))
            except NotFolded as error:  # memory is answered all the same
                failure = str(error)
        outline = self.outline(wanted[0][1])
        self._work = failure or work.of(outline)
        return bodies.of(outline)

    def _work_alone(self, wanted: list[tuple[str, list[dict[str, int]]]]) -> Profile:
        work = _Bodies()
        for name, points in wanted:
            work.add(name, self._work_body(points, work.known, []))
        return work.of(self.outline(wanted[0][1]))

    def outline(self, points: list[dict[str, int]]) -> Profile:
        """The profile without its events: parameters, buffers, the inputs of batches, layers."""
        depth, stacks = self._model()[0], self._stacks()
        return Profile(
            key=self.key,
            versions=versions(),
            representative=depth.representative if stacks else (),
            traced_depths=depth.depths if stacks else (),
            stack_paths=tuple(path for path, _ in stacks),
            tensors=self._tensors(points),
            bodies=(),
            domains={},
            limits=self.limits,
        )

    def differs(self, body: Body, point: Mapping[str, int]) -> str:
        """The first difference between a fresh trace and `body` at a size; empty if none."""
        whole = not self._model()[0].reduced
        return mismatch(body, self.record(point), point, self._stacks(), whole=whole)

    def record(self, point: Mapping[str, int], *, full_depth: bool = False) -> RawTrace:
        """One concrete trace; `full_depth` traces every layer (for proofs)."""
        traced = self._whole() if full_depth else self._model()[1]
        key = self.key
        if key.cache:
            return traced.record_generation(point, key.cache, padded=key.padded)
        return traced.record(
            point,
            padded=key.padded,
            hold_output=key.hold_output,
            saves_on_host=key.saves_on_host,
        )

    def domain_of(self, point: Mapping[str, int]) -> str:
        """The domain a size falls in."""
        return label(self.key.point(point), self.limits)

    def domains_of(self, point: Mapping[str, int]) -> list[str]:
        """The domains that a run of this size goes through."""
        if self.key.cache != "decode":
            return [self.domain_of(point)]
        return decode_labels(self.limits, ["b1" if point["B"] == 1 else "bN"])

    def _points(self, name: str) -> list[dict[str, int]]:
        varied = self.key.varied
        count = FIT_POINTS_ONE_VARIABLE if varied.count(name) == 1 else FIT_POINTS
        points = sample_points(name, self.limits, self.max_positions, varied, count=count)
        return [*points[1:], *points[:1]]  # three texts tell more than two: some sizes are 2

    def _model(self) -> tuple[Depth, Traced]:
        if self._traced is None:
            depth = reduce_depth(self.values, self.full, self._radius, self._period)
            config = load_config(depth.config, self.options)
            options = self.options
            if self._period > 1:
                options = replace(options, recomputed=depth.recomputed)
            traced = Traced(config, options, self.key.device)
            paths = _described(traced, depth)
            traced.stacks = [stack for stack in traced.stacks if stack[0] in paths]
            self._traced = depth, traced
        return self._traced

    def _whole(self) -> Traced:
        paths = [path for path, _ in self._stacks()]
        traced = Traced(load_config(self.values, self.options), self.options, self.key.device)
        traced.stacks = [stack for stack in traced.stacks if stack[0] in paths]
        return traced

    def _stacks(self) -> list[tuple[str, int]]:
        """(path, traced depth) of the module lists that are tiled; none if none can be."""
        return [(path, len(layers)) for path, layers in self._model()[1].stacks]

    def _body(
        self, points: list[dict[str, int]], known: list[Body], traces: list[RawTrace]
    ) -> Body:
        """A body that is known and proved here by PROOFS fresh traces, else a new one.

        `traces` gets what is traced for it, at the first of the points.
        """
        depth, stacks = self._model()[0], self._stacks()
        self._check_stacks()
        whole = not depth.reduced
        for point in points[:PROOFS]:
            if not known:
                break
            traces.append(self.record(point))
            known = [b for b in known if not mismatch(b, traces[-1], point, stacks, whole=whole)]
        if known:
            return known[0]
        traces += [self.record(point) for point in points[len(traces) :]]
        return fold(traces, points, stacks, self._contexts(), whole=whole)

    def _work_body(
        self, points: list[dict[str, int]], known: list[Body], traces: list[RawTrace]
    ) -> Body:
        """The same of what the step computes; `traces` holds what was traced here already."""
        self._check_stacks()
        if known and not traces:
            traces += [self.record(point) for point in points[:PROOFS]]
        for trace, point in zip(traces, points, strict=False):
            known = [body for body in known if not work_mismatch(body, trace, point)]
        if known:
            return known[0]
        traces += [self.record(point) for point in points[len(traces) :]]
        return fold_work(traces, points, self._stacks(), self._contexts())

    def _check_stacks(self) -> None:
        if self._model()[0].reduced and not self._stacks():
            raise NotFolded("the layers are in no list that the config's depth describes")

    def _contexts(self) -> list[int]:
        return [0, *self._model()[0].contexts] if self._stacks() else [0]

    def _widen(self, error: NotFolded) -> None:
        """A wider context, then the full depth; TraceFailed when that is refused too."""
        full = sum(len(stack) for stack in self._model()[0].representative)
        self._radius = {1: 2, 2: 0, 0: -1}[self._radius]
        self._traced = None
        if self._radius < 0:
            problem = f"its events cannot be expressed: {error}"
        elif self._radius == 0 and full > MOST_FULL_LAYERS:
            problem = f"its {full} layers are too many to trace whole, untileable: {error}"
        else:
            return
        raise TraceFailed("model", self.values.get("model_type"), problem) from error

    def _tensors(self, points: list[dict[str, int]]) -> tuple[Tensor, ...]:
        _, traced = self._model()
        stacks = self._stacks()
        tensors = [
            _tensor(name, parameter, stacks, trainable=parameter.requires_grad)
            for name, parameter in named_parameters(traced.model)
        ]
        tensors += [
            _tensor(f"scale:{name}", tensor, stacks, trainable=False)
            for name, tensor in named_statistics(traced.model)
        ]
        tensors += [
            _tensor(f"buffer:{name}", buffer, stacks, trainable=False)
            for name, buffer in resident_buffers(traced.model, traced.device)
        ]
        return (*tensors, *self._inputs(points))

    def _inputs(self, points: list[dict[str, int]]) -> list[Tensor]:
        if self.key.cache == "decode":
            return []  # what it reads, the pass before has left
        values = [monomials_at(p) for p in points]
        made = (make_batch(self.options, p, "meta", padded=self.key.padded) for p in points)
        batches = [named_tensors(batch) for batch in made]
        inputs = []
        for name in batches[0]:
            size = fit([b[name].numel() * b[name].itemsize for b in batches], values)
            inputs.append(Tensor(f"input:{name}", size, (), batches[0][name].itemsize, 0))
        return inputs


@dataclass(slots=True)
class _Bodies:
    """Bodies, each once, and the domains they were proved in."""

    known: list[Body] = field(default_factory=list)
    domains: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, body: Body) -> None:
        if body not in self.known:
            self.known.append(body)
        self.domains[name] = self.known.index(body)

    def of(self, outline: Profile) -> Profile:
        return replace(outline, bodies=tuple(self.known), domains=self.domains)


def _described(traced: Traced, depth: Depth) -> list[str]:
    """Paths of the module lists that the config's depths describe; none when they do not match."""
    expected = list(depth.depths)
    matching = [(path, len(layers)) for path, layers in traced.stacks if len(layers) in expected]
    chosen = matching[: len(expected)]
    return [path for path, _ in chosen] if [n for _, n in chosen] == expected else []


def _tensor(
    name: str, tensor: torch.Tensor, stacks: list[tuple[str, int]], *, trainable: bool
) -> Tensor:
    group, start = 0, 1
    for path, depth in stacks:
        match = re.match(rf"^(?:\w+:)?{re.escape(path)}\.(\d+)\.", name)
        if match:
            group = start + int(match.group(1))
            name = name.replace(f"{path}.{match.group(1)}.", f"{path}.*.", 1)
        start += depth
    held = packed(tensor)
    size = ((held.numel() * held.itemsize, "1"),)
    return Tensor(name, size, shape_of(tensor), held.itemsize, group, trainable)


def versions() -> dict[str, str]:
    """The libraries whose behaviour a profile holds."""
    import transformers

    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
