"""The inference table that the article announces, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.report.document import unknown
from rigsize.report.time_document import quantiles
from rigsize.units import GIB

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.seed_inference import InferenceRow

__all__ = ["inference_document", "inference_text"]

NOT_PUBLISHED = "the article announces this table and does not print it"


def inference_text(
    rows: Sequence[InferenceRow], recipe: str, cards: Mapping[int, str]
) -> Iterator[RenderableType]:
    """A line a model and precision, a column a batch: device peak in GiB and size class in GB."""
    from rigsize.report.console import table

    batches = list(dict.fromkeys(row.batch for row in rows))
    columns = [
        "model",
        "precision",
        "weights\nGiB",
        *(f"batch {batch}\nGiB (GB)" for batch in batches),
    ]
    made = table("XLM-RoBERTa, inference, 3 classes, 128 tokens", *columns, right=columns[2:])
    columns = ["model", "precision", *(f"batch {batch}\ntweets/s" for batch in batches)]
    rates = table("Tweets a second, p50 (p10 to p90)", *columns, right=columns[2:])
    lines: dict[tuple[str, str], list[InferenceRow]] = {}
    for row in rows:
        lines.setdefault((row.model, row.precision), []).append(row)
    for (model, precision), of_batches in lines.items():
        weights = f"{of_batches[0].weight_bytes / GIB:.2f}"
        name = model.rpartition("/")[2].removeprefix("xlm-roberta-")
        made.add_row(name, precision, weights, *(_cell(row) for row in of_batches))
        rates.add_row(name, precision, *(_rate(row) for row in of_batches))
    yield made
    yield rates
    yield (
        "Device peak (reserved and context), in brackets the size class: the smallest card on which"
        " the replay ends. Rates are of one copy of the model that never waits for texts."
    )
    yield f"recipe: {recipe}"
    yield "classes: " + ", ".join(f"{size} GB {card}" for size, card in cards.items())


def _cell(row: InferenceRow) -> str:
    size = "> 80" if row.size_class_gb is None else str(row.size_class_gb)
    return f"{row.device_peak_bytes / GIB:.2f} ({size})"


def _rate(row: InferenceRow) -> str:
    if row.texts_per_s is None:
        return "unknown"
    low, mid, high = (f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in row.texts_per_s)
    return f"{mid} ({low} to {high})"


def inference_document(
    rows: Sequence[InferenceRow], recipe: str, cards: Mapping[int, str]
) -> dict[str, Any]:
    """By the contract's `rows[]`, with nothing published."""
    return {
        "rows": [_row(row) for row in rows],
        "recipe": recipe,
        "size_class_cards": {str(size): card for size, card in cards.items()},
        "footnotes": [],
    }


def _row(row: InferenceRow) -> dict[str, Any]:
    from rigsize.seed_inference import CARD

    size = row.size_class_gb
    predicted: dict[str, Any] = {
        "weight_bytes": row.weight_bytes,
        "allocated_peak_bytes": row.allocated_peak_bytes,
        "device_peak_bytes": row.device_peak_bytes,
    }
    predicted |= (
        unknown("size_class_gb", "past the largest class")
        if size is None
        else {"size_class_gb": size}
    )
    predicted |= (
        unknown("texts_per_s", row.reason)
        if row.texts_per_s is None
        else {"texts_per_s": quantiles(row.texts_per_s), "bound_by": row.bound_by}
    )
    return {
        "table": "inference",
        "model": row.model,
        "precision": row.precision,
        "gpu": CARD,
        "num_gpus": 1,
        "micro_batch": row.batch,
        "accumulation": 1,
        **unknown("published", NOT_PUBLISHED),
        "predicted": predicted,
        **unknown("verdict", NOT_PUBLISHED),
        "note": "",
    }
