"""The Program of one device: load, micro-steps, optimizer, zero_grad, as slices of a timeline.

The steady state repeats the same slices, so the timeline holds each of them once:

    load          weights, buffers, the batch
    first         the first micro-step ever, which also makes the cuBLAS workspaces
    micro         a step's first micro-step: gradients are born and stay
    accumulate    a further micro-step: each new gradient is added to the one that is there
    optimizer_first, optimizer     clip, step and zero_grad; the first makes the states
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rigsize.errors import TraceFailed
from rigsize.memory.kernel_scratch import column_sum_scratch_bytes
from rigsize.program.categories import Categories, backbone_of, weight_category
from rigsize.program.clipping import LossScaler
from rigsize.program.environment import Environment
from rigsize.program.lower import ALLOC, FREE, GRADIENT, WORKSPACE, Lowered, Lowering, Primitive
from rigsize.program.optimizer import make_optimizer, optimizer_phase
from rigsize.program.timeline import Parameter, Place, Timeline
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
    training: bool
    accumulation: int
    kernels: dict[str, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    phase_starts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Per slice: (index, phase) where a phase begins, to name the moment of the peak."""

    def step(self, number: int) -> list[str]:
        """The slices of step `number` (from 0), micro-steps beyond the third left out.

        The allocator has seen every address pattern after two accumulating micro-steps; more of
        them repeat it (`memory.replay` runs until reserved memory repeats).
        """
        if not self.training:
            return ["first" if number == 0 else "micro"]
        more = min(self.accumulation - 1, 2)
        names = ["first" if number == 0 else "micro", *["accumulate"] * more]
        return [*names, "optimizer_first" if number == 0 else "optimizer"]


def build_program(
    profile: Profile,
    point: Mapping[str, int],
    strategy: Strategy,
    environment: Environment,
    *,
    vocabulary: int = 0,
) -> Program:
    """The Program of `profile` at one size {B, S, T}; TraceFailed outside the proved domains."""
    builder = _Builder(profile, point, strategy, environment, vocabulary)
    return builder.build()


