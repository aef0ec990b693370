"""Steps on quantised weights, predicted and really run on the CPU by bitsandbytes and torchao."""

from __future__ import annotations

from typing import Any

import pytest
from tests.run.test_against_estimate import BAND, error, job

from rigsize.spec import Strategy

QLORA = {"method": "qlora", "precision": "amp-bf16"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "given"),
    [
        ("llama", "causal-lm", QLORA),
        ("qwen2", "causal-lm", QLORA | {"precision": "bf16", "quantization": "nf4"}),
        ("xlm-roberta", "sequence-classification", QLORA | {"accumulation": 2}),
        ("llama", "causal-lm", {"method": "int8-lora", "precision": "amp-bf16"}),
        (
            "llama",
            "causal-lm",
            {"method": "lora", "quantization": "int8-torchao", "precision": "bf16"},
        ),
    ],
    ids=str,
)
def test_training(family: str, task: str, given: dict[str, Any]) -> None:
    assert abs(error(family, job(task), Strategy(micro_batch=8, **given))) < BAND


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"precision": "int4"},
        {"precision": "bf16", "quantization": "nf4-double"},
        {"precision": "bf16", "quantization": "int8-torchao"},
    ],
    ids=str,
)
def test_inference(given: dict[str, Any]) -> None:
    workload = job("causal-lm", use="inference")
    assert abs(error("llama", workload, Strategy(micro_batch=8, **given))) < BAND
