"""What cannot be run is refused before anything is imported or allocated. No torch here."""

from __future__ import annotations

import os

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.models.lengths import check_lengths
from rigsize.models.positions import check_task
from rigsize.models.source import ModelSource
from rigsize.run.job import MeasureOptions
from rigsize.run.specs import LEAST_STEPS, MOST_STEPS
from rigsize.spec import Strategy, Workload, check_together
from rigsize.spec.checks import integer, one_of
from rigsize.spec.quantization import check_cpu

__all__ = ["DEVICES", "MOST_RANKS", "check_job", "check_options", "check_runs"]

DEVICES = ("cpu", "cuda")
MOST_RANKS = 100_000


def check_job(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
    options: MeasureOptions | None = None,
) -> None:
    """Refuses what cannot be run, before anything is imported or allocated."""
    one_of("device", device, DEVICES)
    integer("steps", steps, LEAST_STEPS, MOST_STEPS)
    integer("seed", seed, 0, 2**63 - 1)
    check_task(source.config, workload.task)
    check_lengths(source, workload, strategy)
    check_together(workload, strategy)
    if device == "cpu":
        check_cpu(strategy, training=workload.training)
    check_runs(workload, strategy)
    if options is not None:
        check_options(options, strategy, device)
        _check_prompts(workload, options)


_RUN: dict[str, tuple[object, ...]] = {
    "parallel": ("single", "ddp", "fsdp"),
    "offload": ("none", "cpu", "optimizer", "activations"),
    "compile": (False,),
}
"""What the loop runs for real; estimates answer more."""


def check_runs(workload: Workload, strategy: Strategy) -> None:
    """Raises UnsupportedCombination for what is estimated alone."""
    for field, run in _RUN.items():
        value = getattr(strategy, field)
        if value not in run:
            raise UnsupportedCombination(
                field.replace("_", "-"), value, "not run yet", allowed=[str(v) for v in run]
            )
    if workload.generates and strategy.parallel != "single":
        raise UnsupportedCombination(
            "parallel", strategy.parallel, "tokens are written on one device", nearest="single"
        )


def _check_prompts(workload: Workload, options: MeasureOptions) -> None:
    """A call of `generate` has prompts of one length."""
    if workload.generates and (options.data is not None or options.histogram is not None):
        raise UnsupportedCombination(
            "prompt-length",
            workload.prompt_tokens,
            "prompts are made of random ids, all of this length",
            hint="leave out --data and --histogram",
        )


def check_options(options: MeasureOptions, strategy: Strategy, device: str) -> None:
    """Refuses options that the strategy or the device has no use for."""
    _check_world(options.world, strategy)
    if options.data is not None and options.histogram is not None:
        raise UnsupportedCombination(
            "histogram",
            options.histogram_source,
            "the data has lengths of its own",
            hint="give --data or --histogram",
        )
    if options.cap_bytes is not None and device == "cpu":
        raise UnsupportedCombination(
            "cap",
            options.cap_bytes,
            "a CPU has no caching allocator that could be kept below it",
            allowed=("--device cuda",),
        )
    if options.snapshot is not None and not options.snapshot.absolute().parent.is_dir():
        raise SpecError("snapshot", str(options.snapshot), "its folder does not exist")


def _check_world(world: int | None, strategy: Strategy) -> None:
    if world is None:
        return
    integer("world", world, 1, MOST_RANKS)
    if strategy.parallel == "single" and world > 1:
        raise UnsupportedCombination(
            "world", world, "parallel single is one rank", allowed=("ddp", "fsdp"), nearest="fsdp"
        )
    if "RANK" in os.environ:
        raise UnsupportedCombination(
            "world", world, "torchrun has started real ranks", hint="leave --world out"
        )
