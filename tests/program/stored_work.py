"""Work of bundled models on their stored profiles, without torch; skipped where none ships."""

from __future__ import annotations

from typing import Any

import pytest

from rigsize.hardware import find_accelerator
from rigsize.keys import key_for
from rigsize.models import resolve_model
from rigsize.program.work import Work
from rigsize.program.work_build import work_for
from rigsize.spec import Strategy, Workload
from rigsize.trace.store import stored_work


def stored(model: str, use: str = "pre-training", gpu: str = "A100-40GB", **more: Any) -> Work:
    """The work of 128 tokens on the shipped profile; never traces."""
    source = resolve_model(model)
    workload = Workload(model=model, task="masked-lm", use=use, max_length=128)
    strategy = Strategy(**{"micro_batch": 1, **more})
    accelerator = find_accelerator(gpu)
    point = {"B": strategy.micro_batch, "S": 128, "T": 0}
    if stored_work(key_for(source, workload, strategy, accelerator), point) is None:
        pytest.skip(f"no work of {model} is stored in this checkout: make profiles")
    return work_for(source, workload, strategy, accelerator, point)
