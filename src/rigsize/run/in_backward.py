"""The real optimizer in backward: an optimizer a parameter, each stepping in a gradient hook.

`program/in_backward.py` gives the same steps as events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rigsize.run.joined import JoinedOptimizer

__all__ = ["SteppedInBackward"]


class SteppedInBackward(JoinedOptimizer):
    """Steps on each parameter as soon as `AccumulateGrad` has its gradient, and frees it.

    `step` still steps on whatever has a gradient, which after a backward pass nothing has.

    Sources: PyTorch's tutorial "How to save memory by fusing the optimizer step into the backward
    pass"; torchtune's `register_optim_in_bwd_hooks` (torchtune/training/memory.py).
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        build: Callable[[Sequence[tuple[str, Tensor]]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(build([pair]) for pair in named)
        for (_, parameter), part in zip(named, self.parts, strict=True):
            parameter.register_post_accumulate_grad_hook(_stepping(part))


def _stepping(part: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(_parameter: Tensor) -> Any:
        part.step()
        part.zero_grad(set_to_none=True)

    return step
