"""An estimate of the hand-made model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.report import hand_made

from rigsize.estimate import Estimate
from rigsize.estimate import estimate as make_estimate
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.spec import Cluster, Strategy, Workload

Estimated = Callable[..., Estimate]


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> Estimated:
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)

    def made(
        gpu: str = "A100-40GB", *, use: str = "fine-tuning", per_node: int = 1, **strategy: Any
    ) -> Estimate:
        task = "sequence-classification"
        workload = Workload(model="xlm-roberta-base", task=task, use=use, max_length=128)
        cluster = Cluster(accelerator=find_accelerator(gpu), per_node=per_node)
        source = resolve_model("xlm-roberta-base")
        strategy = {"micro_batch": 16, **strategy}
        return make_estimate(source, workload, Strategy(**strategy), cluster)

    return made
