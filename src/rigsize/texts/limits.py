"""What texts are prepared for: the task, the lengths, the labels a head has."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.spec.checks import integer, one_of
from rigsize.spec.workload import MAX_LABELS, MAX_LENGTH, TASKS

__all__ = ["LABELLED", "PAIRED", "Limits"]

LABELLED = ("sequence-classification", "token-classification")
"""Tasks that read a label column."""
PAIRED = ("seq2seq-lm", "embedding")
"""Tasks that read two texts a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a text is cut to, and what its labels may be."""

    task: str
    max_length: int
    """Tokens a text, special ones included."""
    max_target_length: int | None = None
    """Tokens a target or positive; as many as the text where None."""
    num_labels: int | None = None
    """Classes of the head; None takes as many as the data has."""
    label_names: tuple[str, ...] | None = None
    """By id, where the training set or the model decides them."""

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        integer("max-length", self.max_length, 1, MAX_LENGTH)
        if self.max_target_length is not None:
            integer("max-target-length", self.max_target_length, 1, MAX_LENGTH)
        if self.num_labels is not None:
            integer("num-labels", self.num_labels, 1, MAX_LABELS)

    @property
    def second_length(self) -> int:
        """The limit of targets and positives."""
        return self.max_target_length or self.max_length
