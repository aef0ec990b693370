"""The allocated peak that is predicted for a step, beside the peak of that step really run.

On a CPU the predicted figure is the bytes of all live tensors; the measured one, torch's own
allocator events, also has the scratch inside CPU kernels (docs/trace.md), so 1 % is the band.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.trace.tiny import CONFIGS

from rigsize.estimate import estimate
from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.models.source import ModelSource
from rigsize.point import point_of
from rigsize.run.measure import measure
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.session import Session

BAND = 0.01
WIDE = {"hidden_size": 128}
"""Wide enough that a kernel's scratch is small beside tensors."""
AMP = {"precision": "amp-bf16"}
IN_BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": None}
CPU = Cluster(accelerator=find_accelerator("cpu"))


def source_of(family: str) -> ModelSource:
    return ModelSource(
        name=family,
        origin="config",
        config=CONFIGS[family] | WIDE,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )


def error(family: str, workload: Workload, strategy: Strategy) -> float:
    """Predicted less measured allocated peak, as a share of the measured one."""
    source = source_of(family)
    key = trace_key(source, workload, strategy, device="cpu")
    # Of this size alone, which is one trace: tests/trace proves how sizes are fitted.
    size = exact_label(point_of(workload, strategy))
    profile = Session(source.config, key, 128).profile([size])
    predicted = estimate(source, workload, strategy, CPU, profile=profile)
    record = measure(source, workload, strategy, "cpu")
    assert record.outcome == "ok", record.message
    measured = record.memory.allocated_peak_bytes
    assert measured is not None
    return predicted.memory.allocated_peak_bytes / measured - 1


def job(task: str, padding: str = "fixed", **given: Any) -> Workload:
    return Workload(model="tiny", task=task, max_length=64, padding=padding, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "padding", "given"),
    [
        ("xlm-roberta", "masked-lm", "fixed", {"loss": "masked"}),
        ("xlm-roberta", "masked-lm", "fixed", {"loss": "chunked", "accumulation": 2}),
        ("xlm-roberta", "masked-lm", "unpadded", {"loss": "masked", "tokens_per_batch": 300}),
        ("xlm-roberta", "masked-lm", "unpadded", AMP | {"loss": "chunked"}),
        ("xlm-roberta", "sequence-classification", "unpadded", {"tokens_per_batch": 300}),
        ("xlm-roberta", "token-classification", "unpadded", AMP | {"recompute": "block"}),
        ("xlm-roberta-xl", "masked-lm", "unpadded", {"loss": "masked", "hold_output": False}),
        ("bert", "embedding", "unpadded", {"tokens_per_batch": 300}),
        ("llama", "causal-lm", "fixed", IN_BACKWARD | {"optimizer": "adafactor"}),
        ("xlm-roberta", "masked-lm", "fixed", {"recompute": "selective", "optimizer": "muon"}),
        ("llama", "causal-lm", "fixed", {"recompute": "every-2", "optimizer": "adafactor-hf"}),
        ("llama", "causal-lm", "fixed", {"loss": "chunked"}),
        ("llama", "causal-lm", "unpadded", {"loss": "chunked", "tokens_per_batch": 300}),
        ("qwen3", "causal-lm", "unpadded", AMP | {"loss": "masked", "tokens_per_batch": 200}),
        ("qwen3", "sequence-classification", "unpadded", {}),
        ("llama", "causal-lm", "fixed", {"method": "lora", "lora_rank": 16}),
        ("llama", "causal-lm", "fixed", {"method": "adalora", "lora_rank": 9, "accumulation": 2}),
        ("xlm-roberta", "sequence-classification", "unpadded", AMP | {"method": "dora"}),
        ("llama", "causal-lm", "fixed", {"method": "prompt", "recompute": "block"}),
    ],
)
def test_training(family: str, task: str, padding: str, given: dict[str, Any]) -> None:
    assert abs(error(family, job(task, padding), Strategy(micro_batch=8, **given))) < BAND


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlm-roberta", "llama"])
def test_inference(family: str) -> None:
    workload = job("sequence-classification", "unpadded", use="inference")
    assert abs(error(family, workload, Strategy(micro_batch=8, tokens_per_batch=300))) < BAND


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "given"),
    [
        ("xlm-roberta", "masked-lm", {}),
        ("llama", "causal-lm", {"bucket_view": True, "accumulation": 2}),
    ],
)
def test_ddp_in_a_world_of_one(family: str, task: str, given: dict[str, Any]) -> None:
    strategy = Strategy(micro_batch=8, parallel="ddp", **given)
    assert abs(error(family, job(task), strategy)) < BAND
