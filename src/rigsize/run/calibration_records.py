"""From Records of `rigsize calibrate` to the Calibration of a device. No torch here.

Ratios are over what this version predicts, so that a Record outlives a change of the model. A
Record speaks for the machine and the torch that it was measured with, and for no other.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from rigsize.errors import SizingError, SpecError, UnsupportedCombination
from rigsize.hardware import Accelerator
from rigsize.hardware.names import known_accelerator
from rigsize.run import host
from rigsize.run.calibrated import Sample
from rigsize.run.folders import CALIBRATION_PREFIX, records_folder
from rigsize.run.record import Record, from_json
from rigsize.steptime.attention import Heads, attention
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.collectives import Collective, collective
from rigsize.steptime.constants import DISPATCH_S, KERNEL_LAUNCH_S
from rigsize.steptime.gemm import Layout, gemm
from rigsize.steptime.memory_bound import MemoryClass, memory_bound

__all__ = [
    "FILE_PREFIX",
    "FoundCalibration",
    "calibration_asked",
    "calibration_for",
    "calibration_of",
    "find_calibration",
    "predicted_s",
]

FILE_PREFIX = CALIBRATION_PREFIX
MOST_DAYS = 180
"""A Record that is older is stale: drivers, clocks and neighbours change."""
_MEMORY_SHARE = 0.02
"""Two readings of one machine's memory differ by what the kernel keeps."""
_LARGEST_FILE_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCalibration:
    """What is known of a device on this machine."""

    calibration: Calibration | None
    notes: tuple[str, ...] = ()
    """Records of the device that were passed over, and why."""


def calibration_for(accelerator_id: str, folder: Path | None = None) -> Calibration | None:
    """The newest Calibration of a device that was measured on this machine; None without one."""
    return find_calibration(accelerator_id, folder).calibration


def calibration_asked(text: str | None, accelerator_id: str) -> FoundCalibration:
    """What `--calibration FILE|none` means; without it the newest Record of this machine.

    A file that is named is taken whatever machine it was measured on. Raises SpecError for one
    that is no calibration, UnsupportedCombination for one of another device.
    """
    if text is None:
        return find_calibration(accelerator_id)
    if text == "none":
        return FoundCalibration(calibration=None)
    record = _read(Path(text).expanduser())
    calibration = calibration_of(record)
    if calibration.accelerator != accelerator_id:
        raise UnsupportedCombination(
            "calibration",
            text,
            f"it was measured on {calibration.accelerator}, not on {accelerator_id}",
            hint="--calibration none takes the packaged constants",
        )
    notes = tuple(_doubts(record))
    return FoundCalibration(calibration=calibration, notes=notes)


def find_calibration(accelerator_id: str, folder: Path | None = None) -> FoundCalibration:
    """The newest of a folder, with what was passed over; broken files are named, not fatal."""
    folder = folder or records_folder()
    notes: list[str] = []
    found: list[Record] = []
    for file in sorted(folder.glob(f"{FILE_PREFIX}*.json")):
        try:
            record = _read(file)
        except SpecError as error:
            notes.append(f"calibration {file.name} is passed over: {error}")
            continue
        if record.calibration is not None and record.calibration.accelerator == accelerator_id:
            found.append(record)
    for record in sorted(found, key=lambda one: one.created, reverse=True):
        doubts = list(_doubts(record))
        if not doubts:
            return FoundCalibration(calibration=calibration_of(record), notes=tuple(notes))
        name = record.record_id[:8]
        notes.append(f"calibration {name} is passed over: {'; '.join(doubts)}")
    return FoundCalibration(calibration=None, notes=tuple(notes))


def _read(file: Path) -> Record:
    try:
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise SpecError("calibration", str(file), "too large for a Record")
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "a file that `rigsize calibrate` wrote, or none"
        raise SpecError("calibration", str(file), "no such file", hint=hint) from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("calibration", str(file), "not a Record that can be read") from None
    if not isinstance(document, dict):
        raise SpecError("calibration", str(file), "not a JSON object")
    try:
        record = from_json(document)
    except SizingError as error:
        raise SpecError("calibration", str(file), error.problem) from None
    if record.calibration is None:
        hint = "rigsize calibrate writes one"
        raise SpecError("calibration", str(file), "a Record, of no calibration", hint=hint)
    return record


