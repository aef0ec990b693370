"""The optimizer phase of a step as events: states, master copies, temporaries, in real order.

The same phase runs for real in `rigsize.run` (`run/step.py` `train_step`, `run/optimizers.py`);
each implementation's own allocations are in `program/optimizer_steps.py`.

The recipe **fp16-master**: fp16 weights and gradients, one fp32 master copy a parameter, made once
before the first step. At the step each fp16 gradient is copied to the fp32 gradient of its master
(the fp16 one stays); unscaling, clipping and the optimizer work on the masters, with fp32 states;
the masters are copied back into the weights in place; `zero_grad` frees the fp32 gradients, then
the fp16 ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rigsize.program.clipping import LossScaler, clip_events, zero_grad_events
from rigsize.program.foreach import FP32_BYTES, Device, place
from rigsize.program.optimizer_steps import (
    CODE_TABLE_BYTES,
    MIN_8BIT_NUMEL,
    STEPS,
    ColumnScratch,
    OptimizerState,
    Step,
    product,
    state_sizes,
)
from rigsize.program.timeline import Parameter, Timeline, trainable
from rigsize.spec.strategy import Strategy

__all__ = ["Optimizer", "OptimizerState", "make_optimizer", "optimizer_phase", "state_bytes"]


@dataclass(slots=True, kw_only=True)
class Optimizer:
    """An optimizer on a timeline; it keeps the storage ids of its states between steps."""

    name: str
    """One of `spec.strategy.OPTIMIZERS`."""
    has_masters: bool = False
    """Steps on fp32 master copies (the recipe fp16-master)."""
    column_scratch: ColumnScratch | None = None
    """What the card's kernels stage for a norm over rows (Adafactor); None leaves it out."""
    state: OptimizerState = field(default_factory=OptimizerState)

    def setup(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """Makes the master copies, as the constructor does; a later call makes only new ones."""
        if not self.has_masters:
            return
        masters = self.state.masters
        where = place("master_copy", "fp16-master.clone", "load")
        for p in parameters:
            if p.trainable and p.name not in masters:
                storage = timeline.alloc(p.numel * FP32_BYTES, where)
                masters[p.name] = Parameter(p.name, p.shape, FP32_BYTES, True, storage)

    def collect_gradients(
        self, timeline: Timeline, parameters: Sequence[Parameter]
    ) -> list[Parameter]:
        """What is unscaled, clipped and stepped on: the masters with fresh fp32 gradients.

        Without master copies, the parameters themselves. A gradient that was collected stays.
        """
        found = trainable(parameters)
        if not self.has_masters:
            return found
        self.setup(timeline, parameters)
        masters = [self.state.masters[parameter.name] for parameter in found]
        where = place("temporaries", "fp16-master.collect_gradients")
        for master in masters:
            if master.gradient < 0:
                master.gradient = timeline.alloc(master.num_bytes, where)
        return masters

    def step(self, timeline: Timeline, parameters: Sequence[Parameter], *, device: Device) -> None:
        """`optimizer.step()`: the first call makes the states, every call its temporaries."""
        stepped = self.collect_gradients(timeline, parameters)
        call = Step(self.name, timeline, self.state, device, self.column_scratch)
        STEPS[self.name](call, stepped)

    def zero_grad(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """`optimizer.zero_grad(set_to_none=True)`: the masters' gradients, then the weights'."""
        zero_grad_events(timeline, list(self.state.masters.values()))
        zero_grad_events(timeline, parameters)


def make_optimizer(strategy: Strategy, *, column_scratch: ColumnScratch | None = None) -> Optimizer:
    """The optimizer that `rigsize.run.optimizers.make_torch_optimizer` makes for real."""
    return Optimizer(
        name=strategy.optimizer,
        has_masters=strategy.policy.master_bytes > 0,
        column_scratch=column_scratch,
    )


def optimizer_phase(
    timeline: Timeline,
    optimizer: Optimizer,
    parameters: Sequence[Parameter],
    *,
    device: Device,
    clip: bool,
    scaler: LossScaler | None = None,
) -> None:
    """From the last backward to the end of the step, in the order of `run.step.train_step`."""
    timeline.mark("optimizer")
    stepped = optimizer.collect_gradients(timeline, parameters)
    if scaler is not None:
        scaler.unscale(timeline)
    if clip:
        clip_events(timeline, stepped, device=device)
    optimizer.step(timeline, parameters, device=device)
    if scaler is not None:
        scaler.update(timeline)
    timeline.mark("zero_grad")
    optimizer.zero_grad(timeline, parameters)


def state_bytes(
    optimizer_name: str,
    shapes: Iterable[tuple[int, ...]],
    itemsize: int,
    *,
    device: Device = "cuda",
) -> int:
    """Bytes of all states on the device, master copies apart.

    `itemsize` is of the tensors that are stepped on: 4 with fp32 master copies. On the CPU the
    host's step counters count too.
    """
    shapes = list(shapes)
    sizes = (sum(state_sizes(optimizer_name, shape, itemsize, device)) for shape in shapes)
    needs_tables = optimizer_name == "adamw-8bit" and any(
        product(shape) >= MIN_8BIT_NUMEL for shape in shapes
    )
    return sum(sizes) + (2 * CODE_TABLE_BYTES if needs_tables else 0)
