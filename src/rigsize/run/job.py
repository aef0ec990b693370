"""One run: what is asked, and what of it decides the model and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.models.source import ModelSource
from rigsize.spec import Strategy, Workload

if TYPE_CHECKING:
    from rigsize.run.step import StepRecipe
    from rigsize.trace.model import BuildOptions

__all__ = ["Job", "build_options", "step_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is run, and on what."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    device: str
    """cpu or cuda."""
    steps: int
    """Optimizer steps, or forward passes."""
    seed: int
    """Of weights, ids and dropout."""


def build_options(job: Job) -> BuildOptions:
    """What of the job changes the model that is built."""
    from rigsize.trace.model import BuildOptions

    workload, strategy = job.workload, job.strategy
    return BuildOptions(
        task=workload.task,
        compute=strategy.policy.compute,
        attention=strategy.attention,
        recompute=strategy.recompute == "block",
        training=workload.training,
        num_labels=workload.num_labels,
        loss=strategy.loss,
        unpadded=workload.padding == "unpadded",
    )


def step_recipe(job: Job) -> StepRecipe:
    """What of the job changes the step's code."""
    import torch

    from rigsize.run.step import StepRecipe

    strategy = job.strategy
    policy = strategy.policy
    return StepRecipe(
        task=job.workload.task,
        autocast_dtype=getattr(torch, policy.half_dtype) if policy.compute == "amp" else None,
        device_type=job.device,
        hold_output=strategy.hold_output,
        max_grad_norm=strategy.max_grad_norm,
    )
