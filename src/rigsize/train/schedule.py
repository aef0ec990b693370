"""The learning rate as a pure function of the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import math

__all__ = ["learning_rate_factor"]


def learning_rate_factor(schedule: str, step: int, steps: int, warmup_share: float) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0) of `steps`.

    Rises linearly over `warmup_share` of the steps, then decays as transformers/optimization.py has
    it (`get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup`).
    """
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
