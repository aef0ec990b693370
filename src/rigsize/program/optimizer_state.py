"""What an optimizer's step works on: the timeline, the states so far, the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rigsize.program.foreach import Device, place
from rigsize.program.optimizer_sizes import state_sizes
from rigsize.program.timeline import Parameter, Timeline

__all__ = ["ColumnScratch", "OptimizerState", "Step", "StepFunction", "assign"]

ColumnScratch = Callable[[int, int], int]
"""(rows, columns) of a reduction over rows to the bytes a card's kernel stages."""


@dataclass(slots=True)
class OptimizerState:
    """What lives from one step to the next, as storage ids."""

    states: dict[str, list[int]] = field(default_factory=dict)
    """By parameter name, in the order of allocation."""
    shared: list[int] = field(default_factory=list)
    """Buffers of the implementation that no parameter owns: the 8-bit code tables."""
    masters: dict[str, Parameter] = field(default_factory=dict)
    """By parameter name: the fp32 copies of the recipe fp16-master."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of `optimizer.step()`."""

    name: str
    """The optimizer's name in `spec.optimizers.OPTIMIZERS`."""
    timeline: Timeline
    state: OptimizerState
    device: Device
    column_scratch: ColumnScratch | None = None

    def make_states(self, parameter: Parameter) -> bool:
        """The states of one parameter, unless it has them; whether it had none."""
        if parameter.name in self.state.states:
            return False
        where = place("optimizer_states", f"{self.name}.state")
        shape, itemsize = parameter.shape, parameter.itemsize
        sizes = state_sizes(self.name, shape, itemsize, self.device, parameter.name)
        self.state.states[parameter.name] = [self.timeline.alloc(size, where) for size in sizes]
        return True

    def temporary(self, num_bytes: int, op: str) -> int:
        """A temporary of the operator `op`."""
        return self.timeline.alloc(num_bytes, place("temporaries", f"{self.name}.{op}"))

    def scratch(self, num_bytes: int, op: str) -> None:
        """A temporary that dies in the statement that makes it."""
        self.timeline.scratch(num_bytes, place("temporaries", f"{self.name}.{op}"))

    def staged_columns(self, shape: tuple[int, ...], op: str) -> None:
        """What a card stages for a reduction over the rows of one matrix.

        As every sum over rows does (`kernel_scratch.column_sum_scratch_bytes`).
        """
        alone = len(shape) == 2 or (len(shape) > 2 and set(shape[:-2]) == {1})
        if self.device == "cuda" and self.column_scratch is not None and alone:
            self.scratch(self.column_scratch(shape[-2], shape[-1]), op)


StepFunction = Callable[[Step, Sequence[Parameter]], None]


def assign(step: Step, held: dict[str, int], name: str, storage: int) -> None:
    """A local name gets a new tensor: the one it held dies after the new one was made."""
    previous = held.get(name, -1)
    held[name] = storage
    if previous >= 0:
        step.timeline.free(previous)
