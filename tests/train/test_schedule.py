"""The learning rate against transformers' own schedules."""

from __future__ import annotations

import pytest
import torch

from rigsize.train.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("linear", "get_linear_schedule_with_warmup"),
        ("cosine", "get_cosine_schedule_with_warmup"),
    ],
)
def test_it_is_transformers_schedule(name: str, theirs: str) -> None:
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = getattr(transformers, theirs)(optimizer, 2, 20)
    for step in range(20):
        assert learning_rate_factor(name, step, 20, 0.1) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        schedule.step()


def test_constant_only_warms_up() -> None:
    factors = [learning_rate_factor("constant", step, 10, 0.2) for step in range(10)]
    assert factors == [0.0, 0.5] + [1.0] * 8


def test_without_warm_up_the_first_step_is_whole() -> None:
    assert learning_rate_factor("linear", 0, 10, 0.0) == 1.0