class _Builder:
    def __init__(
        self,
        profile: Profile,
        point: Mapping[str, int],
        strategy: Strategy,
        environment: Environment,
        vocabulary: int,
    ) -> None:
        body = profile.body_at(point)
        if body is None:
            raise TraceFailed("size", dict(point), "the profile was not proved for this size")
        self.profile, self.strategy, self.environment = profile, strategy, environment
        self.body = body
        self.values = monomials_at(point)
        self.categories = Categories(profile, vocabulary)
        self.timeline = Timeline()
        self.training = profile.key.use == "training"
        self.parameters: list[Parameter] = []
        self.by_name: dict[str, Parameter] = {}
        self._micro_base = 0
        """The storage number of the micro-step's first storage."""

    def build(self) -> Program:
        lowered = Lowering(
            self.profile,
            self.body,
            self.values,
            self.environment,
            self.categories,
            self.strategy.policy.half_dtype,
        ).run()
        slices = {"load": self._load()}
        stream = _Tiled(self.profile, self.body, lowered)
        size = len(stream.sizes)
        first, micro, marks, phases = self._micro_step(stream, lowered)
        program = Program(
            timeline=self.timeline,
            slices=slices,
            parameters=self.parameters,
            training=self.training,
            accumulation=self.strategy.accumulation if self.training else 1,
            kernels=lowered.kernels,
            assumptions=sorted(lowered.assumptions),
        )
        slices["first"], slices["micro"] = first, micro
        program.phase_starts = dict.fromkeys(("first", "micro", "accumulate"), phases)
        if self.training:
            if program.accumulation > 1:
                slices["accumulate"] = self._accumulating(stream, micro, marks, size)
            self._optimizer(program)
        return program

    # -- load -----------------------------------------------------------------------------------

    def _load(self) -> list[int]:
        timeline, backbone = self.timeline, backbone_of(self.profile)
        for name, tensor, group in self.profile.full_tensors():
            category = weight_category(name, group, backbone)
            phase = "batch" if category == "inputs" else "load"
            place = self.categories.place(category, phase, tensor.name, "", "traced")
            storage = timeline.alloc(evaluate(tensor.size, self.values), place)
            if category.startswith("weights"):
                parameter = Parameter(
                    name, tensor.shape, tensor.itemsize, tensor.trainable, storage
                )
                self.parameters.append(parameter)
                self.by_name[name] = parameter
        return list(timeline.operations)

    # -- micro-steps ------------------------------------------------------------------------

    def _micro_step(
        self, stream: _Tiled, lowered: Lowered
    ) -> tuple[list[int], list[int], list[tuple[int, int]], list[tuple[int, str]]]:
        """(first, micro, gradient marks, phase starts); marks are (index in micro, storage)."""
        base = self._micro_base = len(self.timeline.sizes)
        self.timeline.sizes.extend(stream.sizes)
        self.timeline.places.extend(stream.places)
        operations: list[int] = []
        workspaces: list[tuple[int, Primitive]] = []
        marks: list[tuple[int, int]] = []
        phases: list[tuple[int, str]] = []
        for phase, group, primitives in stream.segments():
            if not phases or phases[-1][1] != phase:
                phases.append((len(operations), phase))
            self._append(stream, primitives, group, base, operations, workspaces, marks)
        gradients = {storage for _, storage in marks}
        self._release_rest(operations, base, gradients)
        return self._with_workspaces(operations, workspaces), operations, marks, phases

    def _append(
        self,
        stream: _Tiled,
        primitives: Sequence[Primitive],
        group: int,
        base: int,
        operations: list[int],
        workspaces: list[tuple[int, Primitive]],
        marks: list[tuple[int, int]],
    ) -> None:
        own = stream.offsets[group] + base
        resolve = stream.resolve
        for primitive in primitives:
            ref = primitive.ref
            storage = own + ref[1] if ref[0] == "own" else base + resolve(ref, group)
            kind = primitive.kind
            if kind == ALLOC:
                operations.append(storage)
            elif kind == FREE:
                operations.append(~storage)
            elif kind == GRADIENT:
                marks.append((len(operations), storage))
                parameter = self.by_name.get(stream.name(primitive.name, group))
                assert parameter is not None, primitive.name
                parameter.gradient = storage
                self._mark_gradient(storage)
            elif kind == WORKSPACE:
                workspaces.append((len(operations), primitive))

    def _mark_gradient(self, storage: int) -> None:
        place = self.timeline.places[storage]
        self.timeline.places[storage] = self.categories.place(
            "gradients", place.phase, place.module, place.op, place.basis
        )

    def _with_workspaces(
        self, operations: list[int], workspaces: list[tuple[int, Primitive]]
    ) -> list[int]:
        """The micro-step with the workspaces made where the first product of a thread runs."""
        first = list(operations)
        for index, primitive in reversed(workspaces):
            assert primitive.place is not None
            storage = len(self.timeline.sizes)
            self.timeline.sizes.append(primitive.num_bytes)
            self.timeline.places.append(primitive.place)
            first.insert(index, storage)
        return first

    def _release_rest(self, operations: list[int], base: int, gradients: set[int]) -> None:
        """What the step's caller holds to the end (the output, the loss) dies with the step."""
        alive: dict[int, None] = {}
        for operation in operations:
            if operation >= 0:
                alive[operation] = None
            else:
                alive.pop(~operation, None)
        operations.extend(~s for s in alive if s not in gradients)

    def _accumulating(
        self, stream: _Tiled, micro: list[int], marks: list[tuple[int, int]], size: int
    ) -> list[int]:
        """Micro-step 2 and later: `grad += new` in place, then the new gradient dies.

        torch/csrc/autograd/functions/accumulate_grad.h, the branch for a defined `variable_grad`.
        """
        lowest = self._micro_base
        shift = len(self.timeline.sizes) - lowest
        self.timeline.sizes.extend(stream.sizes)
        self.timeline.places.extend(self.timeline.places[lowest : lowest + size])
        temporary = {storage for _, storage in marks}
        for storage in temporary:
            place = self.timeline.places[storage]
            self.timeline.places[storage + shift] = self.categories.place(
                "temporaries", place.phase, place.module, place.op, place.basis
            )
        operations: list[int] = []
        start = 0
        for index, storage in marks:
            operations.extend(o + shift if o >= 0 else o - shift for o in micro[start:index])
            operations.append(~(storage + shift))
            start = index
        operations.extend(o + shift if o >= 0 else o - shift for o in micro[start:])
        return operations

    # -- optimizer ------------------------------------------------------------------------------

    def _optimizer(self, program: Program) -> None:
        """Two optimizer phases: the first makes the states, the second is the steady one."""
        strategy, timeline = self.strategy, self.timeline
        optimizer = make_optimizer(strategy, column_scratch=self._column_scratch())
        scaler = LossScaler() if strategy.policy.loss_scaling else None
        start = len(timeline.operations)
        optimizer.setup(timeline, self.parameters)
        program.slices["load"] += timeline.operations[start:]
        gradients = {p.name: p.gradient for p in self.parameters}
        for name in ("optimizer_first", "optimizer"):
            start, marked = len(timeline.operations), len(timeline.marks)
            for parameter in self.parameters:
                parameter.gradient = gradients[parameter.name]
            optimizer_phase(
                timeline,
                optimizer,
                self.parameters,
                device="cuda" if self.environment.device == "cuda" else "cpu",
                clip=strategy.max_grad_norm is not None,
                scaler=scaler,
            )
            program.slices[name] = timeline.operations[start:]
            program.phase_starts[name] = [(i - start, p) for i, p in timeline.marks[marked:]]

    def _column_scratch(self) -> Callable[[int, int], int] | None:
        if self.environment.device != "cuda":
            return None
        sms, threads = self.environment.sm_count, self.environment.max_threads_per_sm
        return lambda rows, columns: sum(column_sum_scratch_bytes(rows, columns, sms, threads))


class _Tiled:
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
        assert isinstance(stack, int) and isinstance(offset, int)
        owner = (self.lasts if end else self.firsts)[stack] + offset
        return self.offsets[owner] + ordinal

    def segments(self) -> Iterator[tuple[str, int, list[Primitive]]]:
        """(phase, full group, primitives) in order."""
        templates = self.lowered.templates
        stack_of = {
            g: k for k, groups in enumerate(self.profile.traced_layers()) for g in groups
        }
        schedule, index = self.body.schedule, 0
        while index < len(schedule):
            phase, group, number = schedule[index]
            if group == 0:
                yield phase, 0, templates[number, 0]
                index += 1
                continue
            stack = stack_of[group]
            depth = self.profile.traced_depths[stack]
            passage = {g: n for _, g, n in schedule[index : index + depth]}
            full = range(self.firsts[stack], self.lasts[stack] + 1)
            ascending = schedule[index][1] <= schedule[index + depth - 1][1]
            for layer in full if ascending else reversed(full):
                traced = self.layers[layer - 1][2]
                yield phase, layer, templates[passage[traced], traced]
            index += depth
