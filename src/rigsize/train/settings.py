"""What a training run is beyond Workload and Strategy: data, schedule, evaluation, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rigsize.errors import SpecError
from rigsize.models import ModelSource
from rigsize.spec import Strategy, Workload
from rigsize.spec.checks import integer, one_of
from rigsize.texts.source import DataSource

__all__ = ["INITS", "PROGRESSES", "RESUMES", "SCHEDULES", "TrainJob", "TrainSettings"]

SCHEDULES = ("linear", "cosine", "constant")
INITS = ("pretrained", "random")
RESUMES = ("never", "auto", "must")
PROGRESSES = ("auto", "rich", "plain", "json", "quiet")
MOST_STEPS = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How to learn, how often to look, where to write."""

    out: Path
    """The run's folder: log, checkpoints, Record, exported model."""
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    schedule: str = "linear"
    """The decay behind the warm-up: linear and cosine reach 0 at the last step."""
    warmup_share: float = 0.1
    """Of all steps, in which the learning rate rises from 0."""
    max_steps: int | None = None
    """Optimizer steps in all; None for the epochs."""
    global_batch: int | None = None
    """Texts an optimizer step; None for micro-batch x accumulation x ranks."""
    group_by_length: bool = False
    """Texts of like lengths share a step: less padding, other batches."""
    eval_share: float = 0.0
    """Held out of the data, where there is no evaluation file."""
    eval_every: int | None = None
    """Steps; None for once an epoch."""
    save_every: int | None = None
    """Steps; None for `save_minutes`."""
    save_minutes: float = 30.0
    keep: int = 2
    """Checkpoints."""
    checkpoint: bool = True
    """Write checkpoints at all; without them nothing can be resumed."""
    patience: int | None = None
    """Evaluations without improvement before it stops; None never stops early."""
    log_every: int = 10
    """Steps; each loss that is read waits for the device."""
    seed: int = 0
    init: str = "pretrained"
    """Weights of the folder or hub id, or `random`."""
    resume: str = "never"
    """auto takes up what is there, must insists on it, never refuses a folder that holds a run."""
    progress: str = "auto"
    tensorboard: bool = False
    export: bool = True
    """Write the model with `save_pretrained` at the end."""
    predict: bool = True
    """End with the prediction beside the measurement."""

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("init", self.init, INITS)
        one_of("resume", self.resume, RESUMES)
        one_of("progress", self.progress, PROGRESSES)
        integer("seed", self.seed, 0, 2**63 - 1)
        for field in ("max_steps", "global_batch", "eval_every", "save_every", "patience"):
            value = getattr(self, field)
            if value is not None:
                integer(field.replace("_", "-"), value, 1, MOST_STEPS)
        integer("log-every", self.log_every, 1, MOST_STEPS)
        integer("keep", self.keep, 1, 1000)
        _within("learning-rate", self.learning_rate, 0, 1e3)
        _within("weight-decay", self.weight_decay, 0, 1e3)
        _within("warmup-share", self.warmup_share, 0, 1)
        _within("eval-share", self.eval_share, 0, 0.99)
        _within("save-minutes", self.save_minutes, 0, 1e6)


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SpecError(field, value, "not in range", allowed=(f"{low:g} to {high:g}",))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """All that a run is made of; every rank parses the same."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    settings: TrainSettings
    data: DataSource
    eval_data: DataSource | None = None
    tokenizer: str | None = None
    """Folder or hub id; None for the model's own."""
    device: str = "cpu"
    command: str = ""
    labels_asked: int | None = None
    """`--num-labels`; None for as many as the data has."""