def _doubts(record: Record) -> Iterator[str]:
    """Why a Record does not speak for this machine as it is now."""
    then, here = record.hardware, host.hardware("cpu")
    if (then.cpu, then.cores) != (here.cpu, here.cores) or _differ(
        then.host_memory_bytes, here.host_memory_bytes
    ):
        yield f"measured on another machine ({then.cores} cores, {then.cpu})"
    torch, ours = record.versions.torch, host.versions().torch
    if ours is not None and torch is not None and _minor(torch) != _minor(ours):
        yield f"measured with torch {torch}, here is {ours}"
    try:
        made = datetime.strptime(record.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        yield f"of no time ({record.created})"
        return
    days = (datetime.now(UTC) - made).days
    if days > MOST_DAYS:
        yield f"stale, {days} days old: rigsize calibrate measures again"


def _differ(one: int | None, other: int | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _MEMORY_SHARE * max(one, other)


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


# -- from samples to ratios ---------------------------------------------------------------------


def calibration_of(record: Record) -> Calibration:
    """The Calibration of one Record; what it has no sample or no prediction of is left out."""
    part = record.calibration
    if part is None:
        raise SpecError("calibration", record.record_id, "a Record of no calibration")
    samples = part.samples
    dispatch_s, launch_s = _host_costs(samples)
    rates = {s.key: s.sizes[0] / s.median_s for s in samples if s.kind == "copy"}
    adam = {s.key: s.median_s / s.sizes[0] for s in samples if s.kind == "cpu_adam"}
    gpu = known_accelerator(part.accelerator)
    ratios = {} if gpu is None else _ratios(samples, gpu)
    return Calibration(
        accelerator=part.accelerator,
        record=record.record_id,
        dispatch_s=dispatch_s,
        launch_s=launch_s,
        gemm=_of("gemm", ratios),
        misaligned=_misaligned(samples),
        memory=_of("memory", ratios),
        attention=_median(r for at, found in ratios.items() if at[0] == "attention" for r in found),
        to_device_bytes_per_s=rates.get("to_device"),
        to_host_bytes_per_s=rates.get("to_host"),
        collective=_of("collective", ratios),
        cpu_adam_s_per_param=adam.get("loop"),
        cpu_adam_fused_s_per_param=adam.get("fused"),
    )


_Ratios = Mapping[tuple[str, str], list[float]]


def _ratios(samples: Iterable[Sample], gpu: Accelerator) -> _Ratios:
    """Measured over predicted seconds by (kind, key)."""
    found: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        predicted = predicted_s(sample, gpu)
        if predicted:
            found.setdefault((sample.kind, sample.key), []).append(sample.median_s / predicted)
    return found


def _of(kind: str, ratios: _Ratios) -> dict[str, float]:
    return {key: statistics.median(found) for (of, key), found in ratios.items() if of == kind}


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def predicted_s(sample: Sample, gpu: Accelerator) -> float | None:
    """What the packaged model says of a sample, in seconds; None where it says nothing."""
    predict = _PREDICT.get(sample.kind)
    try:
        return predict(sample, gpu) if predict else None
    except UnsupportedCombination:
        return None


def _gemm(sample: Sample, gpu: Accelerator) -> float:
    m, n, k = sample.sizes
    layout = cast(Layout, sample.detail)
    return gemm(gpu, m, n, k, dtype=sample.key, layout=layout).seconds


def _attention(sample: Sample, gpu: Accelerator) -> float:
    words = sample.detail.split()
    return attention(
        gpu,
        Heads(*sample.sizes),
        causal="causal" in words,
        dtype=sample.key,
        backward="backward" in words,
    ).seconds


def _collective(sample: Sample, gpu: Accelerator) -> float:
    num_bytes, ranks = sample.sizes
    return collective(gpu, cast(Collective, sample.key), num_bytes, ranks).seconds


_PREDICT: dict[str, Callable[[Sample, Accelerator], float]] = {
    "gemm": _gemm,
    "misaligned": _gemm,
    "aligned": _gemm,
    "memory": lambda s, gpu: memory_bound(gpu, s.sizes[0], cast(MemoryClass, s.key)).seconds,
    "attention": _attention,
    "collective": _collective,
}


def _misaligned(samples: Iterable[Sample]) -> float | None:
    """The time for each multiplication of the vocabulary's products over the aligned ones'."""
    by_kind: dict[str, dict[str, float]] = {"misaligned": {}, "aligned": {}}
    for sample in samples:
        if sample.kind in by_kind:
            m, n, k = sample.sizes
            by_kind[sample.kind][sample.detail] = sample.median_s / (m * n * k)
    aligned = by_kind["aligned"]
    return _median(s / aligned[at] for at, s in by_kind["misaligned"].items() if at in aligned)


def _host_costs(samples: Iterable[Sample]) -> tuple[float | None, float | None]:
    """Seconds of (a dispatch, a launch).

    A GPU's step is one figure for both: it is shared out as the packaged constants are, so that
    their sum is the one measured. Without launches it is all dispatch, the host's own tiny kernels
    included, which makes it an upper bound.
    """
    samples = list(samples)
    for sample in samples:
        if sample.kind == "launch":
            operators, kernels = sample.sizes
            each = DISPATCH_S.value.mid, KERNEL_LAUNCH_S.value.mid
            scale = sample.median_s / (operators * each[0] + kernels * each[1])
            return each[0] * scale, each[1] * scale
    host_alone = [s for s in samples if s.kind == "dispatch"]
    return (host_alone[0].median_s / host_alone[0].sizes[0] if host_alone else None), None
