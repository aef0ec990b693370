"""The seed's two tables, predicted beside published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.report.document import NOT_YET, unknown
from rigsize.report.seed_hours import hours_document, hours_text, reading_document
from rigsize.units import GB, GIB

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from rigsize.seed_hours import Reading
    from rigsize.seed_table import Reproduction, TableRow

__all__ = ["table_document", "table_text"]

_TITLES = {
    "fine-tuning": "XLM-RoBERTa, fine-tuning, 3 classes, 128 tokens",
    "pre-training": "XLM-RoBERTa, pre-training (masked LM), 128 tokens",
}
_COLUMNS = (
    *("model", "GPUs", "batch\nx acc.", "published\nGB", "predicted\nGB", "peak\nGiB"),
    *("host GB, published\n/ predicted", "verdict"),
)
_NUMBERS = _COLUMNS[2:7]


def table_text(
    rows: Sequence[TableRow],
    recipe: str,
    footnotes: Sequence[str],
    cards: Mapping[int, str],
    fitted: Reading | None = None,
) -> Iterator[RenderableType]:
    """One table each for fine-tuning and pre-training, then what belongs to them."""
    notes: list[str] = []
    for name in dict.fromkeys(row.table for row in rows):
        made = _empty(_TITLES.get(name, name))
        for row in rows:
            if row.table == name:
                made.add_row(*_cells(row, notes))
        yield made
    counts = dict.fromkeys((row.verdict for row in rows), 0)
    for row in rows:
        counts[row.verdict] += 1
    yield ", ".join(f"{count} {_words(verdict)}" for verdict, count in counts.items()) + "."
    yield (
        "Published and predicted are size classes: the smallest card on which the replay ends."
        " The peak is of the device on the article's own card. Host memory is of the node, all its"
        " ranks together; nothing is tuned on the article's column."
    )
    yield "\n".join(f"[{number}] {note}" for number, note in enumerate(notes, start=1))
    yield f"recipe: {recipe}"
    yield "classes: " + ", ".join(f"{size} GB {card}" for size, card in cards.items())
    yield "\n".join(f"- {footnote}" for footnote in footnotes)
    yield from hours_text(rows, fitted)


def _empty(title: str) -> Table:
    from rigsize.report.console import table

    return table(title, *_COLUMNS, right=_NUMBERS)


def _cells(row: TableRow, notes: list[str]) -> list[str]:
    """A row; its note goes to the numbered ones."""
    return [
        row.model.rpartition("/")[2].removeprefix("xlm-roberta-"),
        f"{row.num_gpus} {row.gpu.partition('-')[0]} {row.training_type}",
        f"{row.micro_batch} x {row.accumulation:,}",
        str(row.published_size_class_gb),
        _class(row),
        "" if row.device_peak_bytes is None else f"{row.device_peak_bytes / GIB:.2f}",
        _host(row),
        _words(row.verdict) + _mark(row.note, notes),
    ]


def _host(row: TableRow) -> str:
    """Decimal GB of the node, the article's and ours, and how far ours is from it."""
    error, published = row.host_error, f"{row.published_host_gb:g}"
    if row.host_peak_bytes is None or error is None:
        return published
    return f"{published} / {row.host_peak_bytes / GB:.0f} ({error:+.0%})"


def _class(row: TableRow) -> str:
    """The class, and in brackets that of the article's own card where it differs."""
    if row.device_peak_bytes is None:
        return ""
    found = "> 80" if row.size_class_gb is None else str(row.size_class_gb)
    own = row.own_card_class_gb
    return found if own in (row.size_class_gb, None) else f"{found} (own {own})"


def _mark(note: str, notes: list[str]) -> str:
    if not note:
        return ""
    if note not in notes:
        notes.append(note)
    return f" [{notes.index(note) + 1}]"


def _words(verdict: str) -> str:
    return verdict.removeprefix("reproduced_").replace("_", " ")


def table_document(
    rows: Sequence[TableRow],
    recipe: str,
    footnotes: Sequence[str],
    cards: Mapping[int, str],
    fitted: Reading | None = None,
) -> dict[str, Any]:
    """By the contract."""
    return {
        "rows": [_row(row) for row in rows],
        "recipe": recipe,
        **reading_document(fitted),
        "size_class_cards": {str(size): card for size, card in cards.items()},
        "footnotes": list(footnotes),
    }


def _row(row: TableRow) -> dict[str, Any]:
    return {
        "table": row.table,
        "model": row.model,
        "training_type": row.training_type,
        "gpu": row.gpu,
        "num_gpus": row.num_gpus,
        "micro_batch": row.micro_batch,
        "accumulation": row.accumulation,
        "published": {
            "size_class_gb": row.published_size_class_gb,
            "hours": row.published_hours,
            "host_gb": row.published_host_gb,
        },
        "predicted": _predicted(row),
        "stated": row.stated,
        "settings": [_reproduction(found) for found in row.settings],
        "verdict": row.verdict,
        "note": row.note,
    }


def _reproduction(found: Reproduction) -> dict[str, Any]:
    return {
        "name": str(found.settings),
        "changes": {k: v for s in found.settings.settings for k, v in s.changes.items()},
        "contradicts_the_article": found.settings.contradicts,
        "device_peak_bytes": found.device_peak_bytes,
        "host_peak_bytes": found.host_peak_bytes,
    }


def _predicted(row: TableRow) -> dict[str, Any]:
    why = row.note or "past the largest class"
    if row.device_peak_bytes is not None and row.margin_below_bytes is None:
        smallest = "no smaller class"
    else:
        smallest = why
    document: dict[str, Any] = {}
    for key, reason in (
        ("device_peak_bytes", why),
        ("size_class_gb", why),
        ("own_card_class_gb", why),
        ("own_card_reserved_bytes", why),
        ("margin_below_bytes", smallest),
        ("margin_above_bytes", why),
    ):
        value = getattr(row, key)
        document |= unknown(key, reason) if value is None else {key: value}
    document["size_class_card"] = row.size_class_card
    host = row.host_peak_bytes
    document |= (
        unknown("host_peak_bytes", NOT_YET)
        if host is None
        else {"host_peak_bytes": host, "host_error": row.host_error}
    )
    return document | hours_document(row)
