"""What a calibration measured: by topic, the median beside what the packaged model says."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rigsize.hardware import Accelerator
from rigsize.hardware.names import known_accelerator
from rigsize.run.calibrated import Sample
from rigsize.run.calibration_records import calibration_of, predicted_s
from rigsize.run.clock import NOISY
from rigsize.run.record import to_json
from rigsize.steptime.constants import CPU_ADAM_BYTES_PER_PARAM

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.run.record import Record

__all__ = ["calibration_document", "calibration_lines", "calibration_text"]


def calibration_document(record: Record) -> dict[str, Any]:
    """The Record and the Calibration that is read from it."""
    found = asdict(calibration_of(record))
    return {"record": to_json(record), "calibration": found}


def calibration_text(record: Record) -> Iterator[RenderableType]:
    """A table by topic, then what is to be doubted and what was not measured."""
    from rigsize.report.console import table

    part = record.calibration
    assert part is not None
    where = record.hardware.gpu or record.hardware.cpu or record.device
    yield f"{part.accelerator} ({where}), {part.wall_s:.0f} s"
    made = table(
        None, "measured", "median", "rate", "spread", "of predicted",
        right=("median", "rate", "spread", "of predicted"),
    )  # fmt: skip
    for row in _rows(part.samples, known_accelerator(part.accelerator)):
        made.add_row(*row)
    yield made
    yield from calibration_lines(record)


def calibration_lines(record: Record) -> Iterator[str]:
    """What is to be doubted, and what was not measured with its reason."""
    part = record.calibration
    if part is None:
        return
    noisy = [s for s in part.samples if s.spread >= NOISY]
    if noisy:
        yield (
            f"{len(noisy)} of {len(part.samples)} samples vary by {NOISY:.0%} or more between"
            " repetitions: calibrate again on a machine that does nothing else"
        )
    if part.accelerator == "cpu":
        yield "no prediction uses it: times are of GPUs, which have hosts of their own"
    for what, why in part.unmeasured.items():
        yield f"not measured: {what}: {why}"


def _rows(samples: tuple[Sample, ...], gpu: Accelerator | None) -> Iterator[tuple[str, ...]]:
    """One for each kind, key and detail: medians over its sizes."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.kind, sample.key, sample.detail), []).append(sample)
    for name, group in groups.items():
        ratios = [
            s.median_s / known for s in group if gpu is not None and (known := predicted_s(s, gpu))
        ]
        yield (
            _name(*name) + (f", {len(group)} sizes" if len(group) > 1 else ""),
            _seconds(statistics.median(s.median_s for s in group)),
            _rate(group),
            f"{statistics.median(s.spread for s in group):.0%}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
        )


def _name(kind: str, key: str, detail: str) -> str:
    words = {
        "dispatch": "dispatch, tiny model on the host",
        "launch": "launches, tiny model on the GPU",
        "gemm": f"product {key} {detail}",
        "misaligned": f"head over 250,002 words {key} {detail}",
        "aligned": f"head over 250,112 words {key} {detail}",
        "memory": key,
        "attention": f"attention {key} {detail}",
        "copy": f"pinned copy {key.replace('_', ' ')}",
        "collective": key.replace("_", " "),
        "cpu_adam": f"AdamW on the host, {key}",
    }
    return words[kind]


def _rate(group: list[Sample]) -> str:
    """Of the largest sample, in the unit of its kind."""
    sample = max(group, key=lambda one: one.sizes)
    s, sizes = sample.median_s, sample.sizes
    if sample.kind in ("gemm", "misaligned", "aligned"):
        return f"{2 * sizes[0] * sizes[1] * sizes[2] / s / 1e12:.3g} TFLOP/s"
    if sample.kind in ("memory", "copy", "collective"):
        return f"{sizes[0] / s / 1e9:.3g} GB/s"
    if sample.kind == "cpu_adam":
        return f"{sizes[0] * CPU_ADAM_BYTES_PER_PARAM / s / 1e9:.3g} GB/s"
    if sample.kind in ("dispatch", "launch"):
        return f"{s / sizes[-1] * 1e6:.3g} us each of {sizes[-1]:,}"
    return ""


def _seconds(s: float) -> str:
    if s >= 1:
        return f"{s:.3g} s"
    return f"{s * 1e3:.3g} ms" if s >= 1e-3 else f"{s * 1e6:.3g} us"
