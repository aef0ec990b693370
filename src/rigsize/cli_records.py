"""`rigsize records`: what was measured here, listed, shown, exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import Given, print_answer, say
from rigsize.errors import SpecError, UnsupportedCombination, nearest
from rigsize.run.record import Record, to_json
from rigsize.run.record_store import (
    Entry,
    Found,
    export,
    find_record,
    flat,
    read_folder,
    records_folder,
)
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["records_verb"]

ACTIONS = ("ls", "show", "export")


def records_verb(given: Given) -> int:
    """`rigsize records ls [FOLDER] | show ID|FILE [FOLDER] | export FOLDER --out FILE`."""
    action = _text(given, "action") or "ls"
    if action not in ACTIONS:
        raise SpecError(
            "records", action, "no such action", allowed=ACTIONS, nearest=nearest(action, ACTIONS)
        )
    if action != "export" and "out" in given:
        raise UnsupportedCombination("out", given["out"], f"{action} writes nothing")
    as_json = bool(given.get("json"))
    what, folder = _text(given, "what"), _text(given, "folder")
    if action == "show":
        return _show(what, _folder(folder), as_json)
    if folder is not None:
        raise SpecError("usage", folder, f"{action} takes one folder")
    return _list(what, as_json) if action == "ls" else _export(what, given, as_json)


def _text(given: Given, name: str) -> str | None:
    value = given.get(name)
    return value if isinstance(value, str) else None


def _folder(given: str | None) -> Path:
    """A folder of Records, or the folder of a training run, which has one."""
    if given is None:
        return records_folder()
    folder = Path(given).expanduser()
    return folder / "records" if (folder / "log.jsonl").is_file() else folder


def _list(what: str | None, as_json: bool) -> int:
    folder = _folder(what)
    if what is None and not folder.exists():
        found = Found(entries=(), broken=())  # nothing was measured yet
    else:
        found = read_folder(folder)
    print_answer(
        lambda: {
            "folder": str(folder),
            "records": [flat(entry.record) | {"file": entry.file} for entry in found.entries],
            "broken": [{"file": file, "reason": reason} for file, reason in found.broken],
        },
        as_json,
        lambda: _listed(folder, found),
    )
    return 0


def _listed(folder: Path, found: Found) -> Iterator[RenderableType]:
    from rigsize.report.console import table

    if found.entries:
        made = table(
            None, "id", "made", "model", "run", "on", "allocated", "device", "outcome",
            right=("allocated", "device"),
        )  # fmt: skip
        for entry in found.entries:
            made.add_row(*_row(entry.record))
        yield made
    yield f"{len(found.entries)} Records in {folder}"
    if not found.entries and folder == records_folder():
        yield "a training run keeps its Record in its own folder: rigsize records ls runs/NAME"
    for file, reason in found.broken:
        yield f"left out: {file}: {reason}"


def _row(record: Record) -> tuple[str, ...]:
    memory = record.memory
    return (
        record.record_id[:8],
        record.created[:10],
        record.model.name.rpartition("/")[2],
        _run(record),
        record.hardware.gpu or record.device,
        _bytes(memory.allocated_peak_bytes),
        _bytes(memory.device_peak_bytes),
        record.outcome.replace("_", " "),
    )


def _run(record: Record) -> str:
    """`masked-lm 16x128 amp-bf16 adamw-fused, FSDP over 4`."""
    if record.calibration is not None:
        return f"calibration of {record.calibration.accelerator}"
    row = flat(record)
    parts = [
        str(row["task"]),
        f"{row['micro_batch']}x{row['max_length']}",
        str(row["precision"]),
        str(row["optimizer"]) if row["use"] != "inference" else "inference",
    ]
    usual = {"padding": "fixed", "loss": "all", "method": "full", "offload": "none"}
    parts += [str(row[k]) for k, value in usual.items() if row[k] not in (None, value)]
    if row["parallel"] not in (None, "single"):
        parts.append(f"{str(row['parallel']).upper()} over {row['world_size']}")
    return " ".join(parts)


def _bytes(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_bytes(num_bytes)


def _show(what: str | None, folder: Path, as_json: bool) -> int:
    if what is None:
        raise SpecError("record", None, "missing", hint="rigsize records show ID")
    entry = find_record(what, folder)
    print_answer(lambda: {"record": to_json(entry.record)}, as_json, lambda: _shown(entry))
    return 0


def _shown(entry: Entry) -> Iterator[RenderableType]:
    from rigsize.report.console import table
    from rigsize.report.measured import record_lines

    record = entry.record
    where = record.hardware.gpu or record.hardware.cpu or record.device
    yield f"{record.record_id}: {record.model.name}, {_run(record)}, on {where}"
    versions = f"torch {record.versions.torch}, transformers {record.versions.transformers}"
    yield f"{record.kind} of {record.created}, {versions}; {entry.file}"
    yield record.outcome.replace("_", " ") + (f": {record.message}" if record.message else "")
    if record.calibration is not None:
        from rigsize.report.calibration import calibration_text

        yield from calibration_text(record)
        yield from (f"note: {note}" for note in record.notes)
        yield f"command: {record.command}"
        return
    made = table(None, "memory", "peak", "", right=("peak",))
    for name, size, reason in _statistics(record):
        made.add_row(name, _bytes(size), reason)
    yield made
    yield from record_lines(record)
    yield from (f"note: {note}" for note in record.notes)
    yield f"command: {record.command}"


def _statistics(record: Record) -> Iterator[tuple[str, int | None, str]]:
    names = ("allocated", "reserved", "device", "host")
    for name in names:
        key = f"{name}_peak_bytes"
        yield name, getattr(record.memory, key), record.memory.unknown.get(key, "")
    context = record.memory.context_bytes
    yield "context", context, record.memory.unknown.get("context_bytes", "")
    for phase, size in record.phase_peaks_bytes.items():
        yield f"allocated in {phase}", size, ""


def _export(what: str | None, given: Given, as_json: bool) -> int:
    out = _text(given, "out")
    if out is None:
        raise SpecError("out", None, "missing", hint="--out FILE.csv or FILE.jsonl")
    found = read_folder(_folder(what))
    export(found.entries, Path(out).expanduser())
    for file, reason in found.broken:
        say(f"left out: {file}: {reason}")
    document: dict[str, Any] = {"out": out, "records": len(found.entries)}
    print_answer(
        lambda: document | {"broken": [file for file, _ in found.broken]},
        as_json,
        lambda: [f"{len(found.entries)} Records written to {out}"],
    )
    return 0
