"""FSDP2 and HSDP as torch's `fully_shard` runs them, call by call.

Mirrors `FSDPState` and `FSDPParamGroup` (torch/distributed/fsdp/_fully_shard/_fsdp_state.py,
_fsdp_param_group.py) and the collectives of _fsdp_collectives.py, torch 2.13: every layer of the
stacks is a group, what is left belongs to the root (`train.parallel.apply_fully_shard`). FSDP2
uses no `record_stream`, so the order of the host's calls alone decides what is allocated.

Left out: what the process group keeps (`memory.communicators`), and on the CPU the temporaries
inside `_chunk_cat`, which CUDA does in one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.foreach import Device, free_list, place
from rigsize.program.fsdp_group import (
    Buffer,
    Group,
    Sharded,
    check_ranks,
    check_types,
    managed_order,
    policy_of,
    split,
)
from rigsize.program.mesh import Mesh
from rigsize.program.micro_step import MicroStep
from rigsize.program.parallel import Ranks
from rigsize.program.timeline import (
    ALL_REDUCE,
    COMPUTE,
    COPY_IN,
    REDUCE_SCATTER,
    Parameter,
    Place,
    Timeline,
)
from rigsize.spec.strategy import Strategy

__all__ = ["FullySharded"]

GATHERED, BUFFERS, UNSHARDED = "weights.gathered", "communication.buffers", "gradients.unsharded"


class FullySharded(Ranks):
    """One rank of `fully_shard`."""

    def __init__(self, strategy: Strategy, mesh: Mesh, *, device: Device, training: bool) -> None:
        super().__init__(strategy, mesh, device=device, training=training)
        self.shards = mesh.shard
        self.replicated = strategy.parallel == "hsdp"
        self.policy = policy_of(strategy)
        # The root's whole parameters stay: backward would gather them at once
        # (`FSDPState._lazy_init`).
        self.root = Group(layer=0, reshards=False)
        self.groups = {0: self.root}
        self.held: Buffer | None = None
        """The gathered tensor of the layer before, until this layer's copy-out
        (`FSDPCommContext.all_gather_state`)."""
        self.reduce_scatter_input = -1
        """Of the layer before, until the next one (`FSDPCommContext.reduce_scatter_states`)."""
        self.order: list[Group] = []
        """In which forward passes ended."""
        self.grads_reach: dict[int, bool] = {}
        """By layer: whether its input has a gradient."""

    # -- load -------------------------------------------------------------------------------

    def load(self, timeline: Timeline, parameter: Parameter, place: Place) -> int:
        """The shard, an allocation of its own."""
        sharded = split(parameter, self.shards, self.policy)
        group = self.groups.setdefault(
            parameter.layer,
            Group(layer=parameter.layer, reshards=self.strategy.reshard_after_forward),
        )
        group.parameters.append(sharded)
        sharded.shard.storage = timeline.alloc(sharded.shard.num_bytes, place)
        return sharded.shard.storage

    def loaded(self, _timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """Refuses what `fully_shard` would, and finds where gradients reach."""
        check_ranks(parameters, self.shards)
        for group in self.groups.values():
            check_types(group)
            group.parameters = managed_order(group.parameters)
        reach = _reaches_first_layer(self.strategy, parameters)
        for layer in sorted(self.groups):
            self.grads_reach[layer] = reach and layer > 0
            trains = layer > 0 and any(p.whole.trainable for p in self.groups[layer].parameters)
            reach = reach or trains

    # -- hooks ------------------------------------------------------------------------------

    def begin(self, step: MicroStep, phase: str) -> None:
        """`_root_pre_forward`; the gradient of the loss reaches the root's output."""
        if phase == "forward":
            self.pre_forward(step, self.root)
        elif phase == "backward":
            self.pre_backward(step, self.root)

    def end(self, step: MicroStep, phase: str) -> None:
        """The root's `_post_forward`, or the callback at the end of backward."""
        if phase == "forward":
            self.post_forward(step, self.root)
            self._drop_held(step)
        elif phase == "backward":
            self.final_callback(step)

    def enter(self, step: MicroStep, phase: str, layer: int) -> None:
        """A layer's pre-forward hook, or that of the gradient of its output."""
        if phase == "forward":
            self.pre_forward(step, self.groups[layer])
        elif phase == "backward":
            self.pre_backward(step, self.groups[layer])

    def leave(self, step: MicroStep, phase: str, layer: int) -> None:
        """A layer's post-forward hook, or that of the gradient of its input."""
        if phase == "forward":
            self.post_forward(step, self.groups[layer])
        elif phase == "backward" and self.grads_reach[layer]:
            self.post_backward(step, self.groups[layer])

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """Of a whole parameter: it lives until its group is reduced."""
        step.timeline.recategorise(storage, UNSHARDED)
        self.groups[parameter.layer].gradients[parameter.name] = storage

    def stepped(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """The shards."""
        found = {p.whole.name: p.shard for g in self.groups.values() for p in g.parameters}
        return [found[p.name] for p in parameters]

    def pre_forward(self, step: MicroStep, group: Group) -> None:
        """`FSDPParamGroup.pre_forward`."""
        group.state = "forward"
        self._unshard(step, group)
        self._wait_for_unshard(step, group)

    def post_forward(self, step: MicroStep, group: Group) -> None:
        """`FSDPParamGroup.post_forward`."""
        if group.reshards:
            self._reshard(step, group)
        group.post_forward.append(len(self.order))
        self.order.append(group)
        group.state = "idle"

    def pre_backward(self, step: MicroStep, group: Group) -> None:
        """`FSDPParamGroup.pre_backward`: gathers, and has the layer before it gathered too."""
        if group.state == "pre_backward":
            return
        group.state = "pre_backward"
        self._unshard(step, group)
        self._wait_for_unshard(step, group)
        if group.post_forward:
            place_in_order = group.post_forward.pop()
            if place_in_order > 0:
                self._unshard(step, self.order[place_in_order - 1])

    def post_backward(self, step: MicroStep, group: Group) -> None:
        """`FSDPParamGroup.post_backward`: reshards, then reduces what has gradients."""
        group.state = "post_backward"
        reduced = group.with_gradients()
        self._reshard(step, group)
        self._drop_reduce_scatter_input(step)
        if reduced:
            self._reduce(step, group, reduced)

    def final_callback(self, step: MicroStep) -> None:
        """`_root_post_backward_final_callback`: the root reduces, all that waits is let go."""
        for layer in sorted(self.groups):
            group = self.groups[layer]
            if group.state != "post_backward":
                self.post_backward(step, group)
            group.state = "idle"
            self._finalize(step, group)
        self.order.clear()
        self._drop_reduce_scatter_input(step)

    def _finalize(self, step: MicroStep, group: Group) -> None:
        """`finalize_backward`."""
        if group.all_reduce_input >= 0:
            self._let_go(step, group)
        if group.pending is not None:
            self.free(step, group.pending)
            group.pending = None
        group.post_forward.clear()

    # -- all-gather -------------------------------------------------------------------------

    def _unshard(self, step: MicroStep, group: Group) -> None:
        """`unshard`: the gathered tensor, on the copy-in stream; one rank has none."""
        if group.pending is not None or group.unsharded or not group.parameters:
            return
        if self.shards == 1:
            group.pending = Buffer()
            return
        once = self._stays_whole(group)
        inputs = self.gather_inputs(step, group, once=once)
        group.pending = self.alloc(
            step, group.gathered_bytes, BUFFERS, "all_gather", once=once, stream=COPY_IN
        )
        for buffer in inputs:
            self.free(step, buffer)

    def gather_inputs(self, step: MicroStep, group: Group, *, once: bool) -> list[Buffer]:
        """`_get_param_all_gather_inputs`: one flat tensor of all shards that are cast."""
        size = sum(p.input_bytes for p in group.parameters if p.casts)
        if not size:
            return []
        return [self.alloc(step, size, BUFFERS, "cast_shards", once=once, stream=COPY_IN)]

    def gather_input(
        self, step: MicroStep, p: Sharded, *, once: bool, stream: int
    ) -> Buffer | None:
        """`FSDPParam.all_gather_inputs` of one parameter: its cast, where there is one."""
        if not p.casts:
            return None
        return self.alloc(step, p.input_bytes, BUFFERS, "cast_shards", once=once, stream=stream)

    def _wait_for_unshard(self, step: MicroStep, group: Group) -> None:
        """`wait_for_unshard`: copies out; in forward the gathered tensor waits for the next one.

        So that the copy-in of the next layer, on another stream, does not write into it. What
        waited until now is let go before the copy, but a local name holds it to the end of it.
        """
        if group.pending is None:
            return
        gathered, group.pending = group.pending, None
        once = self._stays_whole(group)
        if self.shards == 1:
            self._copy_whole(step, group, once=once)
            return
        group.unsharded = [
            self.alloc(step, p.gathered_bytes, GATHERED, "copy_out", once=once)
            for p in group.parameters
        ]
        if group.state == "forward":
            self._drop_held(step)
            self.held = gathered
        else:
            self.free(step, gathered)

    def _copy_whole(self, step: MicroStep, group: Group, *, once: bool) -> None:
        """One rank copies its own parameters, each cast alone; a name holds the last cast."""
        cast: Buffer | None = None
        for p in group.parameters:
            previous, cast = cast, self.gather_input(step, p, once=once, stream=COMPUTE)
            if previous is not None:
                self.free(step, previous)
            group.unsharded.append(
                self.alloc(step, p.gathered_bytes, GATHERED, "copy_out", once=once)
            )
        if cast is not None:
            self.free(step, cast)

    def _reshard(self, step: MicroStep, group: Group) -> None:
        """`to_sharded`: the whole parameters' storages are resized to nothing."""
        for buffer in group.unsharded:
            self.free(step, buffer)
        group.unsharded = []

    def _drop_held(self, step: MicroStep) -> None:
        if self.held is not None:
            self.free(step, self.held)
            self.held = None

    def _stays_whole(self, group: Group) -> bool:
        """Without a backward pass nothing shards again what forward left whole."""
        return not self.training and not group.reshards

    # -- reduce-scatter ---------------------------------------------------------------------

    def _reduce(self, step: MicroStep, group: Group, reduced: Sequence[Sharded]) -> None:
        """`foreach_reduce`: gradients into one tensor, its shard out of it.

        A loop's variable holds the last gradient to the end of the function, where there are
        several ranks.
        """
        itemsize = self.policy.reduce_bytes or reduced[0].whole.itemsize
        output_bytes = sum(p.shard.numel for p in reduced) * itemsize
        self.reduce_scatter_input = step.alloc(
            output_bytes * self.shards, place(BUFFERS, "FSDP.reduce_scatter", "backward")
        )
        gradients = [group.gradients.pop(p.whole.name) for p in reduced]
        last = [gradients.pop()] if self.shards > 1 else []
        free_list(step, gradients)
        output = step.alloc(
            output_bytes, place("gradients", "FSDP.reduce_scatter", "backward"), REDUCE_SCATTER
        )
        output = self._in_own_type(step, group, output, output_bytes, itemsize, reduced)
        self.take(step, group, output, reduced)
        free_list(step, last)

    def take(self, step: MicroStep, group: Group, output: int, reduced: Sequence[Sharded]) -> None:
        """The shards' gradients are views of what was reduced."""
        for p in reduced:
            p.shard.gradient = output
        if group.all_reduce_input != output:
            step.keep(output)

    def _in_own_type(
        self,
        step: MicroStep,
        group: Group,
        output: int,
        output_bytes: int,
        itemsize: int,
        reduced: Sequence[Sharded],
    ) -> int:
        """The cast to the shards' type; HSDP holds what it has all-reduced until backward ends."""
        if self.replicated:
            group.all_reduce_input = output
        stored = reduced[0].shard.itemsize
        if stored == itemsize:
            return output
        stream = ALL_REDUCE if self.replicated else REDUCE_SCATTER
        where = place("gradients", "FSDP.cast_gradients", "backward")
        cast = step.alloc(output_bytes // itemsize * stored, where, stream)
        if self.replicated:
            step.timeline.recategorise(output, BUFFERS)
        else:
            step.free(output)
        return cast

    def _let_go(self, step: MicroStep, group: Group) -> None:
        """What HSDP held: an input of the cast dies, the gradients themselves live on."""
        held, group.all_reduce_input = group.all_reduce_input, -1
        if any(p.shard.gradient == held for p in group.parameters):
            step.keep(held)
        else:
            step.free(held)

    def _drop_reduce_scatter_input(self, step: MicroStep) -> None:
        if self.reduce_scatter_input >= 0:
            step.free(self.reduce_scatter_input)
            self.reduce_scatter_input = -1

    # -- storages ---------------------------------------------------------------------------

    def alloc(
        self,
        step: MicroStep,
        num_bytes: int,
        category: str,
        op: str,
        *,
        once: bool,
        stream: int = COMPUTE,
    ) -> Buffer:
        """A buffer, in every micro-step or in the first alone."""
        where = place(category, f"FSDP.{op}", step.phases[-1][1])
        make = step.alloc_once if once else step.alloc
        return Buffer(make(num_bytes, where, stream), once)

    def free(self, step: MicroStep, buffer: Buffer) -> None:
        """Frees what `alloc` made."""
        if buffer.storage < 0:
            return
        if buffer.once:
            step.free_once(buffer.storage)
        else:
            step.free(buffer.storage)


def _reaches_first_layer(strategy: Strategy, parameters: Sequence[Parameter]) -> bool:
    """Whether the first layer's input has a gradient; peft asks for one where it recomputes."""
    if strategy.method != "full" and strategy.recompute != "none":
        return True
    return any(
        p.trainable and p.category == "weights.embeddings" for p in parameters if not p.layer
    )
