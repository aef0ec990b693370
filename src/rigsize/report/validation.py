"""The outcome of `rigsize validate` on a terminal and as JSON; the page has the details."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.evidence.validate import Report, Result

__all__ = ["validation_document", "validation_text"]


def validation_text(report: Report) -> Iterator[RenderableType]:
    """The errors by kind, then every miss."""
    from rigsize.report.console import table

    numbers = ("cases", "median", "p90", "worst", "bias", "missed")
    made = table(None, "kind", "peak", *numbers, right=numbers)
    for s in report.summaries:
        figures = (s.median_percent, s.p90_percent, s.worst_percent)
        made.add_row(
            s.kind,
            s.statistic,
            str(s.count),
            *(f"{figure:.2f} %" for figure in figures),
            f"{s.bias_percent:+.2f} %",
            str(s.missed),
        )
    yield made if report.summaries else "No case could be judged."
    yield "\n".join(_miss(result) for result in report.misses) or "No case was missed."
    counts: dict[str, int] = {}
    for row in report.seed:
        counts[row.verdict.replace("_", " ")] = counts.get(row.verdict.replace("_", " "), 0) + 1
    if counts:
        yield "the seed's rows: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def _miss(result: Result) -> str:
    shown = [
        "none" if value is None else format_bytes(value)
        for value in (result.predicted_bytes, result.measured_bytes)
    ]
    error = result.error_percent
    off = "" if error is None else f", {error:+.2f} % of {result.band_percent:g} % allowed"
    fitted = " (fitted)" if result.fitted else ""
    return (
        f"missed{fitted}: {result.case_id}, {result.statistic} peak"
        f" predicted {shown[0]}, measured {shown[1]}{off}"
    )


def validation_document(report: Report) -> dict[str, Any]:
    """Everything."""
    return {
        "summaries": [asdict(summary) for summary in report.summaries],
        "results": [
            asdict(result) | {"error_percent": result.error_percent} for result in report.results
        ],
        "seed": [asdict(row) for row in report.seed],
    }
