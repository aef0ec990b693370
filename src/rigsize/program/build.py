"""The Program of one device: load, micro-steps, optimizer, zero_grad, as slices of a timeline.

The steady state repeats the same slices, so the timeline holds each of them once:

    load          weights, buffers, the batch
    first         the first micro-step ever, which also makes the cuBLAS workspaces
    micro         a step's first micro-step: gradients are born and stay
    accumulate    a further micro-step: each new gradient is added to the one that is there
    last          the last one, where ranks do more in it: gradients travel
    second        what a wrapper does once, before the second step
    optimizer_first, optimizer     clip, step and zero_grad; the first makes the states
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rigsize.errors import TraceFailed
from rigsize.memory.kernel_scratch import column_sum_scratch_bytes
from rigsize.program.beside_steps import add_moments
from rigsize.program.categories import Categories, backbone_of, weight_category
from rigsize.program.clipping import LossScaler
from rigsize.program.environment import Environment
from rigsize.program.foreach import Device
from rigsize.program.lower import ALLOC, FREE, GRADIENT, SAVE, WORKSPACE, Lowering, Primitive
from rigsize.program.mesh import ALONE, Mesh
from rigsize.program.micro_step import MicroStep
from rigsize.program.optimizer import make_optimizer, optimizer_assumptions
from rigsize.program.optimizer_sizes import paged_sizes
from rigsize.program.parallel import OptimizerCall, ranks_of
from rigsize.program.tiling import Segment, Tiled
from rigsize.program.timeline import Parameter, Timeline
from rigsize.spec.strategy import Strategy
from rigsize.trace.profile import Body, Profile
from rigsize.trace.sizes import evaluate, monomials_at


@dataclass(slots=True)
class Program:
    """One rank's step."""

    timeline: Timeline
    slices: dict[str, list[int]]
    """Operations by slice name; `phases` gives the schedule."""
    parameters: list[Parameter]
    """The model's, whole."""
    training: bool
    accumulation: int
    mesh: Mesh = ALONE
    """The ranks, of which this is the first."""
    stepped: list[Parameter] = field(default_factory=list)
    """What this rank's optimizer is given: the parameters, or its shards of them."""
    paged_bytes: int = 0
    """States in CUDA managed memory (paged optimizers): host pages that move to the card and off
    it again, outside the allocator."""
    kernels: dict[str, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    saved_on_host: dict[str, list[int]] = field(default_factory=dict)
    """Bytes of each copy that one micro-step's forward pass makes on the host, by what of: `save`,
    or `save_weight` (`torch.autograd.graph.save_on_cpu`)."""
    phase_starts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Per slice: (index, phase) where a phase begins, to name the moment of the peak."""
    decoding: list[str] = field(default_factory=list)
    """Of generation with a cache: the slices of its decoding steps (`program.generation`)."""
    layer_of: dict[int, int] = field(default_factory=dict)
    """By storage that a layer makes: its number, from 1 through all stacks."""
    devices: list[Program] = field(default_factory=list)
    """Where one model is spread over several devices, the part of each (`program.placement`)."""
    emptied: list[int] = field(default_factory=list)
    """Indices into the slice `load` before which the allocator's cache is emptied."""

    def step(self, number: int) -> list[str]:
        """The slices of step `number` (from 0), micro-steps beyond the third left out.

        The allocator has seen every address pattern after two accumulating micro-steps; more of
        them repeat it (`memory.replay` runs until reserved memory repeats).
        """
        if not self.training:
            generates = [*self.decoding, "end"] if "end" in self.slices else []
            return ["first" if number == 0 else "micro", *generates]
        names = ["first" if number == 0 else "micro"]
        if number == 1 and "second" in self.slices:
            names.insert(0, "second")
        if more := min(self.accumulation - 1, 2):
            names += ["accumulate"] * (more - 1)
            names.append("last" if "last" in self.slices else "accumulate")
        return [*names, "optimizer_first" if number == 0 else "optimizer"]


def build_program(
    profile: Profile,
    point: Mapping[str, int],
    strategy: Strategy,
    environment: Environment,
    mesh: Mesh = ALONE,
    *,
    vocabulary: int = 0,
) -> Program:
    """The Program of one rank at one size {B, S, T}; TraceFailed outside the proved domains."""
    builder = Builder(profile, point, strategy, environment, mesh, vocabulary)
    return builder.build()


class Builder:
    """Builds the Program of one rank, slice by slice."""

    def __init__(
        self,
        profile: Profile,
        point: Mapping[str, int],
        strategy: Strategy,
        environment: Environment,
        mesh: Mesh,
        vocabulary: int,
    ) -> None:
        body = profile.body_at(point)
        if body is None:
            raise TraceFailed("size", dict(point), "the profile was not proved for this size")
        self.profile, self.strategy, self.environment = profile, strategy, environment
        self.body, self.mesh, self.point = body, mesh, point
        self.values = monomials_at(point)
        self.categories = Categories(profile, vocabulary)
        self.timeline = Timeline()
        self.layer_of: dict[int, int] = {}
        self.training = profile.key.use == "training"
        self.device: Device = "cuda" if environment.device == "cuda" else "cpu"
        self.ranks = ranks_of(strategy, mesh, device=self.device, training=self.training)
        self.ranks.column_scratch = self._column_scratch()
        self.ranks.point, self.ranks.has_unused = point, _has_unused(profile, body)
        self.parameters: list[Parameter] = []
        self.buffers: list[Parameter] = []
        self.by_name: dict[str, Parameter] = {}
        self.saved_on_host: dict[str, list[int]] = {}

    def build(self) -> Program:
        """The whole Program."""
        lowered = Lowering(
            self.profile,
            self.body,
            self.values,
            self.environment,
            self.categories,
            self.strategy.policy.half_dtype,
        ).run()
        slices = {"load": self._load()}
        step = self._micro_step(Tiled(self.profile, self.body, lowered))
        accumulation = self.strategy.accumulation if self.training else 1
        alone = accumulation == 1
        slices["first"], slices["micro"] = step.first(alone=alone), step.micro(alone=alone)
        program = Program(
            timeline=self.timeline,
            slices=slices,
            parameters=self.parameters,
            training=self.training,
            accumulation=accumulation,
            mesh=self.mesh,
            kernels=lowered.kernels,
            assumptions=sorted(lowered.assumptions),
            phase_starts=step.phase_starts(alone=alone),
            saved_on_host=self.saved_on_host,
            layer_of=self.layer_of,
        )
        if self.training:
            if not alone:
                self._accumulating(step, slices)
            program.emptied = [index for index, _ in self.timeline.marks]
            program.phase_starts["load"] = [(i, "load") for i in (0, *program.emptied)]
            slices["load"] += self._appended(
                lambda: self.ranks.constructed(self.timeline, self.parameters, self.buffers)
            )
            if second := self._appended(lambda: self.ranks.second(self.timeline)):
                slices["second"], program.phase_starts["second"] = second, [(0, "forward")]
            self._optimizer(program)
            add_moments(program)
        else:
            program.stepped = self.ranks.stepped(self.parameters)
        return program

    def _appended(self, call: Callable[[], None]) -> list[int]:
        """What a call appends to the timeline."""
        start = len(self.timeline.operations)
        call()
        return self.timeline.operations[start:]

    # -- load -----------------------------------------------------------------------------------

    def _load(self) -> list[int]:
        timeline, backbone = self.timeline, backbone_of(self.profile)
        adapted = bool(self.profile.key.adapter)
        for name, tensor, group in self.profile.full_tensors():
            category = weight_category(name, group, backbone, adapted=adapted)
            phase = "batch" if category == "inputs" else "load"
            owner, scales = tensor.name.removeprefix("scale:"), name.startswith("scale:")
            place = self.categories.place(
                category, phase, owner, "scales" if scales else "", "traced"
            )
            if scales or not category.startswith("weights"):
                storage = timeline.alloc(evaluate(tensor.size, self.values), place)
                if group:
                    self.layer_of[storage] = group
                if category == "buffers":
                    shape, itemsize = tensor.shape, tensor.itemsize
                    self.buffers.append(Parameter(name, shape, itemsize, False, storage))
                continue
            parameter = Parameter(name, tensor.shape, tensor.itemsize, tensor.trainable, -1)
            parameter.category, parameter.layer = category, group
            size = evaluate(tensor.size, self.values)
            parameter.packed_bytes = 0 if size == parameter.num_bytes else size
            parameter.storage = self.ranks.load(timeline, parameter, place)
            self.parameters.append(parameter)
            self.by_name[name] = parameter
        self.ranks.loaded(timeline, self.parameters)
        return list(timeline.operations)

    # -- micro-steps ------------------------------------------------------------------------

    def _micro_step(self, stream: Tiled) -> MicroStep:
        step = MicroStep(self.timeline, self._number(stream))
        self.inside = ("", "")
        if self.ranks.follows_modules:
            self.ranks.course(list(_course(stream)))
        phase = ""
        for segment in stream.segments():
            if segment.phase != phase:
                self._turn(step, phase, segment.phase)
                phase = segment.phase
            self._segment(step, stream, segment)
        self._turn(step, phase, "")
        step.release_rest()
        return step

    def _number(self, stream: Tiled) -> int:
        """Numbers the storages of a pass; returns the first."""
        base = len(self.timeline.sizes)
        self.timeline.sizes.extend(stream.sizes)
        self.timeline.places.extend(stream.places)
        if not self.training:
            ends = [*stream.offsets[1:], len(stream.sizes)]
            for group in range(1, len(stream.offsets)):
                own = range(base + stream.offsets[group], base + ends[group])
                self.layer_of.update(dict.fromkeys(own, group))
        return base

    def _turn(self, step: MicroStep, before: str, phase: str) -> None:
        if before:
            self.ranks.end(step, before)
        if phase:
            step.begin(phase)
            self.ranks.begin(step, phase)

    def _segment(self, step: MicroStep, stream: Tiled, segment: Segment) -> None:
        """A layer is entered where its own code begins, not where the code before it ends."""
        entered, left = segment.span or (-1, -1)
        for index, primitive in enumerate(segment.primitives):
            if index == entered:
                self.ranks.enter(step, segment.phase, segment.group)
            if self.ranks.follows_modules:
                self._follow(step, stream, segment, primitive)
            self._append(step, stream, primitive, segment.group)
            if index == left - 1:
                self.ranks.leave(step, segment.phase, segment.group)

    def _follow(
        self, step: MicroStep, stream: Tiled, segment: Segment, primitive: Primitive
    ) -> None:
        module = _module_of(stream, segment, primitive)
        if module[1] and module != self.inside:
            self.inside = module
            self.ranks.module(step)

    def _append(self, step: MicroStep, stream: Tiled, primitive: Primitive, group: int) -> None:
        kind = primitive.kind
        if kind == WORKSPACE:
            assert primitive.place is not None
            step.alloc_once(primitive.num_bytes, primitive.place)
            return
        if kind == SAVE:
            self.saved_on_host.setdefault(primitive.name, []).append(primitive.num_bytes)
            return
        storage = step.base + stream.resolve(primitive.ref, group)
        if kind == GRADIENT:
            self.ranks.gradient(step, self.by_name[stream.name(primitive.name, group)], storage)
        else:
            assert kind in (ALLOC, FREE)
            step.operations.append(storage if kind == ALLOC else ~storage)

    def _accumulating(self, step: MicroStep, slices: dict[str, list[int]]) -> None:
        """Micro-step 2 and later, on storages of its own: its gradients are temporaries."""
        timeline, base = self.timeline, step.base
        shift = len(timeline.sizes) - base
        timeline.sizes.extend(timeline.sizes[base:])
        timeline.places.extend(timeline.places[base:])
        streams = {s + shift: stream for s, stream in timeline.streams.items() if s >= base}
        timeline.streams.update(streams)
        for _, storage in step.gradients:
            timeline.recategorise(storage + shift, "temporaries")
        slices["accumulate"] = step.accumulating(shift)
        if step.closing:
            slices["last"] = step.accumulating(shift, last=True)

    # -- optimizer ------------------------------------------------------------------------------

    def _optimizer(self, program: Program) -> None:
        """Two optimizer phases: the first makes the states, the second is the steady one."""
        strategy, timeline = self.strategy, self.timeline
        program.stepped = stepped = self.ranks.stepped(self.parameters)
        optimizer = make_optimizer(strategy, column_scratch=self.ranks.column_scratch)
        scaler = LossScaler() if strategy.policy.loss_scaling else None
        start = len(timeline.operations)
        optimizer.setup(timeline, stepped)
        program.slices["load"] += timeline.operations[start:]
        gradients = [p.gradient for p in stepped]
        for name in ("optimizer_first", "optimizer"):
            start, marked = len(timeline.operations), len(timeline.marks)
            for parameter, gradient in zip(stepped, gradients, strict=True):
                parameter.gradient = gradient
            call = OptimizerCall(
                optimizer=optimizer,
                device=self.device,
                clip=strategy.max_grad_norm is not None,
                scaler=scaler,
                first=name == "optimizer_first",
            )
            self.ranks.optimize(timeline, stepped, call)
            program.slices[name] = timeline.operations[start:]
            program.phase_starts[name] = [(i - start, p) for i, p in timeline.marks[marked:]]
        program.paged_bytes = sum(
            sum(paged_sizes(strategy.optimizer, p.shape, self.device))
            for p in stepped
            if p.trainable
        )
        program.assumptions += optimizer_assumptions(strategy, stepped)

    def _column_scratch(self) -> Callable[[int, int], int] | None:
        if self.environment.device != "cuda":
            return None
        sms, threads = self.environment.sm_count, self.environment.max_threads_per_sm
        reduction = self.environment.reduction
        return lambda rows, columns: sum(
            column_sum_scratch_bytes(rows, columns, sms, threads, reduction)
        )


def _has_unused(profile: Profile, body: Body) -> bool:
    """Whether a trainable parameter gets no gradient: the pooler of a bare backbone."""
    events = (event for template in body.templates for event in template)
    reached = {event.label[0] for event in events if event.kind == "gradient"}
    return any(tensor.trainable and tensor.name not in reached for tensor in profile.tensors)


def _course(stream: Tiled) -> Iterator[tuple[str, str]]:
    """(phase, module) where another module than before begins to allocate."""
    inside = ("", "")
    for segment in stream.segments():
        for primitive in segment.primitives:
            module = _module_of(stream, segment, primitive)
            if module[1] and module != inside:
                inside = module
                yield module


def _module_of(stream: Tiled, segment: Segment, primitive: Primitive) -> tuple[str, str]:
    """The (phase, module) of an allocation; no module for all else."""
    if primitive.kind != ALLOC:
        return segment.phase, ""
    place = stream.places[stream.resolve(primitive.ref, segment.group)]
    return segment.phase, stream.name(place.module, segment.group)
