"""Prediction and measurement of one job in one row, as text and as JSON.

`predict` is the only place here that calls the estimator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rigsize.errors import SizingError, UnknownDevice, UnsupportedCombination
from rigsize.hardware.names import find_accelerator
from rigsize.memory.outside import communication
from rigsize.models.source import ModelSource
from rigsize.program.mesh import mesh_of
from rigsize.run.record import Record
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Comparison",
    "EstimateFunction",
    "Prediction",
    "Row",
    "compare",
    "find_cluster",
    "load_estimate",
    "predict",
    "predict_record",
    "question_of",
    "render",
    "to_json",
]

EstimateFunction = Callable[..., Any]
"""`rigsize.estimate.estimate` (source, workload, strategy, cluster, sizes=), or a stand-in with the
same `memory` fields."""

MOST_PER_NODE = 1024
"""What a Cluster takes."""
INSIDE, OUTSIDE = 0, 4
CPU_TOLERANCE = 0.001
"""Added to the band on a CPU, where no context widens it: Python numbers that c10 wraps as tensors
of a few bytes, and scratch inside CPU kernels, never reach a dispatch trace."""
_SHOWN = {
    "allocated_peak_bytes": "allocated",
    "reserved_peak_bytes": "reserved",
    "device_peak_bytes": "device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The memory of an Estimate, in bytes; reserved and device are None on a CPU."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int | None
    device_peak_bytes: int | None
    low_bytes: int
    high_bytes: int
    """The band of the device peak; on a CPU, of the allocated peak."""

    @property
    def banded(self) -> str:
        """The statistic that the band belongs to."""
        device = self.device_peak_bytes is not None
        return "device_peak_bytes" if device else "allocated_peak_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One statistic predicted and measured."""

    statistic: str
    predicted_bytes: int | None
    measured_bytes: int | None
    unknown_reason: str = ""
    """Why one of the two is missing."""

    @property
    def error_percent(self) -> float | None:
        """(predicted - measured) / measured; positive when the prediction is too high."""
        if self.predicted_bytes is None or not self.measured_bytes:
            return None
        return 100 * (self.predicted_bytes - self.measured_bytes) / self.measured_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A Record beside the prediction of the same job."""

    record: Record
    prediction: Prediction | None
    prediction_unknown_reason: str
    rows: tuple[Row, ...]
    inside_band: bool | None
    """None where there is nothing to judge."""
    verdict: str
    """In words."""

    @property
    def exit_code(self) -> int:
        """4 when the measurement fell outside the predicted band, else 0."""
        return OUTSIDE if self.inside_band is False else INSIDE


def load_estimate() -> EstimateFunction:
    """The estimator, imported when it is needed."""
    estimate: EstimateFunction = importlib.import_module("rigsize.estimate").estimate
    return estimate


def find_cluster(device: str, gpu: str | None, ranks: int = 1) -> Cluster:
    """A device a rank: of the row `cpu`, or of the card as torch names it.

    All on one node, as far as a node reaches: which ranks share a machine is not known here.
    """
    if device != "cpu" and not gpu:
        raise UnknownDevice("gpus", gpu, "the card's name could not be read")
    accelerator = find_accelerator("cpu" if device == "cpu" else str(gpu))
    if ranks <= MOST_PER_NODE:
        return Cluster(accelerator=accelerator, per_node=ranks)
    return Cluster(accelerator=accelerator, nodes=ranks)


def predict(
    estimate: EstimateFunction,
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    sizes: Mapping[str, int] | None = None,
    *,
    fake: bool = False,
) -> Prediction:
    """The estimate's memory, without the rest; `sizes` are those that a run really had.

    A `fake` process group keeps none of the memory that NCCL's communicators would.
    """
    more = {"sizes": sizes} if sizes else {}
    memory = estimate(source, workload, strategy, cluster, **more).memory
    less = communication(mesh_of(strategy, cluster), cluster.accelerator) if fake else None
    low, mid, high = less.value if less else (0, 0, 0)
    device = memory.device_peak_bytes
    return Prediction(
        allocated_peak_bytes=memory.allocated_peak_bytes,
        reserved_peak_bytes=memory.reserved_peak_bytes,
        device_peak_bytes=None if device is None else device - mid,
        low_bytes=memory.low_bytes - low,
        high_bytes=memory.high_bytes - high,
    )


def try_predict(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    gpu: str | None,
    *,
    sizes: Mapping[str, int] | None = None,
    ranks: int = 1,
    fake: bool = False,
) -> tuple[Prediction | None, str]:
    """The prediction, or None and why there is none."""
    try:
        cluster = find_cluster(device, gpu, ranks)
        answer = predict(load_estimate(), source, workload, strategy, cluster, sizes, fake=fake)
        return answer, ""
    except UnsupportedCombination as error:
        if "not answered yet" in error.problem:
            return None, not_predicted(strategy, ranks) or f"not predicted yet ({error.field})"
        return None, str(error)
    except SizingError as error:
        return None, str(error)
    except ImportError as error:
        return None, f"no estimator here ({error})"


def not_predicted(strategy: Strategy, ranks: int) -> str:
    """`not predicted yet (FSDP over 4, offload cpu)`; empty for one device trained in full."""
    parts = []
    if strategy.parallel != "single":
        parts.append(f"{strategy.parallel.upper()} over {ranks}")
    if strategy.offload != "none":
        parts.append(f"offload {strategy.offload}")
    if strategy.method != "full":
        parts.append(strategy.method)
    return f"not predicted yet ({', '.join(parts)})" if parts else ""


def question_of(record: Record) -> tuple[Workload, Strategy, Mapping[str, int] | None]:
    """What a prediction is to be made for: the spec, and the sizes of the largest micro-batch."""
    workload, strategy = record.spec()
    texts = record.texts
    if texts is not None and texts.kind != "full-length":
        workload = replace(workload, padding_in_batch=texts.padded)
        if texts.micro_steps is not None:
            strategy = replace(strategy, accumulation=texts.micro_steps)
    return workload, strategy, record.sizes or None


def predict_record(source: ModelSource, record: Record) -> tuple[Prediction | None, str]:
    """The prediction of a Record's question, or None and why there is none."""
    workload, strategy, sizes = question_of(record)
    return try_predict(
        source,
        workload,
        strategy,
        record.device,
        record.hardware.gpu,
        sizes=sizes,
        ranks=record.world.size if record.world else 1,
        fake=record.world is not None and record.world.fake,
    )


