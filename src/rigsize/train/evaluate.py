"""How well it does on texts it has not seen: the task's usual metrics, the same on any ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rigsize.run.heads import IGNORED
from rigsize.run.step import StepRecipe, forward
from rigsize.texts.tokenised import TokenisedTexts
from rigsize.train.collate import Collator, MicroBatch
from rigsize.train.parallel import World, reshard

__all__ = ["HIGHER_IS_BETTER", "Evaluator", "classification_metrics", "main_metric"]

EVALUATION_EPOCH = 2**31
"""Its masked positions are the same at every evaluation, and no training epoch's."""
HIGHER_IS_BETTER = frozenset({"accuracy", "macro_f1"})
_LARGEST_EXPONENT = 700.0


def main_metric(task: str) -> str:
    """What early stopping and the best checkpoint go by."""
    classified = task in ("sequence-classification", "token-classification")
    return "macro_f1" if classified else "loss"


def classification_metrics(confusion: npt.NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and macro-F1 of a confusion matrix [true, predicted].

    Macro-F1 is the mean over the classes that occur, in truth or prediction, of their F1, as
    scikit-learn's `f1_score(average="macro")` has it.
    """
    hits = np.diag(confusion).astype(float)
    occurring = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = 2 * hits[occurring > 0] / occurring[occurring > 0]
    return {"accuracy": float(hits.sum() / confusion.sum()), "macro_f1": float(f1.mean())}


class Evaluator:
    """Runs the evaluation set through the model."""

    def __init__(
        self,
        texts: TokenisedTexts,
        indices: npt.NDArray[np.int64],
        collator: Collator,
        world: World,
        micro_batch: int,
    ) -> None:
        self._texts, self._collator, self._world = texts, collator, world
        self._classes = max(1, collator.workload.num_labels)
        lengths = texts.lengths[indices]
        ordered = indices[np.argsort(-lengths, kind="stable")]
        self._batches = [ordered[i : i + micro_batch] for i in range(0, len(ordered), micro_batch)]

    def __call__(self, model: torch.nn.Module, recipe: StepRecipe) -> dict[str, float]:
        """`loss`, and by task `accuracy`, `macro_f1` or `perplexity`; the same on every rank."""
        was_training = model.training
        model.eval()
        confusion = np.zeros((self._classes, self._classes), dtype=np.int64)
        total = count = 0.0
        with torch.no_grad():
            for batch, counts in self._mine():
                with recipe.autocast():
                    out = forward(model, batch.to(self._world.device), recipe)
                if counts:
                    total += float(out["loss"]) * batch.sizes.labelled
                    count += batch.sizes.labelled
                    self._count(confusion, batch, out)
        reshard(model)
        model.train(was_training)
        return self._metrics(total, count, confusion)

    def _mine(self) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's batches; every rank runs as many, the surplus without counting."""
        ranks, rank = self._world.size, self._world.rank
        for start in range(0, len(self._batches), ranks):
            number = start + rank
            counts = number < len(self._batches)
            indices = self._batches[number if counts else 0]
            examples = [self._texts.example(int(i)) for i in indices]
            yield self._collator(indices, examples, EVALUATION_EPOCH), counts

    def _count(self, confusion: npt.NDArray[np.int64], batch: MicroBatch, out: Any) -> None:
        if not self._classifies:
            return
        predicted = out["logits"].argmax(-1).view(-1).cpu().numpy()
        true = batch.inputs["labels"].view(-1).numpy()
        kept = true != IGNORED
        np.add.at(confusion, (true[kept], predicted[kept]), 1)

    @property
    def _classifies(self) -> bool:
        return main_metric(self._collator.workload.task) == "macro_f1"

    def _metrics(
        self, total: float, count: float, confusion: npt.NDArray[np.int64]
    ) -> dict[str, float]:
        total, count, *cells = self._world.sum(total, count, *confusion.reshape(-1).tolist())
        metrics = {"loss": total / max(count, 1.0)}
        if self._classifies:
            whole = np.array(cells, dtype=np.int64).reshape(confusion.shape)
            return metrics | classification_metrics(whole)
        if self._collator.workload.predicts_tokens:
            metrics["perplexity"] = math.exp(min(metrics["loss"], _LARGEST_EXPONENT))
        return metrics
