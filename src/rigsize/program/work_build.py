"""The work of a step, from the same trace as its memory: kernels at one size, at full depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from rigsize.errors import TraceFailed
from rigsize.hardware.accelerators import Accelerator
from rigsize.keys import key_for
from rigsize.models import ModelSource, published_bytes
from rigsize.program.attention_work import attention_kernels
from rigsize.program.environment import Environment, environment_of
from rigsize.program.four_bit_work import OP, product_kernels
from rigsize.program.lower import attention_kernel, node_of
from rigsize.program.tiling import tile
from rigsize.program.work import Kernel, Modules, Work, WorkSegment
from rigsize.spec import Strategy, Workload
from rigsize.trace.profile import DISPATCHES, KERNEL, Event, Profile, Tensor, TraceKey
from rigsize.trace.sizes import evaluate, monomials_at
from rigsize.trace.store import find_work

__all__ = [
    "Weights",
    "build_work",
    "decode_work_for",
    "half_dtype_on",
    "weights_of",
    "with_published",
    "work_for",
]

_GROUPED = {"m": 1, "n": 2, "k": 3}
"""Which size of a product is that of all groups together."""


def work_for(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    accelerator: Accelerator,
    point: Mapping[str, int],
) -> Work:
    """One micro-step of training or one pass of inference over a batch of sizes {B, S, ...}.

    Of generation the pass over the prompt. Stored, else traced now (some seconds) and cached;
    TraceFailed says why it cannot be.
    """
    key = key_for(source, workload, strategy, accelerator)
    return _built(source, key, strategy, accelerator, point)


def decode_work_for(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    accelerator: Accelerator,
    point: Mapping[str, int],
) -> Work:
    """One step that decodes a token for each of B texts, attending to C keys."""
    key = replace(key_for(source, workload, strategy, accelerator), cache="decode")
    return _built(source, key, strategy, accelerator, point)


def _built(
    source: ModelSource,
    key: TraceKey,
    strategy: Strategy,
    accelerator: Accelerator,
    point: Mapping[str, int],
) -> Work:
    profile = _LAST.found(source, key, point)
    environment = environment_of(accelerator, strategy)
    half = half_dtype_on(accelerator, strategy)
    return with_published(build_work(profile, point, environment, half_dtype=half), source)


def half_dtype_on(accelerator: Accelerator, strategy: Strategy) -> str:
    """The 16-bit dtype of the kernels, whatever the trace was made in."""
    half = strategy.policy.half_dtype
    if half == "bfloat16" and not (accelerator.is_cpu or accelerator.supports_bf16):
        return "float16"  # only over quantised weights, whose compute dtype is free to be fp16
    return half


def with_published(work: Work, source: ModelSource) -> Work:
    """The work with the bytes of the file that its model comes from."""
    num_bytes, note = published_bytes(source, sum(work.parameters))
    return replace(work, published_bytes=num_bytes, published_note=note)


class _Last:
    """The profiles that were read last: a planner asks for many sizes of few keys."""

    LIMIT = 16

    def __init__(self) -> None:
        self._known: dict[TraceKey, Profile] = {}

    def found(self, source: ModelSource, key: TraceKey, point: Mapping[str, int]) -> Profile:
        """The profile of work that is proved for a size."""
        known = self._known.get(key)
        if known is None or known.body_at(point) is None:
            if len(self._known) >= self.LIMIT:
                del self._known[next(iter(self._known))]
            known = self._known[key] = find_work(source, key, point)
        return known


_LAST = _Last()


def build_work(
    profile: Profile,
    point: Mapping[str, int],
    environment: Environment,
    *,
    half_dtype: str = "bfloat16",
    weights: Weights | None = None,
) -> Work:
    """The work of a profile of work at one size; TraceFailed outside its proved domains.

    `weights` are the profile's own (`weights_of`), where it is asked at many sizes.
    """
    body = profile.body_at(point)
    if body is None:
        raise TraceFailed("size", dict(point), "the profile was not proved for this size")
    lowering = _Lowering(
        profile.key.point(point), environment, half_dtype, profile.key.quantization
    )
    lowered = [lowering.template(events) for events in body.templates]
    segments = tuple(
        WorkSegment(phase.removeprefix("after_"), layer, *lowered[number])
        for phase, layer, _, number in tile(profile, body)
    )
    held = weights or weights_of(profile)
    return Work(
        segments=segments,
        parameters=held.elements,
        trainable=held.trainable,
        tensors=held.tensors,
        weight_bytes=held.num_bytes,
        training=profile.key.use == "training",
        point=dict(point),
        modules=held.modules,
    )


class _Lowering:
    """Templates of events to kernels of one size on one device."""

    def __init__(
        self, point: Mapping[str, int], environment: Environment, half: str, quantization: str
    ) -> None:
        self.values, self.environment, self.half = monomials_at(point), environment, half
        self.nested = quantization == "nf4-double"

    def template(self, events: tuple[Event, ...]) -> tuple[tuple[Kernel, ...], int]:
        """(kernels, dispatches) of one segment, equal kernels counted."""
        dispatches = 0
        launches: Counter[Kernel] = Counter()
        for event in events:
            times = event.label[-1]
            if event.kind == DISPATCHES:
                dispatches += times
                continue
            kernels, more = self._kernels(event), 0
            if event.op == OP:
                kernels, more = product_kernels(kernels[0], self.environment, nested=self.nested)
            dispatches += times * more
            for kernel in kernels:
                launches[kernel] += times * kernel.launches
        return tuple(k._replace(launches=n) for k, n in launches.items()), dispatches

    def _kernels(self, event: Event) -> tuple[Kernel, ...]:
        if event.kind != KERNEL:
            node = node_of(event, self.values, self.half)
            chosen, _ = attention_kernel(node, self.environment)
            backward = event.kind == "attention_backward"
            return attention_kernels(node, fused=chosen != "math", backward=backward)
        kind, dtype, detail, _ = event.label
        sizes = tuple(evaluate(n, self.values) for n in event.numbers)
        dtype = self.half if dtype == "bfloat16" else dtype
        layout, _, grouped = detail.partition(":")
        if grouped:
            sizes = _shared(sizes, _GROUPED[grouped])
        return (Kernel(kind, dtype, sizes, layout, event.op),)


def _shared(sizes: tuple[int, ...], index: int) -> tuple[int, ...]:
    """A size of all groups together, shared out evenly and rounded up."""
    each = -(-sizes[index] // sizes[0])
    return (*sizes[:index], each, *sizes[index + 1 :])


class Weights(NamedTuple):
    """Of a profile's tensors by layer, 0 first."""

    elements: tuple[int, ...]
    trainable: tuple[int, ...]
    """Elements of those that are trained."""
    num_bytes: tuple[int, ...]
    """As they are stored; a scale's with its weight."""
    tensors: int
    """That are trained, of all layers."""
    modules: tuple[Modules, ...] = ()


