"""Where a run is, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rigsize.train.parallel import World
from rigsize.train.setup import Plan
from rigsize.train.watch import Pace, Watch

__all__ = ["EARLY", "FINISHED", "INTERRUPTED", "Outcome", "State"]

FINISHED, EARLY, INTERRUPTED = "finished", "stopped early", "interrupted"


@dataclass(slots=True)
class State:
    """Where a run is; what a checkpoint keeps beside tensors."""

    step: int = 0
    """Optimizer steps made."""
    epoch: int = 0
    window: int = 0
    """The next one of the epoch."""
    best: float | None = None
    """Of the task's main metric."""
    worse: int = 0
    """Evaluations since the best."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    plan: Plan
    state: State
    ended: str
    """finished, stopped early or interrupted."""
    exit_code: int
    world: World
    pace: Pace
    watch: Watch
    losses: tuple[float, ...]
    """As logged."""
    model_folder: Path | None
    """Where the trained model was exported to."""
    resumed_step: int
    micro_batches: int
    """Made by this rank since it started or resumed."""
    notes: tuple[str, ...]
