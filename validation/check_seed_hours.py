"""The article's hours: the plain prediction, and the one reading with each row left out of its fit.

    python validation/check_seed_hours.py            print it
    python validation/check_seed_hours.py --page     and write the table in docs/hours.md

Exit 0 when, with each row left out of its own fit, the median error is at most 10 % and at least
seven of the nine pre-training rows are within 20 %. Nothing here is fitted to fine-tuning rows.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rigsize.estimate import estimate
from rigsize.seed_hours import (
    HOST_OF_H100,
    READING,
    Reading,
    SeedRow,
    fit,
    left_out,
    predict_hours,
    reading_of,
    seed_rows,
)
from rigsize.seed_table import ROWS, class_of, question_of, size_class
from rigsize.units import GB

MEDIAN, WITHIN, AT_LEAST = 0.10, 0.20, 7
PAGE = Path(__file__).parents[1] / "docs" / "hours.md"
BEGIN, END = "<!-- by validation/check_seed_hours.py --page -->\n", "<!-- end -->"


def main(write: bool) -> int:
    """Prints the tables; 0 where the targets are met."""
    rows = seed_rows()
    print("\n".join(_plain()))
    print(f"\nOne reading: {READING}")
    print(f"H100 host / A100 host {HOST_OF_H100.value:.3f}: {HOST_OF_H100.source}")
    print("\n".join(_table(rows)))
    print("\n".join(_memory()))
    alike = [replace(row, host=1.0) for row in rows]
    print("the same, both hosts alike (no assumption about either):")
    print("\n".join(_table(alike)))
    if write:
        _write([*_table(rows), "", f"Both hosts alike: {_summary(left_out(alike))}."])
    errors = [abs(error) for error in left_out(rows)]
    within = sum(error <= WITHIN for error in errors)
    return 0 if statistics.median(errors) <= MEDIAN and within >= AT_LEAST else 1


def _plain() -> Iterator[str]:
    """Thirteen rows, nothing fitted; fine-tuning as printed and read as minutes."""
    yield "Plain, nothing fitted: published h, p50 h (p10 to p90), error; fine-tuning as minutes"
    for row in predict_hours().rows:
        if row.plain is None:
            yield f"  {row.published:6g}  unknown: {row.reason}"
            continue
        plain = row.plain
        text = f"  {row.published:6g}  {plain.p50:7.3f} ({plain.p10:.3f} to {plain.p90:.3f})"
        text += f"  {plain.p50 / row.published - 1:+6.0%}  {row.bound_by}"
        if row.read is None:
            minutes = row.published / 60
            text += f"; as minutes {minutes:.3f} h: {plain.p50 / minutes - 1:+.0%}"
        yield text


def _table(rows: Sequence[SeedRow]) -> Iterator[str]:
    """Each row with all nine in the fit, and left out of it."""
    reading, errors = fit(rows), left_out(rows)
    yield f"Fitted: {_words(reading)}."
    yield ""
    yield "| row | published h | read h | error | left out of its own fit |"
    yield "|---|---|---|---|---|"
    for row, error in zip(rows, errors, strict=True):
        name = row.model.rpartition("-")[2]
        yield (
            f"| {name}, {row.num_gpus} x {row.micro_batch} | {row.published_hours}"
            f" | {row.hours(reading):.2f} | {row.error(reading):+.1%} | {error:+.1%} |"
        )
    yield ""
    yield f"Left out of its own fit: {_summary(errors)}."


def _words(reading: Reading) -> str:
    return (
        f"{reading.host_s_per_param * 1e9:.3f} ns of the host a parameter and micro-step,"
        f" {reading.fixed_s * 1e3:.0f} ms a micro-step"
    )


def _summary(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    within = sum(size <= WITHIN for size in sizes)
    worst = max(errors, key=abs)
    return (
        f"median {statistics.median(sizes):.1%}, {within} of {len(sizes)} within 20 %,"
        f" worst {worst:+.1%}"
    )


def _memory() -> Iterator[str]:
    """What the same reading takes: the hours were what it was chosen for, memory was not."""
    right = 0
    yield "the same reading's memory: published class, ours (own card's), host GB, ours"
    with ROWS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "pre-training"]
    for row in rows:
        source, workload, cluster = question_of(row)
        found = estimate(source, workload, reading_of(row), cluster)
        need = found.memory.device_peak_bytes
        assert need is not None
        ours = (size_class(found.program, found.memory.allocated_peak_bytes), class_of(need))
        right += int(row["published_size_class_gb"]) in ours
        yield (
            f"  {row['model'].rpartition('-')[2]:5} {row['num_gpus']} x {row['micro_batch']:2}:"
            f" {row['published_size_class_gb']:>3}  {ours[0]} ({ours[1]})"
            f"  {row['published_host_gb']:>4} {found.host.peak_bytes / GB:6.1f}"
        )
    yield f"  {right} of {len(rows)} size classes"


def _write(lines: Sequence[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main("--page" in sys.argv[1:]))