def weights_of(profile: Profile) -> Weights:
    """What does not depend on the sizes: asked of one profile at many of them, counted once."""
    layers = len(profile.full_layers()) + 1
    elements, trainable, num_bytes = ([0] * layers for _ in range(3))
    named: list[dict[str, Tensor]] = [{} for _ in range(layers)]
    tensors = 0
    for name, tensor, layer in profile.full_tensors():
        tensors += tensor.trainable
        if name.startswith(("buffer:", "input:")):
            continue
        num_bytes[layer] += evaluate(tensor.size, {"1": 1})
        if not name.startswith("scale:"):
            count = prod(tensor.shape)
            elements[layer] += count
            trainable[layer] += count if tensor.trainable else 0
            named[layer][name] = tensor
    return Weights(
        tuple(elements), tuple(trainable), tuple(num_bytes), tensors, tuple(_modules(named))
    )


def _modules(named: Sequence[Mapping[str, Tensor]]) -> Iterator[Modules]:
    """Of each layer; a module that reaches into several of them is one of layer 0."""
    paths = [{path for name in tensors for path in _owners(name)} for tensors in named]
    layers_of = Counter(path for found in paths for path in found)
    outside = paths[0] | {path for path, layers in layers_of.items() if layers > 1}
    for layer, (tensors, found) in enumerate(zip(named, paths, strict=True)):
        yield Modules(
            modules=len(found - outside) if layer else 1 + len(outside),
            shapes=tuple(tensor.shape for tensor in tensors.values()),
            trained=tuple(tensor.shape for tensor in tensors.values() if tensor.trainable),
        )


def _owners(name: str) -> Iterator[str]:
    """The modules that a parameter's name leads through, the root and lists left out."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if not parts[end].isdigit():
            yield ".".join(parts[:end])
