"""The table that the article announces and does not print: inference of the four models.

Three-way classification of texts of 128 tokens, one forward pass without gradients; each model in
each precision at each batch, on one A100 80 GB, and the smallest size class on which it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rigsize.errors import SizingError
from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.models import ModelSource, resolve_model
from rigsize.seed_table import MAX_LENGTH, size_class
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime.run_time import run_time
from rigsize.steptime.step import Quantiles

__all__ = ["CARD", "INFERENCE_RECIPE", "InferenceRow", "predict_inference"]

MODELS = (
    "FacebookAI/xlm-roberta-base",
    "FacebookAI/xlm-roberta-large",
    "facebook/xlm-roberta-xl",
    "facebook/xlm-roberta-xxl",
)
PRECISIONS = ("fp32", "tf32", "bf16", "int8", "int4")
"""fp16 takes the bytes of bf16; int8 is LLM.int8, int4 NF4, both of bitsandbytes."""
BATCHES = (1, 16, 128)
DRAWS = 200
"""Of a rate's interval: sixty rows are to be had in seconds."""
CARD = "A100-80GB-PCIe"
INFERENCE_RECIPE = (
    "3-way classification, one forward pass under no_grad, every text padded to 128 tokens with"
    f" padding in each batch, SDPA attention, on one {CARD}; fp16 takes what bf16 takes; int8 is"
    " LLM.int8 and int4 NF4 of bitsandbytes, which keep embeddings, norms and head in 16 bits"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRow:
    """One model in one precision at one batch; bytes of one device."""

    model: str
    precision: str
    batch: int
    weight_bytes: int
    """All weights as they are stored."""
    allocated_peak_bytes: int
    device_peak_bytes: int
    """Reserved peak and context."""
    size_class_gb: int | None
    """The smallest declared card on which the replay ends; None past 80 GB."""
    texts_per_s: Quantiles | None = None
    """Tweets a second, batch after batch."""
    bound_by: str = ""
    reason: str = ""
    """Why there is no rate."""


def predict_inference() -> list[InferenceRow]:
    """All rows, models in the article's order."""
    return [row for model in MODELS for row in _rows(resolve_model(model))]


def _rows(source: ModelSource) -> Iterator[InferenceRow]:
    for precision in PRECISIONS:
        for batch in BATCHES:
            found = _estimate(source, precision, batch)
            memory = found.memory
            assert memory.device_peak_bytes is not None
            yield InferenceRow(
                model=source.name,
                precision=precision,
                batch=batch,
                weight_bytes=weight_bytes(found),
                allocated_peak_bytes=memory.allocated_peak_bytes,
                device_peak_bytes=memory.device_peak_bytes,
                size_class_gb=size_class(found.program, memory.allocated_peak_bytes),
                **_rate(found),
            )


def _rate(found: Estimate) -> dict[str, Any]:
    """Tweets a second and what they wait for, or why nobody can say."""
    try:
        run = run_time(found.source, found.workload, found.strategy, found.cluster, draws=DRAWS)
    except SizingError as error:
        return {"reason": str(error)}
    assert run.rates is not None
    return {"texts_per_s": run.rates.texts_per_s, "bound_by": run.bound_by}


def _estimate(source: ModelSource, precision: str, batch: int) -> Estimate:
    workload = Workload(
        model=source.name,
        task="sequence-classification",
        use="inference",
        max_length=MAX_LENGTH,
    )
    strategy = Strategy(precision=precision, micro_batch=batch)
    cluster = Cluster(accelerator=find_accelerator(CARD))
    return estimate(source, workload, strategy, cluster)


def weight_bytes(found: Estimate) -> int:
    """All rows `weights.*` of the ledger."""
    return sum(row.num_bytes for row in found.memory.ledger if row.name.startswith("weights."))