def compare(record: Record, prediction: Prediction | None, reason: str = "") -> Comparison:
    """The rows of the three statistics and the verdict on the band."""
    inside, verdict = _judge(record, prediction, reason)
    return Comparison(
        record=record,
        prediction=prediction,
        prediction_unknown_reason="" if prediction else reason or "not asked for",
        rows=tuple(_row(name, record, prediction, reason) for name in _SHOWN),
        inside_band=inside,
        verdict=verdict,
    )


def _row(name: str, record: Record, prediction: Prediction | None, reason: str) -> Row:
    measured = getattr(record.memory, name) if record.outcome == "ok" else None
    predicted = getattr(prediction, name) if prediction else None
    why = "" if predicted is not None else reason or "not on CPU"
    if measured is None:
        why = record.memory.unknown.get(name, "") or record.outcome.replace("_", " ")
    return Row(
        statistic=name, predicted_bytes=predicted, measured_bytes=measured, unknown_reason=why
    )


def _judge(record: Record, prediction: Prediction | None, reason: str) -> tuple[bool | None, str]:
    if record.outcome == "failed":
        return None, f"the run failed: {record.message}"
    if prediction is None:
        return None, reason or "no prediction to compare with"
    if record.outcome == "out_of_memory":
        return _judge_out_of_memory(record, prediction)
    measured = getattr(record.memory, prediction.banded)
    if measured is None:
        return None, f"no measured {_SHOWN[prediction.banded]} peak to judge the band by"
    low, high = prediction.low_bytes, prediction.high_bytes
    if record.device == "cpu":
        if _over_gloo(record):
            return None, "no verdict: gloo keeps copies of what CPU ranks exchange, not predicted"
        low, high = int(low * (1 - CPU_TOLERANCE)), int(high * (1 + CPU_TOLERANCE))
    inside = low <= measured <= high
    place = "inside" if inside else "below" if measured < low else "above"
    band = f"{format_bytes(low)} to {format_bytes(high)}"
    return inside, f"{_SHOWN[prediction.banded]} peak {place} the predicted band {band}"


def _over_gloo(record: Record) -> bool:
    """Whether real ranks on CPUs exchanged tensors; a card's NCCL has no tensors of its own."""
    world = record.world
    return world is not None and not world.fake and world.size > 1


def _judge_out_of_memory(record: Record, prediction: Prediction) -> tuple[bool | None, str]:
    """Out of memory agrees with a band that reaches the card's capacity."""
    capacity = record.cap.cap_bytes if record.cap else record.hardware.gpu_memory_bytes
    if record.device == "cpu" or capacity is None:
        return None, "the run ran out of memory"
    agrees = prediction.high_bytes >= capacity
    word = "as predicted" if agrees else "although it was predicted to fit"
    return agrees, f"the run ran out of memory, {word}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison without the Record."""
    prediction = comparison.prediction
    return {
        "prediction": asdict(prediction) if prediction else None,
        "prediction_unknown_reason": comparison.prediction_unknown_reason or None,
        "rows": [asdict(row) | {"error_percent": row.error_percent} for row in comparison.rows],
        "inside_band": comparison.inside_band,
        "verdict": comparison.verdict,
    }


def prediction_from_json(document: Mapping[str, Any] | None) -> Prediction | None:
    """The counterpart for a line of a suite's output; unknown fields are left out."""
    if document is None:
        return None
    return Prediction(**{name: document[name] for name in Prediction.__dataclass_fields__})


def render(comparison: Comparison) -> RenderableType:
    """One row a statistic, for rich."""
    from rich.console import Group
    from rich.table import Table

    record = comparison.record
    where = record.hardware.gpu if record.device == "cuda" else record.hardware.cpu
    table = Table(title=f"{record.model.name} on {where or record.device}", title_justify="left")
    for name in ("memory", "predicted", "measured", "error"):
        table.add_column(name, justify="left" if name == "memory" else "right")
    for row in comparison.rows:
        error = row.error_percent
        table.add_row(
            f"{_SHOWN[row.statistic]} peak",
            _shown(row.predicted_bytes, row.unknown_reason),
            _shown(row.measured_bytes, row.unknown_reason),
            "" if error is None else f"{error:+.2f} %",
        )
    return Group(table, comparison.verdict, *(f"note: {note}" for note in record.notes))


def _shown(num_bytes: int | None, reason: str) -> str:
    return reason if num_bytes is None else format_bytes(num_bytes)
