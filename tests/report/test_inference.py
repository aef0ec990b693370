"""The inference table by hand: a line a model and precision, a column a batch."""

from __future__ import annotations

import io

from rich.console import Console

from rigsize.report.inference import NOT_PUBLISHED, inference_document, inference_text
from rigsize.seed_inference import InferenceRow
from rigsize.steptime.step import Quantiles

GIB = 1 << 30


def _row(
    batch: int, device_gib: float, size: int | None, rate: Quantiles | None = None
) -> InferenceRow:
    return InferenceRow(
        model="FacebookAI/xlm-roberta-base",
        precision="fp32",
        batch=batch,
        weight_bytes=GIB,
        allocated_peak_bytes=int((device_gib - 0.5) * GIB),
        device_peak_bytes=int(device_gib * GIB),
        size_class_gb=size,
        texts_per_s=rate,
        bound_by="" if rate is None else "compute",
        reason="no rate is published" if rate is None else "",
    )


ROWS = [_row(1, 1.75, 8, Quantiles(8.25, 10.4, 2_000)), _row(16, 100.0, None)]


def test_one_line_holds_all_batches() -> None:
    console = Console(file=io.StringIO(), width=100)
    for part in inference_text(ROWS, "as stated", {8: "a card"}):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    line, rates = (line for line in text.splitlines() if "fp32" in line)
    assert line.split() == ["base", "fp32", "1.00", "1.75", "(8)", "100.00", "(>", "80)"]
    assert rates.split() == ["base", "fp32", "10", "(8.2", "to", "2,000)", "unknown"]
    assert "recipe: as stated" in text


def test_the_document_says_that_nothing_is_published() -> None:
    document = inference_document(ROWS, "as stated", {8: "a card"})
    first, second = document["rows"]
    assert (first["table"], first["micro_batch"], first["precision"]) == ("inference", 1, "fp32")
    assert first["predicted"]["size_class_gb"] == 8
    assert second["predicted"]["size_class_gb"] is None
    assert second["predicted"]["size_class_gb_unknown_reason"] == "past the largest class"
    assert first["predicted"]["texts_per_s"] == {"p10": 8.25, "p50": 10.4, "p90": 2_000}
    assert second["predicted"]["texts_per_s"] is None
    assert second["predicted"]["texts_per_s_unknown_reason"] == "no rate is published"
    for key in ("published", "verdict"):
        assert first[key] is None
        assert first[f"{key}_unknown_reason"] == NOT_PUBLISHED
