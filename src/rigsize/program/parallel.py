"""Where ranks change a device's step: the seams of `program.build`, and one device's way there.

A strategy is a subclass of `Ranks` in a module of its own that overrides what it changes; it
appends to the timeline (load, optimizer) or to the micro-step, in the order of the host's calls,
for the order of the host decides what is alive. `ranks_of` picks it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rigsize.program.clipping import LossScaler
from rigsize.program.foreach import Device
from rigsize.program.mesh import Mesh
from rigsize.program.micro_step import MicroStep
from rigsize.program.optimizer import Optimizer, optimizer_phase
from rigsize.program.optimizer_state import ColumnScratch
from rigsize.program.timeline import Parameter, Place, Timeline
from rigsize.spec.strategy import FSDPS, Strategy

__all__ = ["OptimizerCall", "Ranks", "ranks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerCall:
    """What an optimizer phase is made of, beside the parameters."""

    optimizer: Optimizer
    device: Device
    clip: bool
    scaler: LossScaler | None
    first: bool
    """The first step ever, which makes the states."""


class Ranks:
    """One device, and what every strategy does unless it says otherwise.

    The calls of one build: `load` for each parameter in registration order, then `loaded`. The
    micro-step: `begin` and `end` around each phase (forward, backward, after_backward), in them
    `enter` and `leave` around the code of each layer (from 1, in the order in which they run, once
    a run), and `gradient` when a parameter's gradient of this micro-batch is complete. Then
    `stepped`, and for the first and for every later step `optimize`.
    """

    point: Mapping[str, int]
    """The sizes of the micro-batch, {B, S, ...}; known before the first call."""
    follows_modules = False
    """Whether `course` and `module` are wanted."""
    has_unused: bool
    """Some trainable parameters get no gradient; known before the first call."""

    def __init__(self, strategy: Strategy, mesh: Mesh, *, device: Device, training: bool) -> None:
        self.strategy, self.mesh, self.device, self.training = strategy, mesh, device, training
        self.column_scratch: ColumnScratch | None = None
        """What the card stages for a sum over rows, where an optimizer asks; the build sets it."""

    # -- load -------------------------------------------------------------------------------

    def load(self, timeline: Timeline, parameter: Parameter, place: Place) -> int:
        """Allocates what this rank holds of a parameter, for good; returns its storage."""
        return timeline.alloc(parameter.num_bytes, place)

    def loaded(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """All parameters, buffers and the batch are there: what a wrapper makes at construction."""

    def constructed(
        self, timeline: Timeline, parameters: Sequence[Parameter], buffers: Sequence[Parameter]
    ) -> None:
        """The same, of a wrapper that must know in which order gradients come.

        Called when the micro-step is built; what it appends follows `loaded`.
        """

    def second(self, timeline: Timeline) -> None:
        """What happens once, between the first step and the second."""

    # -- micro-step -------------------------------------------------------------------------

    def course(self, modules: Sequence[tuple[str, str]]) -> None:
        """The micro-step's (phase, module) in their order, before it is built."""

    def module(self, step: MicroStep) -> None:
        """The next module of the course begins."""

    def begin(self, step: MicroStep, phase: str) -> None:
        """The whole model begins its forward pass, backward its own."""

    def end(self, step: MicroStep, phase: str) -> None:
        """The forward pass has its output; backward has run all of its graph."""

    def enter(self, step: MicroStep, phase: str, layer: int) -> None:
        """A layer's code begins."""

    def leave(self, step: MicroStep, phase: str, layer: int) -> None:
        """A layer's code has ended."""

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """A parameter's gradient is complete: by default `.grad`, or added to it and freed."""
        step.keep(storage)
        step.timeline.recategorise(storage, "gradients")
        parameter.gradient = storage

    # -- optimizer --------------------------------------------------------------------------

    def stepped(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """What this rank's optimizer is given, with the storages of their gradients."""
        return list(parameters)

    def optimize(
        self, timeline: Timeline, stepped: Sequence[Parameter], call: OptimizerCall
    ) -> None:
        """From the last backward to the end of the step."""
        optimizer_phase(
            timeline,
            call.optimizer,
            stepped,
            device=call.device,
            clip=call.clip,
            scaler=call.scaler,
        )


_WAYS = {
    "ddp": ("rigsize.program.ddp", "Ddp"),
    "fsdp": ("rigsize.program.fsdp", "FullySharded"),
    "hsdp": ("rigsize.program.fsdp", "FullySharded"),
    "offloaded shards": ("rigsize.program.fsdp_offload", "OffloadedShards"),
    "in backward": ("rigsize.program.in_backward", "SteppedInBackward"),
    "zero1": ("rigsize.program.zero", "Zero"),
    "zero2": ("rigsize.program.zero", "Zero"),
    "zero3": ("rigsize.program.zero3", "Zero3"),
}
"""Module and subclass by `--parallel`, of FSDP2 with its offload, and of an optimizer in backward;
imported when asked for, as each imports this one."""


def _way(strategy: Strategy, *, training: bool) -> str:
    if strategy.optimizer_in_backward and training:
        return "in backward"
    if strategy.offload == "cpu" and strategy.parallel in FSDPS:
        return "offloaded shards"
    return strategy.parallel


def ranks_of(strategy: Strategy, mesh: Mesh, *, device: Device, training: bool) -> Ranks:
    """The strategy's way of sharing the step."""
    kind = _WAYS.get(_way(strategy, training=training))
    if kind is not None and (training or strategy.parallel != "ddp"):
        module, name = kind
        chosen: type[Ranks] = getattr(importlib.import_module(module), name)
        return chosen(strategy, mesh, device=device, training=training)
    return Ranks(strategy, mesh, device=device, training=training)
