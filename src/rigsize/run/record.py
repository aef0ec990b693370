"""Record: what one real run took, written once and never changed. No torch here.

The schema is documented in docs/records.md; what a Record is made of, in `record_parts`. What came
after schema 1.0 is left out of a document where a Record has none of it, so that older ones keep
their ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rigsize.errors import SpecError
from rigsize.run.calibrated import Calibrated
from rigsize.run.record_parts import (
    REASON,
    STATISTICS,
    Attribution,
    Cap,
    Hardware,
    HostMemory,
    Memory,
    ModelIdentity,
    Texts,
    Throughput,
    Versions,
    WorldRun,
    check_schema,
    part_from_json,
    part_to_json,
)
from rigsize.spec import Strategy, Workload

__all__ = [
    "KINDS",
    "OUTCOMES",
    "SCHEMA_VERSION",
    "STATISTICS",
    "Attribution",
    "Cap",
    "Hardware",
    "HostMemory",
    "Memory",
    "ModelIdentity",
    "Record",
    "Texts",
    "Throughput",
    "Versions",
    "WorldRun",
    "content_hash",
    "from_json",
    "read_records",
    "to_json",
    "write_record",
]

SCHEMA_VERSION = "1.2"
"""major.minor: a reader takes any minor of its own major and refuses a later major."""
OUTCOMES = ("ok", "out_of_memory", "failed")
KINDS = ("measure", "train", "calibration")
_PARTS = {
    "world": WorldRun,
    "host": HostMemory,
    "throughput": Throughput,
    "texts": Texts,
    "attribution": Attribution,
    "cap": Cap,
    "calibration": Calibrated,
}
_LARGEST_FILE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One real run of a Workload x Strategy."""

    created: str
    """UTC, ISO 8601 to the second."""
    command: str
    model: ModelIdentity
    workload: Mapping[str, Any]
    """The fields of `spec.Workload`."""
    strategy: Mapping[str, Any]
    """The fields of `spec.Strategy`."""
    device: str
    """cpu or cuda."""
    hardware: Hardware
    versions: Versions
    seed: int
    outcome: str
    """One of OUTCOMES."""
    message: str = ""
    """Why it was not ok."""
    memory: Memory
    phase_peaks_bytes: Mapping[str, int] = field(default_factory=dict)
    """Allocated peak by phase over all steps: load, forward, backward, optimizer."""
    step_peaks_bytes: tuple[int, ...] = ()
    """Allocated peak of each step."""
    step_times_s: tuple[float, ...] = ()
    """Every sample, the warm-up ones too."""
    steps: int
    """Steps asked for; `step_times_s` says how many were made."""
    notes: tuple[str, ...] = ()
    kind: str = "measure"
    """One of KINDS."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """B, S, T, M, N of the largest micro-batch that was run: what a prediction is made for."""
    world: WorldRun | None = None
    host: HostMemory | None = None
    throughput: Throughput | None = None
    texts: Texts | None = None
    attribution: Attribution | None = None
    cap: Cap | None = None
    calibration: Calibrated | None = None
    """Of the kind `calibration`, whose own run is the one of a tiny model."""
    losses: tuple[float, ...] = ()
    """Training: as logged."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Training: of the last evaluation."""
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError("kind", self.kind, "unknown kind", allowed=KINDS)
        if (self.kind == "calibration") is not (self.calibration is not None):
            raise SpecError("calibration", self.kind, "of its own kind alone, and always there")
        if self.outcome not in OUTCOMES:
            raise SpecError("outcome", self.outcome, "unknown outcome", allowed=OUTCOMES)

    @property
    def record_id(self) -> str:
        """The hash of the content."""
        return content_hash(_document(self))

    @property
    def spec_hash(self) -> str:
        """Equal for two runs of the same model, workload and strategy."""
        return _spec_hash(self.model.config_digest, self.workload, self.strategy)

    def spec(self) -> tuple[Workload, Strategy]:
        """The question as records; a field that this version does not know is an error."""
        try:
            return Workload(**self.workload), Strategy(**self.strategy)
        except TypeError as error:
            raise SpecError("spec", self.record_id, f"of another rigsize ({error})") from None


