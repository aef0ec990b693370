"""Estimates of bundled models on their stored profiles, without torch; skipped where none ships."""

from __future__ import annotations

from typing import Any

import pytest

from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.models import resolve_model
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.trace.store import read_packaged


def stored_estimate(
    model: str = "FacebookAI/xlm-roberta-base",
    *,
    task: str = "sequence-classification",
    use: str = "fine-tuning",
    max_length: int = 128,
    gpu: str = "A100-40GB",
    **strategy: Any,
) -> Estimate:
    """The estimate on the shipped profile; never traces."""
    source = resolve_model(model)
    workload = Workload(model=model, task=task, use=use, max_length=max_length)
    chosen = Strategy(**{"micro_batch": 16, **strategy})
    key = trace_key(source, workload, chosen, device="cuda")
    profile = read_packaged(key)
    if profile is None:
        pytest.skip(f"no profile {key.text()} is stored in this checkout: make profiles")
    cluster = Cluster(accelerator=find_accelerator(gpu))
    return estimate(source, workload, chosen, cluster, profile=profile)
