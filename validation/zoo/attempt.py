"""The two trials of a case: traced by the product's own path, and run for real on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from validation.zoo.cases import Case
from validation.zoo.shrink import small_configs

from rigsize.keys import trace_key
from rigsize.models import ModelSource, check_config, check_task, max_positions
from rigsize.run.batch import random_batch
from rigsize.run.step import StepRecipe, micro_step
from rigsize.spec import Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.model import BuildOptions, build, forward_arguments, load_config
from rigsize.trace.session import Session

POINT = {"B": 2, "S": 64, "T": 48}
REAL_POINT = {"B": 2, "S": 32, "T": 24}
MOST_REAL_PARAMETERS = 300_000_000
"""A real run takes twelve bytes a parameter and must leave room for its neighbours."""


def sizes_of(task: str, point: Mapping[str, int]) -> dict[str, int]:
    """Texts of one length; targets where the task has them."""
    return {symbol: size for symbol, size in point.items() if symbol != "T" or task == "seq2seq-lm"}


def traced(case: Case) -> dict[str, Any]:
    """Forward and backward of the default configuration at one size."""
    return _profile(case, lambda session, point: exact_label(point))


def proved(case: Case) -> dict[str, Any]:
    """The same for every size of a domain, as `rigsize estimate` does it."""
    return _profile(case, lambda session, point: session.domain_of(point))


def _profile(case: Case, label: Callable[[Session, Mapping[str, int]], str]) -> dict[str, Any]:
    config = {"model_type": case.model_type}
    check_config(config)
    check_task(config, case.task)
    source = ModelSource(
        name=case.model_type,
        origin="config",
        config=config,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )
    workload = Workload(model=case.model_type, task=case.task, max_length=POINT["S"])
    key = trace_key(source, workload, Strategy(), device="cuda")
    session = Session(config, key, max_positions(config))
    profile = session.profile([label(session, sizes_of(case.task, POINT))])
    return {
        "ok": True,
        "domain": next(iter(profile.domains)),
        "layers": sum(len(stack) for stack in profile.representative),
        "traced_layers": sum(profile.traced_depths),
    }


def ran(case: Case) -> dict[str, Any]:
    """The default configuration is built on `meta`, a small variant of it runs for real."""
    options = BuildOptions(task=case.task, compute="fp32")
    build(load_config({"model_type": case.model_type}, options), options, "meta")
    errors = []
    for name, values in small_configs(case.model_type):
        try:
            return _run(case.task, load_config(values, options), options) | {"variant": name}
        except Exception as error:  # whatever transformers raises is the answer
            errors.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        gc.collect()
    return {"ok": False, "error": errors[-1], "errors": errors}


def _run(task: str, config: Any, options: BuildOptions) -> dict[str, Any]:
    parameters = sum(p.numel() for p in build(config, options, "meta").parameters())
    if parameters > MOST_REAL_PARAMETERS:
        raise MemoryError(f"{parameters:,} parameters are too many for a real run")
    torch.manual_seed(0)
    model = build(config, options, "cpu")
    batch = random_batch(config, options, sizes_of(task, REAL_POINT), padded=True, seed=0)
    arguments = {**batch, **forward_arguments(config, options)}
    loss = micro_step(model, arguments, StepRecipe(task=task, device_type="cpu"))
    return {"ok": True, "parameters": parameters, "loss": float(loss)}
