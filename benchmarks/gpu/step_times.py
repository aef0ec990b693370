"""Measured step times beside the predicted ones, before and after this machine's calibration.

    PYTHONPATH=src python benchmarks/gpu/step_times.py runs.jsonl ... [--calibration FILE]

Takes files of suite lines and of Records. Without a calibration named it is the newest of the
Records' device that `rigsize calibrate` wrote on this machine. Aim: a median error of 5 % after.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from rigsize.errors import SizingError
from rigsize.evidence.step_times import StepRow, median_error, step_rows
from rigsize.hardware import find_accelerator
from rigsize.run.calibration_records import calibration_asked
from rigsize.run.record import Record, from_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--calibration", help="a Record, or none")
    arguments = parser.parse_args()
    records = [record for file in arguments.files for record in read(file)]
    rows: list[StepRow] = []
    for gpu in sorted({record.hardware.gpu or "cpu" for record in records}):
        here = [record for record in records if (record.hardware.gpu or "cpu") == gpu]
        try:
            asked = calibration_asked(arguments.calibration, find_accelerator(gpu).id)
        except SizingError as error:
            print(f"{gpu}: {error}")
            continue
        for note in asked.notes:
            print(f"{gpu}: {note}")
        if asked.calibration is None:
            print(f"{gpu}: no calibration of it on this machine: rigsize calibrate")
        rows += step_rows(here, asked.calibration)
    for row in rows:
        print(text(row))
    for name, calibrated in (("before", False), ("after", True)):
        found = median_error(rows, calibrated=calibrated)
        shown = "no row" if found is None else f"{100 * found:.1f} %"
        print(f"median error {name} calibration: {shown}")


def read(file: Path) -> Iterator[Record]:
    """The Records of a suite's lines, or one Record."""
    whole = file.read_text(encoding="utf-8")
    documents = whole.splitlines() if file.suffix == ".jsonl" else [whole]
    for document in map(json.loads, filter(str.strip, documents)):
        found = document.get("record", document)
        if found is not None:
            yield from_json(found)


def text(row: StepRow) -> str:
    """One line."""
    if row.before_s is None:
        return f"{row.record_id[:8]} {row.model}: {row.measured_s * 1e3:.1f} ms; {row.reason}"
    shown = [f"before {_of(row, row.before_s)}"]
    shown += [f"after {_of(row, row.after_s)}"] if row.after_s is not None else []
    measured = f"{row.measured_s * 1e3:.1f} ms measured"
    return f"{row.record_id[:8]} {row.model}: {measured}, {', '.join(shown)}"


def _of(row: StepRow, predicted_s: float) -> str:
    return f"{predicted_s * 1e3:.1f} ms ({100 * (row.error(predicted_s) or 0.0):+.1f} %)"


if __name__ == "__main__":
    main()
