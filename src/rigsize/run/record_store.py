"""A folder of Records: one JSON document each, or lines of a suite. No torch here.

A broken file is listed with its reason; it hides no other.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError, nearest
from rigsize.run.folders import records_folder
from rigsize.run.record import STATISTICS, Record, from_json, to_json

__all__ = [
    "COLUMNS",
    "Entry",
    "Found",
    "export",
    "find_record",
    "flat",
    "read_folder",
    "records_folder",
]

_LARGEST_FILE_BYTES = 1024**3
_FORMATS = (".csv", ".jsonl")
COLUMNS = (
    "record_id",
    "created",
    "kind",
    "outcome",
    "model",
    "task",
    "use",
    "precision",
    "optimizer",
    "micro_batch",
    "accumulation",
    "max_length",
    "padding",
    "loss",
    "method",
    "parallel",
    "offload",
    "world_size",
    "fake_world",
    "device",
    "gpu",
    *STATISTICS,
    "real_tokens_per_s",
    "examples_per_s",
    "torch",
    "transformers",
    "spec_hash",
)
"""Of an exported table; bytes as integers, unknown is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A Record and where it was read."""

    record: Record
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds."""

    entries: tuple[Entry, ...]
    """The newest first."""
    broken: tuple[tuple[str, str], ...]
    """(file, why it could not be read)."""


def read_folder(folder: Path) -> Found:
    """Every `*.json` and every line of `*.jsonl` of a folder.

    Raises SpecError where there is no such folder.
    """
    if not folder.is_dir():
        raise SpecError("folder", str(folder), "no such folder")
    entries: list[Entry] = []
    broken: list[tuple[str, str]] = []
    for file in sorted(folder.glob("*.json*")):
        for place, text in _documents(file):
            try:
                record = _parsed(place, text)
            except SpecError as error:
                broken.append((place, str(error)))
                continue
            if record is not None:
                entries.append(Entry(record=record, file=place))
    entries.sort(key=lambda entry: entry.record.created, reverse=True)
    return Found(entries=tuple(entries), broken=tuple(broken))


def _documents(file: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each document; unreadable ones have an empty text."""
    try:
        text = file.read_text("utf-8") if file.stat().st_size <= _LARGEST_FILE_BYTES else ""
    except (OSError, UnicodeDecodeError):
        text = ""
    if file.suffix != ".jsonl":
        yield file.name, text
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file.name}:{number}", line


def _parsed(place: str, text: str) -> Record | None:
    """None for a job that a suite refused: nothing was measured."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise SpecError("record", place, "not JSON") from None
    if not isinstance(document, dict):
        raise SpecError("record", place, "not a JSON object")
    if "record" in document:
        document = document["record"]
        if document is None:
            return None
    return from_json(document)


def find_record(name: str, folder: Path) -> Entry:
    """The Record of a file, or of an id or the beginning of one in the folder.

    Raises SpecError for what is not there, with the nearest id, and for a beginning of several.
    """
    file = Path(name).expanduser()
    if file.suffix in (".json", ".jsonl") and file.is_file():
        return _of_file(file)
    if file.suffix in (".json", ".jsonl") or not folder.is_dir():
        problem = "no such file" if file.suffix else f"no such Record: there is no folder {folder}"
        raise SpecError("record", name, problem, hint="rigsize records ls FOLDER lists those there")
    found = read_folder(folder)
    same = {e.record.record_id: e for e in found.entries if e.record.record_id.startswith(name)}
    if len(same) == 1:
        return next(iter(same.values()))
    ids = [entry.record.record_id for entry in found.entries]
    if same:
        raise SpecError("record", name, f"the beginning of {len(same)} ids", allowed=same)
    raise SpecError(
        "record",
        name,
        f"no such Record in {folder}",
        nearest=nearest(name, [known[: len(name)] for known in ids]),
        hint="rigsize records ls lists them",
    )


def _of_file(file: Path) -> Entry:
    records = [
        Entry(record=record, file=place)
        for place, text in _documents(file)
        if (record := _parsed(place, text)) is not None
    ]
    if len(records) != 1:
        hint = "show ID FOLDER shows one of a folder's"
        raise SpecError("record", str(file), f"holds {len(records)} Records", hint=hint)
    return records[0]


def flat(record: Record) -> dict[str, Any]:
    """One row of a table, by COLUMNS."""
    workload, strategy, world = record.workload, record.strategy, record.world
    pace = record.throughput
    values: dict[str, Any] = {
        "record_id": record.record_id,
        "created": record.created,
        "kind": record.kind,
        "outcome": record.outcome,
        "model": record.model.name,
        "world_size": world.size if world else 1,
        "fake_world": bool(world and world.fake),
        "device": record.device,
        "gpu": record.hardware.gpu,
        "real_tokens_per_s": pace.real_tokens_per_s if pace else None,
        "examples_per_s": pace.examples_per_s if pace else None,
        "torch": record.versions.torch,
        "transformers": record.versions.transformers,
        "spec_hash": record.spec_hash,
    }
    values |= {name: getattr(record.memory, name) for name in STATISTICS}
    return {name: values.get(name, workload.get(name, strategy.get(name))) for name in COLUMNS}


def export(entries: Sequence[Entry], out: Path) -> None:
    """Writes a table (.csv) or whole Records (.jsonl), at once or not at all.

    Raises SpecError for another format and for a file that cannot be written.
    """
    if out.suffix not in _FORMATS:
        raise SpecError("out", str(out), "not a format of export", allowed=_FORMATS)
    text = _csv(entries) if out.suffix == ".csv" else _lines(entries)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=out.absolute().parent, suffix=".tmp", delete=False
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(out)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise SpecError("out", str(out), problem) from None


def _csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({name: _cell(value) for name, value in flat(entry.record).items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet takes what begins like a formula for one: such text gets a quote."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _lines(entries: Sequence[Entry]) -> str:
    documents: Iterator[Mapping[str, Any]] = (to_json(entry.record) for entry in entries)
    return "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in documents)
