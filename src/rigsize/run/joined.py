"""Several optimizers behind one: their parameter groups side by side, one state for all."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rigsize.spec.optimizers import muon_takes, no_matrix_for_muon

__all__ = ["JoinedOptimizer", "muon_and_adamw"]

Named = Sequence[tuple[str, Tensor]]


class JoinedOptimizer(torch.optim.Optimizer):
    """Steps with each of its parts in turn; schedulers, scalers and checkpoints see one optimizer.

    The groups are the parts' own, one after another, and so are the states: what is saved and
    loaded goes through each part, which knows the dtypes of its states.
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([dict(group) for group in groups], {})
        self._share()

    def _share(self) -> None:
        """The very groups of the parts, and one dictionary of states that all of them write."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Every part's step."""
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states, their parameters counted through."""
        joined: dict[str, Any] = {"state": {}, "param_groups": []}
        for part, first in zip(self.parts, self._firsts(), strict=True):
            own = {p for group in part.param_groups for p in group["params"]}
            part.state = defaultdict(dict, {p: s for p, s in self.state.items() if p in own})
            saved = part.state_dict()
            part.state = self.state
            joined["state"] |= {first + i: state for i, state in saved["state"].items()}
            for group in saved["param_groups"]:
                moved = [first + i for i in group["params"]]
                joined["param_groups"].append({**group, "params": moved})
        return joined

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        groups, states = list(state_dict["param_groups"]), state_dict["state"]
        self.state.clear()
        for part in self.parts:
            count = len(part.param_groups)
            own, groups = groups[:count], groups[count:]
            keys = [key for group in own for key in group["params"]]  # numbers, or DCP's names
            part.state = defaultdict(dict)
            part.load_state_dict(
                {"state": {key: states[key] for key in keys if key in states}, "param_groups": own}
            )
        self._share()

    def _firsts(self) -> list[int]:
        """The number of each part's first parameter."""
        return [0, *itertools.accumulate(_count(part) for part in self.parts)][:-1]


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)


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
