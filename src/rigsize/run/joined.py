"""Several optimizers behind one: their parameter groups side by side, one state for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rigsize.spec.optimizers import muon_takes, no_matrix_for_muon

__all__ = ["JoinedOptimizer", "muon_and_adamw"]

Named = Sequence[tuple[str, Tensor]]


class JoinedOptimizer(torch.optim.Optimizer):
    """Steps with each of its parts in turn; schedulers, scalers and checkpoints see one optimizer.

    Part i has the groups that it was made with, from a place in `param_groups` that never changes;
    what was loaded into this optimizer reaches it, because a part looks here before every step.
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([dict(group) for group in groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Every part's step."""
        self._share()
        for part in self.parts:
            part.step(closure)


def muon_and_adamw(named: Named, lr: float, weight_decay: float | None) -> torch.optim.Optimizer:
    """Muon on the matrices of the layers, fused AdamW on the rest, at one learning rate.

    `match_rms_adamw` scales Muon's update so that AdamW's rate and decay serve it too (Liu et al.
    2025, Muon is Scalable for LLM Training, section 2.2).
    """
    decay: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    matrices = [p for name, p in named if muon_takes(name, p.shape)]
    rest = [p for name, p in named if not muon_takes(name, p.shape)]
    if not matrices:
        raise no_matrix_for_muon()
    makers: list[tuple[list[Tensor], Callable[[list[Tensor]], torch.optim.Optimizer]]] = [
        (matrices, lambda p: torch.optim.Muon(p, lr=lr, adjust_lr_fn="match_rms_adamw", **decay)),
        (rest, lambda p: torch.optim.AdamW(p, lr=lr, fused=True, **decay)),
    ]
    return JoinedOptimizer(make(parameters) for parameters, make in makers if parameters)
