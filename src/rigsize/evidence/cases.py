"""Validation cases: what somebody measured, and how near a prediction has to come.

`validation/cases.toml` holds the published ones, `validation/records/` our own Records. No torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rigsize.errors import SizingError, SpecError, nearest
from rigsize.models.source import ModelSource
from rigsize.run.compare import Prediction, prediction_from_json
from rigsize.run.record import Record, from_json
from rigsize.run.specs import parse_spec
from rigsize.spec import Strategy, Workload
from rigsize.spec.checks import one_of
from rigsize.units import GIB

__all__ = ["KINDS", "STATISTICS", "Case", "RecordCase", "load_cases", "load_records", "parse_case"]

KINDS = ("seed", "published", "record")
STATISTICS = ("allocated", "reserved", "device")
_UNITS = {"bytes": 1, "GiB": GIB, "MiB": 1024**2, "GB": 10**9}

RECORD_BANDS_PERCENT = {"allocated": 3.0, "reserved": 5.0, "device": 5.0}
"""Declared on 2026-11-23, before any Record of a GPU existed."""
CPU_BAND_PERCENT = 0.5
"""Of the allocated peak on a CPU, where neither blocks nor kernels' scratch are in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured figure and the question it answers."""

    id: str
    kind: str
    """One of KINDS."""
    source: str
    """Where the figure can be looked up again, with its licence."""
    as_of: str
    measured_bytes: int
    printed: str
    """The figure as its source prints it, with its unit."""
    statistic: str
    """One of STATISTICS."""
    band_percent: float
    """How far a prediction may be off, declared before it was made."""
    band_declared: str
    fitted: bool
    """A constant was tuned on it: it proves nothing."""
    other_model_code: str = ""
    """Where the measured program was not the one that is predicted: how it differs."""
    assumptions: tuple[str, ...] = ()
    not_answerable: str = ""
    """Why no Strategy of this version expresses the run; empty if one does."""
    gpu: str
    workload: Workload | None
    strategy: Strategy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCase:
    """A Record, and the prediction that was made beside it on the same machine."""

    record: Record
    prediction: Prediction | None = None
    fitted: bool = False
    file: str = ""

    @property
    def source(self) -> ModelSource:
        """The very model that ran: its config is in the Record."""
        model = self.record.model
        return ModelSource(
            name=model.name,
            origin="config",
            config=model.config,
            path=None,
            checkpoint_parameters=None,
            checkpoint_note="not asked",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A table of the file with its keys taken out one by one."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self.values.pop(key, default)
        if value is None or not isinstance(value, kind) or (kind is float and value is True):
            problem = "missing" if value is None else "of the wrong type"
            raise SpecError(f"{self.name}: {key}", value, problem)
        return value


_KEYS = (
    "id kind source as_of measured unit statistic band_percent band_declared fitted "
    "other_model_code assumptions not_answerable gpu spec"
).split()


def load_cases(*files: Path) -> tuple[Case, ...]:
    """The cases of one or several files; an id may stand once."""
    cases: dict[str, Case] = {}
    for file in files:
        for entry in _tables(file):
            case = parse_case(entry)
            if case.id in cases:
                raise SpecError("id", case.id, "used twice in the cases")
            cases[case.id] = case
    return tuple(cases.values())


def load_records(folder: Path, fitted: frozenset[str] = frozenset()) -> tuple[RecordCase, ...]:
    """Every Record of a folder: `*.json` alone, and `*.jsonl` as suites write them.

    Args:
        folder: `validation/records`.
        fitted: ids of Records on which a constant was tuned.
    """
    found: list[RecordCase] = []
    for file in sorted(folder.glob("*.json*")):
        text = file.read_text(encoding="utf-8")
        documents = text.splitlines() if file.suffix == ".jsonl" else [text]
        for number, document in enumerate(documents, start=1):
            if document.strip():
                found.extend(_record_case(f"{file.name}:{number}", document, fitted))
    return tuple(found)


def _record_case(place: str, text: str, fitted: frozenset[str]) -> list[RecordCase]:
    try:
        document = json.loads(text)
    except ValueError:
        raise SpecError("record", place, "not JSON") from None
    if "record" not in document:
        document = {"record": document}
    if document["record"] is None:
        return []  # the suite refused the job: nothing was measured
    record = from_json(document["record"])
    if record.kind == "calibration":
        return []  # times alone, and no memory to be judged
    return [
        RecordCase(
            record=record,
            prediction=prediction_from_json(document.get("prediction")),
            fitted=record.record_id in fitted,
            file=place,
        )
    ]


def _tables(file: Path) -> list[Mapping[str, Any]]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError("cases", str(file), f"cannot be read ({error})") from None
    tables = document.get("case", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SpecError("cases", str(file), "not of [[case]] tables")
    return tables


def parse_case(table: Mapping[str, Any]) -> Case:
    """The case of one table; SpecError names what is missing or unknown."""
    for key in table:
        if key not in _KEYS:
            raise SpecError(key, table[key], "unknown key of a case", nearest=nearest(key, _KEYS))
    entry = _Entry(name=str(table.get("id", "case")), values=dict(table))
    workload, strategy = _spec(entry)
    kind, statistic = entry.take("kind", str), entry.take("statistic", str)
    one_of("kind", kind, KINDS)
    one_of("statistic", statistic, STATISTICS)
    measured, unit = entry.take("measured", (int, float)), entry.take("unit", str)
    one_of("unit", unit, _UNITS)
    case = Case(
        id=entry.take("id", str),
        kind=kind,
        source=entry.take("source", str),
        as_of=entry.take("as_of", str),
        measured_bytes=round(measured * _UNITS[unit]),
        printed=f"{measured:,} {unit}",
        statistic=statistic,
        band_percent=float(entry.take("band_percent", (int, float))),
        band_declared=entry.take("band_declared", str),
        fitted=entry.take("fitted", bool),
        other_model_code=entry.take("other_model_code", str, ""),
        assumptions=tuple(entry.take("assumptions", list, [])),
        not_answerable=entry.take("not_answerable", str, ""),
        gpu=entry.take("gpu", str),
        workload=workload,
        strategy=strategy,
    )
    return _checked(case)


def _spec(entry: _Entry) -> tuple[Workload | None, Strategy | None]:
    if "spec" not in entry.values:
        return None, None
    try:
        spec = parse_spec(entry.take("spec", dict), entry.name)
    except SizingError as error:
        raise SpecError(f"{entry.name}: spec", "", str(error)) from None
    return spec.workload, spec.strategy


def _checked(case: Case) -> Case:
    if case.measured_bytes <= 0 or not 0 < case.band_percent <= 100:
        raise SpecError(f"{case.id}: band", case.band_percent, "no measurement or no band")
    if (case.workload is None) != bool(case.not_answerable):
        raise SpecError(
            f"{case.id}: spec", None, "a case has a spec, or says why none expresses it"
        )
    return case
