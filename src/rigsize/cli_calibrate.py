"""`rigsize calibrate`: the machine at hand, measured once; times of its GPU use it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import Given, device_of, print_answer, say, settings_of, typed
from rigsize.errors import SpecError
from rigsize.run.checks import DEVICES
from rigsize.spec.checks import one_of

if TYPE_CHECKING:
    from rigsize.run.record import Record

__all__ = ["calibrate_verb"]


def calibrate_verb(given: Given) -> int:
    """`rigsize calibrate [--device cuda|cpu] [--quick] [--out FOLDER]`."""
    # Read when torch is imported: see `run.measure`.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    settings = settings_of("calibrate", given)
    asked, quick = settings.text("device"), settings.switch("quick")
    if asked is not None:
        one_of("device", asked, DEVICES)
    folder = _folder(settings.text("out"))
    device = device_of(asked)
    from rigsize.calibrate.session import calibrate
    from rigsize.report.calibration import calibration_text
    from rigsize.run.calibration_records import FILE_PREFIX
    from rigsize.run.record import write_record

    record = calibrate(device, quick=quick, command=typed(), tell=say)
    for note in record.notes:
        say(note)
    path = write_record(folder, record, FILE_PREFIX)
    say(f"Record written to {path}")
    print_answer(
        lambda: _document(record, path), settings.switch("json"), lambda: calibration_text(record)
    )
    return 0


def _folder(out: str | None) -> Path:
    """Where the Record will lie; SpecError where nothing can be written."""
    from rigsize.run.record_store import records_folder

    folder = records_folder() if out is None else Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise SpecError("out", str(folder), "not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two minutes of measuring are too long to learn it afterwards.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError("out", str(folder), f"cannot be written ({error.strerror})") from None
    return folder


def _document(record: Record, path: Path) -> dict[str, Any]:
    from rigsize.report.calibration import calibration_document

    return calibration_document(record) | {"path": str(path)}