def now() -> str:
    """The time of a Record."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def content_hash(document: Mapping[str, Any]) -> str:
    """sha256[:16] of a Record's document without its id."""
    content = {key: value for key, value in document.items() if key != "record_id"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def to_json(record: Record) -> dict[str, Any]:
    """The document of schema v1."""
    document = _document(record)
    return {"schema_version": record.schema_version, "record_id": content_hash(document)} | document


def from_json(document: Mapping[str, Any]) -> Record:
    """The Record of a document; fields it does not know are left out, a later major is refused.

    A document whose content does not match its id was changed after it was written: an error.
    """
    check_schema(document, SCHEMA_VERSION)
    given = document.get("record_id")
    if given is not None and given != content_hash(document):
        raise SpecError("record_id", given, "the Record was changed after it was written")
    try:
        return _record(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        what = f"it has no {error.args[0]}" if isinstance(error, KeyError) else repr(error)
        raise SpecError("record", given, f"not a Record: {what}") from None


def write_record(folder: Path, record: Record, prefix: str = "") -> Path:
    """Writes `<prefix><record_id>.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{prefix}{record.record_id}.json"
    text = json.dumps(to_json(record), indent=1) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, prefix=".", suffix=".tmp", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(target)
    return target


def read_records(folder: Path) -> Iterator[Record]:
    """The Records of a folder, in the order of their file names."""
    for file in sorted(folder.glob("*.json")):
        yield from_json(_load(file))


def _load(file: Path) -> Mapping[str, Any]:
    if file.stat().st_size > _LARGEST_FILE_BYTES:
        raise SpecError("record", str(file), "too large for a Record", allowed=("up to 64 MiB",))
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise SpecError("record", str(file), "not JSON") from None
    if not isinstance(document, dict):
        raise SpecError("record", str(file), "not a JSON object")
    return document


def _document(record: Record) -> dict[str, Any]:
    model = asdict(record.model)
    return {
        "schema_version": record.schema_version,
        "created": record.created,
        "command": record.command,
        "model": model,
        "spec": {"workload": dict(record.workload), "strategy": dict(record.strategy)},
        "spec_hash": record.spec_hash,
        "device": record.device,
        "hardware": asdict(record.hardware),
        "versions": asdict(record.versions),
        "seed": record.seed,
        "outcome": record.outcome,
        "message": record.message,
        "memory": record.memory.to_json(),
        "phase_peaks_bytes": dict(record.phase_peaks_bytes),
        "step_peaks_bytes": list(record.step_peaks_bytes),
        "step_times_s": list(record.step_times_s),
        "steps": record.steps,
        "notes": list(record.notes),
        **_added_later(record),
    }


def _added_later(record: Record) -> dict[str, Any]:
    """What a Record of schema 1.0 has not: left out where there is none of it."""
    found: dict[str, Any] = {}
    if record.kind != "measure":
        found["kind"] = record.kind
    if record.sizes:
        found["sizes"] = dict(record.sizes)
    if record.losses:
        found["losses"] = list(record.losses)
    if record.metrics:
        found["metrics"] = dict(record.metrics)
    parts = {name: getattr(record, name) for name in _PARTS}
    return found | {name: part_to_json(part) for name, part in parts.items() if part is not None}


def _record(document: Mapping[str, Any]) -> Record:
    memory = document["memory"]
    return Record(
        schema_version=str(document["schema_version"]),
        created=str(document["created"]),
        command=str(document["command"]),
        model=part_from_json(ModelIdentity, document["model"]),
        workload=MappingProxyType(dict(document["spec"]["workload"])),
        strategy=MappingProxyType(dict(document["spec"]["strategy"])),
        device=str(document["device"]),
        hardware=part_from_json(Hardware, document["hardware"]),
        versions=part_from_json(Versions, document["versions"]),
        seed=int(document["seed"]),
        outcome=str(document["outcome"]),
        message=str(document["message"]),
        memory=Memory(
            **{name: _bytes(name, memory[name]) for name in STATISTICS},
            unknown={n: str(memory[n + REASON]) for n in STATISTICS if n + REASON in memory},
        ),
        phase_peaks_bytes=MappingProxyType(dict(document["phase_peaks_bytes"])),
        step_peaks_bytes=tuple(document["step_peaks_bytes"]),
        step_times_s=tuple(document["step_times_s"]),
        steps=int(document["steps"]),
        notes=tuple(document["notes"]),
        kind=str(document.get("kind", "measure")),
        sizes=MappingProxyType(dict(document.get("sizes", {}))),
        losses=tuple(document.get("losses", ())),
        metrics=MappingProxyType(dict(document.get("metrics", {}))),
        **{
            name: part_from_json(kind, document[name])
            for name, kind in _PARTS.items()
            if document.get(name) is not None
        },
    )


def _bytes(name: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise SpecError(f"memory.{name}", value, "not a byte count")
    return value


def _spec_hash(digest: str, workload: Mapping[str, Any], strategy: Mapping[str, Any]) -> str:
    # The name is not part of it: a folder and a hub id may hold the same model.
    what = {key: value for key, value in workload.items() if key != "model"}
    spec = {"model": digest, "workload": what, "strategy": dict(strategy)}
    return content_hash(spec)
