"""From the flags of a verb to the records of a question, and what is found for the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rigsize.cli_flags import VERBS
from rigsize.cli_how import strategy_of
from rigsize.cli_settings import Settings, number, read_spec
from rigsize.cli_target import Target, parse_target
from rigsize.cli_what import auto_length_of, usual_task, warn_training_only, workload_of
from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.models import ModelSource, resolve_model
from rigsize.program.mesh import accumulation_for, mesh_of
from rigsize.recipes import recipe_flags
from rigsize.spec import POLICIES, Cluster, Strategy, Workload
from rigsize.spec.checks import one_of
from rigsize.spec.quantization import of_checkpoint
from rigsize.spec.strategy import LOSSES, METHODS, NOT_YET, OFFLOADS, PARALLELS, QUANTIZATIONS
from rigsize.spec.workload import PADDINGS, with_length

__all__ = [
    "Job",
    "Settings",
    "Target",
    "number",
    "parse_job",
    "parse_target",
    "read_spec",
    "settle_batch",
    "settle_length",
    "settle_parallel",
]

_VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "parallel": (PARALLELS, NOT_YET["parallel"]),
    "offload": (OFFLOADS, ()),
    "method": (METHODS, ()),
    "quantization": (QUANTIZATIONS, ()),
    "loss": (LOSSES, ()),
    "precision": (tuple(POLICIES), ()),
    "padding": (PADDINGS, ()),
}
"""By flag: the contract's values that are taken, and those of a later release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done and how; on what is a Target."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    """With a micro-batch of 1 where it is `auto`."""
    auto_batch: bool
    auto_length: str | None = None
    """The flag whose length is to be found: max-length or prompt-length."""
    global_batch: int | None
    """As asked for; the one that is run may be larger."""


def parse_job(settings: Settings, verb: str = "estimate") -> Job:
    """The question of a verb; SizingError for what is wrong or not answered yet."""
    _refuse_later(settings, verb)
    name = settings.text("model")
    if name is None:
        raise SpecError("model", None, "missing", hint=f"rigsize {verb} MODEL")
    source = resolve_model(
        name,
        trust_remote_code=settings.switch("trust-remote-code"),
        allow_network=not settings.switch("offline"),
    )
    _apply_recipe(settings, source.config)
    _apply_checkpoint(settings, source.config)
    strategy, auto, global_batch = strategy_of(settings)
    workload = workload_of(settings, name, source.config)
    strategy = _texts_of_budget(settings, workload, strategy)
    auto_length = auto_length_of(settings)
    if auto and auto_length:
        raise UnsupportedCombination(
            auto_length, "auto", "the batch is auto already", hint="give one of the two"
        )
    if not workload.training:
        warn_training_only(settings)
        offload = strategy.offload if strategy.offload.startswith("cpu") else "none"
        strategy = replace(strategy, accumulation=1, offload=offload)
    return Job(
        source=source,
        workload=workload,
        strategy=strategy,
        auto_batch=auto,
        auto_length=auto_length,
        global_batch=global_batch if workload.training else None,
    )


def _apply_recipe(settings: Settings, config: Mapping[str, Any]) -> None:
    """The recipe's flags, below those that were given."""
    recipe = settings.text("recipe")
    if recipe is None:
        return
    use = settings.text("use") or "fine-tuning"
    flags = recipe_flags(
        recipe,
        settings.text("task") or usual_task(config, use),
        config,
        on_cpu="cpu" in (settings.text("gpus"), settings.text("device")),
        training=use != "inference",
    )
    settings.assumed.append(
        f"recipe {recipe}: "
        + ", ".join(
            f"{key.replace('_', '-')} {_shown(value)}"
            for key, value in flags.items()
            if key not in settings.given
        )
    )
    settings.given = {**flags, **settings.given}


def _apply_checkpoint(settings: Settings, config: Mapping[str, Any]) -> None:
    """Weights are stored as the checkpoint has them, where nothing else was said."""
    stored = of_checkpoint(config)
    if stored and settings.text("quantization") is None:
        settings.assumed.append(f"quantization {stored}: the checkpoint's own")
        settings.given = {**settings.given, "quantization": stored}


def _shown(value: str | bool) -> str:
    return value if isinstance(value, str) else "yes" if value else "no"


def _texts_of_budget(settings: Settings, workload: Workload, strategy: Strategy) -> Strategy:
    """With a budget of tokens alone a micro-batch has as many texts as it takes to fill it."""
    budget = strategy.tokens_per_batch
    if budget is None or settings.text("batch-size") is not None:
        return strategy
    texts = max(1, -(-budget // workload.max_length))
    settings.assumed = [line for line in settings.assumed if not line.startswith("batch-size ")]
    settings.assumed.append(f"batch-size {texts}: as many full texts as {budget:,} tokens take")
    return replace(strategy, micro_batch=texts)


def _refuse_later(settings: Settings, verb: str) -> None:
    """The contract's values that a later release answers, by name."""
    for flag in VERBS[verb]:
        value = settings.text(flag.name)
        if flag.later and value is not None:
            raise UnsupportedCombination(flag.name, value, "not answered yet")
    for name, (answered, later) in _VALUES.items():
        value = settings.text(name)
        if value is not None:
            one_of(name, value, (*answered, *later))
        if value in later:
            reason = "it changes what each rank computes" if name == "parallel" else ""
            raise UnsupportedCombination(
                name, value, "not answered yet", allowed=answered, hint=reason
            )


def settle_parallel(settings: Settings, job: Job, cluster: Cluster) -> Job:
    """Several devices that nobody said how to use train by DDP, and infer by a device_map.

    This is said to be assumed.
    """
    several, training = cluster.devices > 1, job.workload.training
    if not several or settings.text("parallel") is not None:
        return job
    if not training:
        why = f"device_map='auto' spreads the layers over {cluster.devices:,} devices"
        settings.or_assumed("parallel", "single", why)
        return job
    parallel = settings.or_assumed("parallel", "ddp", f"there are {cluster.devices:,} devices")
    return replace(job, strategy=replace(job.strategy, parallel=parallel))


def settle_length(job: Job, cluster: Cluster, find: Callable[..., int]) -> tuple[Job, bool]:
    """The job with its length found by `find` (`search.longest_context`), and whether any fits."""
    if job.auto_length is None:
        return job, True
    found = find(job.source, job.workload, job.strategy, cluster)
    return replace(job, workload=with_length(job.workload, max(1, found))), found > 0


def settle_batch(job: Job, cluster: Cluster, find: Callable[..., int]) -> tuple[Job, bool]:
    """The job with its batch found by `find` (`search.largest_batch`), and whether any fits.

    A global batch is spread over all ranks.
    """
    strategy, total = job.strategy, job.global_batch
    ranks = mesh_of(strategy, cluster, training=job.workload.training).ranks
    if not job.auto_batch:
        if total is None:
            return job, True
        accumulation = accumulation_for(total, strategy.micro_batch, ranks)
        return replace(job, strategy=replace(strategy, accumulation=accumulation)), True
    if total is not None:
        # Accumulating steps keep gradients alive, so a second micro-step has to fit too.
        strategy = replace(strategy, accumulation=2)
    found = find(job.source, job.workload, strategy, cluster)
    micro = max(1, found if total is None else min(found, -(-total // ranks)))
    again = job.strategy.accumulation if total is None else accumulation_for(total, micro, ranks)
    settled = replace(job.strategy, micro_batch=micro, accumulation=again)
    return replace(job, strategy=settled), found > 0
