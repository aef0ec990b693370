"""Published runs, predicted: one table a slice, and the errors of the slice.

    python validation/check_published.py [SLICE ...] [--write]

A slice is a file of validation/published/ by its stem; all of them by default. What no stored
profile answers is traced, once, and cached. `--write` puts the tables into docs/published.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rigsize.estimate import estimate
from rigsize.evidence.cases import Case
from rigsize.evidence.published import PublishedSlice, at, load_slice, solve
from rigsize.evidence.validate import Result, summarise, validate
from rigsize.units import GIB

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "validation" / "published"
PAGE = ROOT / "docs" / "published.md"
MEDIAN_PERCENT, P90_PERCENT = 4.0, 10.0
"""What slices whose model code is transformers' own are held to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One slice, predicted."""

    slice: PublishedSlice
    results: tuple[Result, ...]
    length: int | None = None
    """The length that was solved."""
    bound: tuple[Result, ...] = ()
    """The same rows at the longest length that the source allows."""


def answer(found: PublishedSlice) -> Answer:
    """Predicts every row; a length that the source leaves out is solved first."""
    judged = judge(found.cases)
    if found.solved is None:
        return Answer(slice=found, results=judged)
    row = next(case for case in found.cases if case.id == found.solved.row)
    length = solve(found.solved, row, lambda case: judge([case])[0].predicted_bytes)
    moved = [at(case, length) if case.workload else case for case in found.cases]
    return Answer(slice=found, results=judge(moved), length=length, bound=judged)


def judge(cases: Sequence[Case]) -> tuple[Result, ...]:
    """The results of the cases in their order."""
    return validate(cases, (), estimate).results


def lines(found: Answer) -> list[str]:
    """The slice as Markdown."""
    head = found.slice
    text = [f"## {head.name}", "", head.source, "", head.measures, ""]
    if found.length is not None and head.solved is not None:
        text += [
            f"Not published, and solved from `{head.solved.row}`, which proves nothing therefore:"
            f" the longest batch has **{found.length} tokens** a text, {head.solved.why}",
            "",
        ]
    bound = {result.case_id: result for result in found.bound}
    more = " at the bound |" if bound else ""
    text += [
        f"| row | measured GiB | predicted GiB | error |{more} |",
        f"|---|---|---|---|{'---|' if bound else ''}---|",
    ]
    text += [row(result, bound.get(result.case_id)) for result in found.results]
    text += ["", *totals(found)]
    text += [f"- {reason}" for reason in head.reasons]
    text += [f"- not answered, {', '.join(out.rows)}: {out.why}" for out in head.left_out]
    return [*text, ""]


def row(result: Result, bound: Result | None) -> str:
    """One line of the table."""
    measured = f"{(result.measured_bytes or 0) / GIB:.3f}"
    predicted = "" if result.predicted_bytes is None else f"{result.predicted_bytes / GIB:.3f}"
    cells = [result.case_id, measured, predicted, percent(result)]
    cells += [percent(bound)] if bound else []
    cells.append("fitted" if result.fitted else result.verdict + f" {result.reason}".rstrip())
    return f"| {' | '.join(cells)} |"


def percent(result: Result) -> str:
    """`+1.3 %`, empty where there is no prediction."""
    return "" if result.error_percent is None else f"{result.error_percent:+.1f} %"


def totals(found: Answer) -> list[str]:
    """Median, p90 and worst of the absolute errors, against the target where there is one."""
    out = []
    for name, results in (("", found.results), (" at the bound", found.bound)):
        for summary in summarise(results):
            reached = (
                summary.median_percent <= MEDIAN_PERCENT and summary.p90_percent <= P90_PERCENT
            )
            held = found.slice.hugging_face_code and not name
            where = " at the solved length" if found.length is not None else ""
            target = f" (target {MEDIAN_PERCENT:g} and {P90_PERCENT:g}: " if held else ""
            out.append(
                f"{summary.count} rows{name}, {summary.statistic}: median"
                f" {summary.median_percent:.1f} %, p90 {summary.p90_percent:.1f} %, worst"
                f" {summary.worst_percent:.1f} %, bias {summary.bias_percent:+.1f} %"
                + (f"{target}{'reached' if reached else 'missed'}{where})" if held else "")
            )
            out.append("")
    return out


def main() -> int:
    """Prints every slice; 4 when one of transformers' own code misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", nargs="*")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    files = [FOLDER / f"{name}.toml" for name in given.slices] or sorted(FOLDER.glob("*.toml"))
    text = ["# Published runs, predicted", "", f"By `python validation/{Path(__file__).name}`.", ""]
    missed = False
    for file in files:
        found = answer(load_slice(file))
        told = lines(found)
        print("\n".join(told), flush=True)
        text += told
        missed |= any(": missed" in line for line in totals(found))
    if given.write:
        PAGE.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return 4 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
