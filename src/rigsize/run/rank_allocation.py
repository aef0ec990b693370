"""AdaLoRA shrinks its ranks behind each optimizer step, while the gradients are still there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rigsize.train.parallel import unwrap

__all__ = ["rank_allocation"]


def rank_allocation(
    model: torch.nn.Module, step: int, steps: int | None = None
) -> Callable[[], None] | None:
    """What `run.step.train_step` calls before it drops the gradients; None for other methods.

    Args:
        model: the model, in DDP or not.
        step: of the run, from 1.
        steps: optimizer steps of the whole run; None leaves the number it was made with.
    """
    adapted: Any = getattr(unwrap(model), "base_model", None)
    allocator = getattr(adapted, "rankallocator", None)
    if allocator is None:
        return None
    if steps is not None:
        allocator.set_total_step(max(2, steps))  # of one step none would come before the last

    def allocate() -> None:
        # A run that goes on at its very last step has nothing to rank by: peft does not save it.
        if allocator.ipt or step < allocator.peft_config.total_step:
            adapted.update_and_allocate(step)

    return allocate
