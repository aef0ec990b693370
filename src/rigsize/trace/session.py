"""From a config to a Profile: choose the depth, trace, fold, prove each domain."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rigsize.errors import TraceFailed
from rigsize.trace.capture import Traced, named_parameters
from rigsize.trace.depth import Depth, reduce_depth
from rigsize.trace.domains import label, sample_points, thresholds
from rigsize.trace.fold import NotFolded, fold
from rigsize.trace.model import BuildOptions, load_config
from rigsize.trace.profile import Body, Profile, Tensor, TraceKey
from rigsize.trace.recorder import RawTrace
from rigsize.trace.sizes import fit, monomials_at

FIT_POINTS = 5
MOST_FULL_LAYERS = 64
"""A model whose layers cannot be tiled is traced whole up to this depth."""


class Session:
    """Traces one key of one config; models are built once per depth."""

    def __init__(
        self, values: Mapping[str, Any], key: TraceKey, max_positions: int | None = None
    ) -> None:
        warnings.filterwarnings("ignore", module="transformers")
        self.values, self.key = values, key
        self.max_positions = max_positions
        self.options = BuildOptions(
            task=key.task,
            compute=key.compute,
            attention=key.attention,
            recompute=key.recompute,
            training=key.use == "training",
            num_labels=key.num_labels,
        )
        self.full = load_config(values, self.options).to_dict()
        self.limits = thresholds(self.full, max_positions)
        self._traced: tuple[Depth, Traced] | None = None
        self._radius = 1

    def profile(self, labels: Iterable[str]) -> Profile:
        """The profile with every domain of `labels`; TraceFailed when none can be had."""
        bodies: list[Body] = []
        domains: dict[str, int] = {}
        tensors: tuple[Tensor, ...] = ()
        for name in labels:
            points = self._points(name)
            if not points:
                continue
            body, first = self._body(points)
            if body not in bodies:
                bodies.append(body)
            domains[name] = bodies.index(body)
            tensors = tensors or self._tensors(first, points)
        if not bodies:
            raise TraceFailed("model", self.values.get("model_type"), "no size can be traced")
        depth, traced = self._model()
        return Profile(
            key=self.key,
            versions=versions(),
            representative=depth.representative if self._stacks() else (),
            traced_depths=depth.depths if self._stacks() else (),
            stack_paths=tuple(path for path, _ in self._stacks()),
            tensors=tensors,
            bodies=tuple(bodies),
            domains=domains,
            limits=self.limits,
        )

    def record(self, point: Mapping[str, int], *, full_depth: bool = False) -> RawTrace:
        """One concrete trace; `full_depth` traces every layer (for proofs)."""
        traced = (
            Traced(load_config(self.values, self.options), self.options, self.key.device)
            if full_depth
            else self._model()[1]
        )
        return traced.record(point, padded=self.key.padded, hold_output=self.key.hold_output)

    def domain_of(self, point: Mapping[str, int]) -> str:
        """The domain a size falls in."""
        return label(point, self.limits)

    def _points(self, name: str, count: int = FIT_POINTS) -> list[dict[str, int]]:
        target = self.key.task == "seq2seq-lm"
        return sample_points(name, self.limits, self.max_positions, target=target, count=count)

    def _model(self) -> tuple[Depth, Traced]:
        if self._traced is None:
            depth = reduce_depth(self.values, self.full, self._radius)
            config = load_config(depth.config, self.options)
            self._traced = depth, Traced(config, self.options, self.key.device)
        return self._traced

    def _stacks(self) -> list[tuple[str, int]]:
        """The module lists that the config's depths describe; none when they do not match."""
        depth, traced = self._model()
        expected = list(depth.depths)
        found = [(path, len(layers)) for path, layers in traced.stacks]
        matching = [(path, n) for path, n in found if n in expected]
        if [n for _, n in matching] == expected:
            return matching
        return matching[: len(expected)] if _prefix_matches(matching, expected) else []

    def _body(self, points: list[dict[str, int]]) -> tuple[Body, RawTrace]:
        """Folds at the present radius; a wider context, then the full depth, when refused."""
        while True:
            depth, traced = self._model()
            stacks = self._stacks()
            traced.stacks = [s for s in traced.stacks if s[0] in [path for path, _ in stacks]]
            traces = [self.record(point) for point in points]
            contexts = [0, *depth.contexts] if stacks else [0]
            try:
                if depth.reduced and not stacks:
                    raise NotFolded("the layers are in no list that the config's depth describes")
                return fold(traces, points, stacks, contexts), traces[0]
            except NotFolded as error:
                self._widen(error, depth)

    def _widen(self, error: NotFolded, depth: Depth) -> None:
        if self._radius == 0:
            raise TraceFailed(
                "model", self.values.get("model_type"), f"its events cannot be expressed: {error}"
            ) from error
        self._radius = {1: 2, 2: 0}[self._radius]
        full = sum(len(stack) for stack in depth.representative)
        if self._radius == 0 and full > MOST_FULL_LAYERS:
            raise TraceFailed(
                "model",
                self.values.get("model_type"),
                f"its {full} layers are too many to trace whole and cannot be tiled: {error}",
            ) from error
        self._traced = None

    def _tensors(self, first: RawTrace, points: list[dict[str, int]]) -> tuple[Tensor, ...]:
        _, traced = self._model()
        stacks = self._stacks()
        tensors = [
            _tensor(name, parameter, stacks, trainable=parameter.requires_grad)
            for name, parameter in named_parameters(traced.model)
        ]
        tensors += [
            _tensor(f"buffer:{name}", buffer, stacks, trainable=False)
            for name, buffer in traced.model.named_buffers()
            if buffer.device.type == traced.device.type
        ]
        return (*tensors, *self._inputs(points))

    def _inputs(self, points: list[dict[str, int]]) -> list[Tensor]:
        from rigsize.trace.model import make_batch

        values = [monomials_at(p) for p in points]
        batches = [make_batch(self.options, p, "meta", padded=self.key.padded) for p in points]
        inputs = []
        for name in batches[0]:
            size = fit([b[name].numel() * b[name].itemsize for b in batches], values)
            inputs.append(Tensor(f"input:{name}", size, (), batches[0][name].itemsize, 0))
        return inputs


def _prefix_matches(found: list[tuple[str, int]], expected: list[int]) -> bool:
    return [n for _, n in found[: len(expected)]] == expected


def _tensor(
    name: str, tensor: torch.Tensor, stacks: list[tuple[str, int]], *, trainable: bool
) -> Tensor:
    group, start = 0, 1
    for path, depth in stacks:
        match = re.match(rf"^(?:buffer:)?{re.escape(path)}\.(\d+)\.", name)
        if match:
            group = start + int(match.group(1))
            name = name.replace(f"{path}.{match.group(1)}.", f"{path}.*.", 1)
        start += depth
    size = ((tensor.numel() * tensor.itemsize, "1"),)
    return Tensor(name, size, tuple(tensor.shape), tensor.itemsize, group, trainable)


def versions() -> dict[str, str]:
    """The libraries whose behaviour a profile holds."""
    import transformers

    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
