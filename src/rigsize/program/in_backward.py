"""An optimizer in backward: each parameter is stepped on when its gradient is there.

Mirrors `run/in_backward.py`, and with it PyTorch's tutorial "How to save memory by fusing the
optimizer step into the backward pass" and torchtune's `register_optim_in_bwd_hooks`: an optimizer
a parameter, in a hook behind `AccumulateGrad`, then `zero_grad`. The engine still holds the
gradient while the hook runs (torch/csrc/autograd/functions/accumulate_grad.h, `new_grad`), so it
dies behind the step.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.micro_step import MicroStep
from rigsize.program.optimizer import make_optimizer
from rigsize.program.parallel import OptimizerCall, Ranks
from rigsize.program.timeline import Parameter, Timeline

__all__ = ["SteppedInBackward"]


class SteppedInBackward(Ranks):
    """One device whose gradients never live beside one another."""

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """The step of one parameter, and the end of its gradient.

        The very first makes the states; a code table that many parameters share in one optimizer
        is here each parameter's own.
        """
        timeline = step.timeline
        timeline.recategorise(storage, "gradients")
        optimizer = make_optimizer(self.strategy, column_scratch=self.column_scratch)
        start = len(timeline.operations)
        parameter.gradient = storage
        optimizer.step(timeline, [parameter], device=self.device)
        parameter.gradient = -1
        operations = timeline.operations[start:]
        del timeline.operations[start:]
        freed = {~operation for operation in operations if operation < 0}
        for operation in operations:
            if operation >= 0 and operation not in freed:
                step.once.append((len(step.operations), operation))
            else:
                step.operations.append(operation)
        step.free(storage)

    def optimize(
        self, timeline: Timeline, _stepped: Sequence[Parameter], _call: OptimizerCall
    ) -> None:
        """Nothing is left to do."""
        timeline.mark("optimizer")
        timeline.mark("zero_grad")
