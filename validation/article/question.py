"""Estimates behind the claims: one question, its answer and the command that prints it."""

from __future__ import annotations

from functools import cache
from typing import Any

from rigsize.estimate import Estimate, estimate
from rigsize.hardware import parse_gpus
from rigsize.models import resolve_model
from rigsize.report.answer import command_of
from rigsize.seed_table import MAX_LENGTH
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime.run_time import RunTime, run_time
from rigsize.steptime.step import Quantiles
from rigsize.units import format_duration

BASE, LARGE, XL, XXL = (f"xlm-roberta-{size}" for size in ("base", "large", "xl", "xxl"))
GB = 10**9
GIB = 1 << 30
_OF_WORKLOAD = ("task", "use", "max_length", "num_labels", "padding_in_batch", "max_target_length")


@cache
def ask(model: str, gpus: str = "A100-80GB", **given: Any) -> Estimate:
    """The estimate of a model; by default 3-way classification of texts of 128 tokens."""
    workload: dict[str, Any] = {
        "task": "sequence-classification",
        "use": "fine-tuning",
        "max_length": MAX_LENGTH,
    }
    workload |= {key: given.pop(key) for key in _OF_WORKLOAD if key in given}
    found = parse_gpus(gpus)
    return estimate(
        resolve_model(model),
        Workload(model=model, **workload),
        Strategy(**given),
        Cluster(accelerator=found.accelerator, per_node=found.per_node, nodes=found.nodes),
    )


def command(found: Estimate) -> str:
    """What prints this very estimate."""
    return command_of("estimate", found)


def device(found: Estimate) -> int:
    """Bytes of the device at its peak: reserved and context."""
    peak = found.memory.device_peak_bytes
    assert peak is not None
    return peak


def rows(found: Estimate, *prefixes: str) -> int:
    """Bytes of the ledger's rows at the peak whose names begin so."""
    return sum(row.num_bytes for row in found.memory.ledger if row.name.startswith(prefixes))


def gib(num_bytes: float) -> str:
    """`12.34 GiB`."""
    return f"{num_bytes / GIB:.2f} GiB"


def gb(num_bytes: float) -> str:
    """`6.17 GB`, decimal as the article counts."""
    return f"{num_bytes / GB:.2f} GB"


def timed(found: Estimate) -> RunTime:
    """The step of an estimate, and its rates in inference."""
    return run_time(found.source, found.workload, found.strategy, found.cluster, draws=200)


def spread(seconds: Quantiles) -> str:
    """`1.2 s (1.0 s to 1.5 s)`."""
    low, mid, high = map(format_duration, seconds)
    return f"{mid} ({low} to {high})"
