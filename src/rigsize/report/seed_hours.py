"""The article's hours beside ours: a table, and keys of `table --json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.report.document import NOT_YET, unknown
from rigsize.report.time_document import quantiles

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.seed_hours import Reading, RowHours
    from rigsize.seed_table import TableRow

__all__ = ["hours_document", "hours_text", "reading_document"]

_COLUMNS = ("model", "GPUs", "batch\nx acc.", "published\nh", "plain\nh", "p10 to p90", "error")
_READ = ("one reading\nh", "error")
_AS_MINUTES = ("read as\nminutes, h", "error")
_ABOUT = {
    "pre-training": "An epoch of pre-training on one million tweets, hours",
    "fine-tuning": "An epoch of fine-tuning on ten thousand tweets, hours",
}


def hours_text(rows: Sequence[TableRow], fitted: Reading | None) -> Iterator[RenderableType]:
    """A table for each of the article's, then what its columns are."""
    timed = [row for row in rows if row.hours is not None]
    for name in dict.fromkeys(row.table for row in timed):
        yield _table(name, [row for row in timed if row.table == name])
    if any(row.table == "pre-training" for row in timed):
        yield (
            "Plain is the recipe above under the article's words, nothing fitted; precision,"
            " padding and what crosses to the host in a micro-step are not in the article."
        )
        for row in timed:
            if row.hours is not None and row.hours.note:
                name = row.model.rpartition("-")[2]
                yield f"Plain for {name} as the article links its card; {row.hours.note}."
        if fitted is not None:
            yield _reading([row.hours for row in timed if row.hours and row.hours.read], fitted)
    if any(row.table == "fine-tuning" for row in timed):
        yield (
            "The fine-tuning hours contradict the article's own pre-training rates by 20 to 180"
            " times, with less to compute: as printed they are shown and used for nothing. Read as"
            " minutes, a guess of ours, they are what stands beside."
        )


def _table(name: str, rows: Sequence[TableRow]) -> RenderableType:
    from rigsize.report.console import table

    pre_training = name == "pre-training"
    beside = _READ if pre_training else _AS_MINUTES
    # A second column of errors has a name of its own for the sake of its alignment.
    columns = [*_COLUMNS, beside[0], f"{beside[1]} "]
    made = table(_ABOUT.get(name, name), *columns, right=columns[2:])
    for row in rows:
        hours = row.hours
        assert hours is not None
        made.add_row(*_first(row), f"{hours.published:g}", *_plain(hours), *_beside(hours))
    return made


def _first(row: TableRow) -> tuple[str, str, str]:
    return (
        row.model.rpartition("/")[2].removeprefix("xlm-roberta-"),
        f"{row.num_gpus} {row.gpu.partition('-')[0]} {row.training_type}",
        f"{row.micro_batch} x {row.accumulation:,}",
    )


def _plain(hours: RowHours) -> tuple[str, str, str]:
    plain = hours.plain
    if plain is None:
        return "unknown", "", ""
    error = plain.p50 / hours.published - 1
    return f"{plain.p50:.3g}", f"{plain.p10:.3g} to {plain.p90:.3g}", f"{error:+.0%}"


def _beside(hours: RowHours) -> tuple[str, str]:
    """The reading, or for fine-tuning the published figure as minutes and ours against it."""
    if hours.read is not None:
        return f"{hours.read:.3g}", f"{hours.read / hours.published - 1:+.0%}"
    minutes = hours.published / 60
    error = "" if hours.plain is None else f"{hours.plain.p50 / minutes - 1:+.0%}"
    return f"{minutes:.3g}", error


def _reading(rows: Sequence[RowHours], fitted: Reading) -> str:
    from rigsize.seed_hours import HOST_OF_H100, READING

    errors = sorted(abs(row.read / row.published - 1) for row in rows if row.read)
    return (
        f"One reading, fitted: {READING}, {fitted.host_s_per_param * 1e9:.2f} ns and"
        f" {fitted.fixed_s * 1e3:.0f} ms. The host of the H100 machine takes"
        f" {HOST_OF_H100.value:.2f} of the time ({HOST_OF_H100.basis}). Median error"
        f" {errors[len(errors) // 2]:.1%}, worst {errors[-1]:.0%}; with each row left out of its"
        " own fit: validation/check_seed_hours.py."
    )


def reading_document(fitted: Reading | None) -> dict[str, Any]:
    """What was fitted, and to what."""
    from rigsize.seed_hours import HOST_OF_H100, READING

    if fitted is None:
        return unknown("reading", "the pre-training rows are not timed")
    return {
        "reading": {
            "words": READING,
            "fitted_to": "the nine pre-training rows",
            "fixed_s": fitted.fixed_s,
            "host_s_per_parameter": fitted.host_s_per_param,
            "h100_host_share": HOST_OF_H100.value,
            "h100_host_basis": HOST_OF_H100.basis,
        }
    }


def hours_document(row: TableRow) -> dict[str, Any]:
    """`hours {p10, p50, p90}`, and beside it the reading."""
    hours = row.hours
    if hours is None or hours.plain is None:
        why = NOT_YET if hours is None else hours.reason
        found: dict[str, Any] = {}
        for key in ("p10", "p50", "p90"):
            found |= unknown(key, why)
        plain: dict[str, Any] = {"hours": found}
    else:
        plain = {"hours": quantiles(hours.plain), "bound_by": hours.bound_by}
        plain |= {"hours_note": hours.note} if hours.note else {}
    if hours is None or hours.read is None:
        why = "a fitted reading of the pre-training rows alone"
        return plain | unknown("hours_by_reading", why)
    return plain | {"hours_by_reading": hours.read, "hours_by_reading_fitted": True}
