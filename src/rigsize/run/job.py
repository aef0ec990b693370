"""One run: what is asked, and what of it decides the model and the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.models.source import ModelSource
from rigsize.spec import Strategy, Workload

if TYPE_CHECKING:
    from rigsize.run.step import StepRecipe
    from rigsize.texts.source import DataSource
    from rigsize.texts.stats import LengthHistogram
    from rigsize.trace.model import BuildOptions

__all__ = [
    "Job",
    "MeasureOptions",
    "build_options",
    "options_of",
    "recipe_of",
    "step_recipe",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """What is measured beyond the plain run."""

    world: int | None = None
    """Ranks that there are said to be: FSDP's share of one of them, in a fake process group."""
    histogram: LengthHistogram | None = None
    """Lengths of synthetic texts; without it and without data every text has max_length tokens."""
    histogram_source: str = ""
    """The file it was read from."""
    data: DataSource | None = None
    """Real texts."""
    tokenizer: str | None = None
    """For the data; the model's folder or hub id where None."""
    cap_bytes: int | None = None
    """Memory that the card is said to have, CUDA only."""
    snapshot: Path | None = None
    """Where to write what was alive at the peak."""
    attribution: bool = False
    """Whether the bytes at the peak are counted by what they are."""

    @property
    def keeps_peak(self) -> bool:
        """Whether the meter has to remember the peak's allocations."""
        return self.attribution or self.snapshot is not None


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
    options: MeasureOptions = field(default_factory=MeasureOptions)

    @property
    def fake_world(self) -> int | None:
        """Ranks of the fake process group, None where the group is real or there is none."""
        return self.options.world if self.strategy.parallel == "fsdp" else None


def build_options(job: Job) -> BuildOptions:
    """What of the job changes the model that is built."""
    return options_of(job.workload, job.strategy)


def options_of(workload: Workload, strategy: Strategy) -> BuildOptions:
    """What of a run changes the model that is built, as the trace has it."""
    from rigsize.spec.adapter import adapter_of
    from rigsize.trace.model import BuildOptions

    return BuildOptions(
        task=workload.task,
        compute=strategy.policy.compute,
        attention=strategy.attention,
        recompute=strategy.recompute,
        training=workload.training,
        num_labels=workload.num_labels,
        loss=strategy.loss,
        unpadded=workload.padding == "unpadded",
        adapter=adapter_of(strategy),
        quantization="" if strategy.stored_as == "none" else strategy.stored_as,
        half_dtype=_half_dtype(strategy),
        generates=workload.generates,
    )


def _half_dtype(strategy: Strategy) -> str:
    """bf16 weights are converted where they are loaded; quantised ones cannot be, later."""
    half: str = strategy.policy.half_dtype
    return half if strategy.stored_as != "none" and half != "float32" else "bfloat16"


def step_recipe(job: Job) -> StepRecipe:
    """What of the job changes the step's code."""
    return recipe_of(job.workload, job.strategy, job.device)


def recipe_of(workload: Workload, strategy: Strategy, device_type: str) -> StepRecipe:
    """What of a run changes the step's code."""
    import torch

    from rigsize.run.step import StepRecipe

    policy = strategy.policy
    return StepRecipe(
        task=workload.task,
        autocast_dtype=getattr(torch, policy.half_dtype) if strategy.compute == "amp" else None,
        device_type=device_type,
        hold_output=strategy.hold_output,
        max_grad_norm=strategy.max_grad_norm,
        saves_on_host=strategy.offload == "activations" and workload.training,
    )
