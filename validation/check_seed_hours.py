"""The article's hours: the plain prediction, and the one reading with each row left out of its fit.

    python validation/check_seed_hours.py

Exit 0 when, with each row left out of its own fit, the median error is at most 10 % and at least
seven of the nine pre-training rows are within 20 %, and the constants in `rigsize.seed_hours` are
what the rows give. Nothing here is fitted to fine-tuning rows.
"""

from __future__ import annotations

import csv
import statistics
import sys
from dataclasses import replace

from rigsize.estimate import estimate
from rigsize.seed_hours import (
    FITTED,
    HOST_OF_H100,
    READING,
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
SAME = 0.01
"""How far the constants in the source may be from those that are fitted here."""


def main() -> int:
    """Prints the tables; 0 where the targets are met."""
    rows = seed_rows()
    _print_plain()
    again = fit(rows)
    print(f"\nOne reading: {READING}")
    print(f"fitted {_words(again)}; in the source {_words(FITTED)}")
    print(f"H100 host / A100 host {HOST_OF_H100.value:.3f}: {HOST_OF_H100.source}")
    errors = _print_rows(rows)
    _print_memory()
    print("the same, both hosts alike (no assumption about either):")
    _print_rows([replace(row, host=1.0) for row in rows])
    median, within = _summary(errors)
    kept = _close(again.fixed_s, FITTED.fixed_s)
    kept = kept and _close(again.host_s_per_param, FITTED.host_s_per_param)
    if not kept:
        print("the constants in rigsize/seed_hours.py are not those of the fit")
    return 0 if kept and median <= MEDIAN and within >= AT_LEAST else 1


def _words(reading: object) -> str:
    assert isinstance(reading, type(FITTED))
    return f"{reading.fixed_s * 1e3:.1f} ms and {reading.host_s_per_param * 1e9:.4f} ns a parameter"


def _close(value: float, kept: float) -> bool:
    return abs(value - kept) <= SAME * kept


def _print_plain() -> None:
    """Thirteen rows, nothing fitted; fine-tuning as printed and read as minutes."""
    print("Plain, nothing fitted: published h, p50 h (p10 to p90), error; fine-tuning as minutes")
    for row in predict_hours():
        if row.plain is None:
            print(f"  {row.published:6g}  unknown: {row.reason}")
            continue
        plain = row.plain
        text = f"  {row.published:6g}  {plain.p50:7.3f} ({plain.p10:.3f} to {plain.p90:.3f})"
        text += f"  {plain.p50 / row.published - 1:+6.0%}  {row.bound_by}"
        if row.read is None:
            minutes = row.published / 60
            text += f"; as minutes {minutes:.3f} h: {plain.p50 / minutes - 1:+.0%}"
        print(text)


def _print_rows(rows: list[SeedRow]) -> list[float]:
    """Each row with all nine in the fit, and left out of it; the errors of the second."""
    reading, errors = fit(rows), left_out(rows)
    print("  model, GPUs, batch: published h, read h, error; left out of its own fit")
    for row, error in zip(rows, errors, strict=True):
        name = row.model.rpartition("-")[2]
        print(
            f"  {name:5} {row.num_gpus} x {row.micro_batch:2}: {row.published_hours:5.1f}"
            f"  {row.hours(reading):6.2f}  {row.error(reading):+6.1%}  {error:+7.1%}"
        )
    median, within = _summary(errors)
    worst = max(errors, key=abs)
    print(f"  left out: median {median:.1%}, {within} of 9 within 20 %, worst {worst:+.1%}")
    return errors


def _print_memory() -> None:
    """What the same reading takes: the hours were what it was chosen for, memory was not."""
    right = 0
    print("  the same reading's memory: published class, ours (own card's), host GB, ours")
    with ROWS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "pre-training"]
    for row in rows:
        source, workload, cluster = question_of(row)
        found = estimate(source, workload, reading_of(row), cluster)
        need = found.memory.device_peak_bytes
        assert need is not None
        ours = (size_class(found.program, found.memory.allocated_peak_bytes), class_of(need))
        right += int(row["published_size_class_gb"]) in ours
        print(
            f"  {row['model'].rpartition('-')[2]:5} {row['num_gpus']} x {row['micro_batch']:2}:"
            f" {row['published_size_class_gb']:>3}  {ours[0]} ({ours[1]})"
            f"  {row['published_host_gb']:>4} {found.host.peak_bytes / GB:6.1f}"
        )
    print(f"  {right} of {len(rows)} size classes")


def _summary(errors: list[float]) -> tuple[float, int]:
    sizes = [abs(error) for error in errors]
    return statistics.median(sizes), sum(size <= WITHIN for size in sizes)


if __name__ == "__main__":
    sys.exit(main())
