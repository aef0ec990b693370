"""DeepSpeed's estimators of model states under ZeRO-2 and ZeRO-3, by its own functions."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from rigsize.peers.answer import PeerAnswer
from rigsize.peers.models import build_on_meta, how_to_install, sizes_of

if TYPE_CHECKING:
    from rigsize.estimate import Estimate

__all__ = ["ask_zero2", "ask_zero3"]

_MODULES = {2: "stage_1_and_2", 3: "stage3"}
_STATES = ("weights", "gradients", "master_copy", "optimizer_states")


def ask_zero2(estimate: Estimate) -> PeerAnswer:
    """`estimate_zero2_model_states_mem_needs` for the run's devices and offload."""
    return _ask(estimate, 2)


def ask_zero3(estimate: Estimate) -> PeerAnswer:
    """`estimate_zero3_model_states_mem_needs` for the run's devices and offload.

    With `zero_init`, its default: the model is never whole on one rank.
    """
    return _ask(estimate, 3)


def _ask(estimate: Estimate, stage: int) -> PeerAnswer:
    name = f"ZeRO-{stage}"
    if not estimate.workload.training:
        reason = "its estimators are for training alone"
        return PeerAnswer(name=name, total_bytes=None, unknown_reason=reason)
    function, version = _function(stage)
    if function is None:
        return PeerAnswer(name=name, total_bytes=None, unknown_reason=version)
    cluster, options = estimate.cluster, _options(estimate, stage)
    sizes = sizes_of(build_on_meta(estimate, estimate.workload.task))
    layers = {"largest_layer_params": sizes.largest_layer} if stage == 3 else {}
    host, device, *_ = function(
        total_params=sizes.parameters,
        num_gpus_per_node=cluster.per_node,
        num_nodes=cluster.nodes,
        **layers,
        **options,
    )
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    same = "" if estimate.strategy.parallel == f"zero{stage}" else ", had it run so"
    return PeerAnswer(
        name=name,
        version=f"of DeepSpeed {version}",
        total_bytes=device,
        lumped=_STATES,
        host_bytes=host,
        note=f"model states alone, of mixed precision whatever runs{same}; {said}",
    )


def _options(estimate: Estimate, stage: int) -> dict[str, bool]:
    """Its switches for our `--offload`."""
    offload = estimate.strategy.offload
    options = {"cpu_offload": offload in ("cpu", "optimizer")}
    if stage == 3:
        options["cpu_offload_params"] = offload == "cpu"
    return options


def _function(stage: int) -> tuple[Any, str]:
    """(its function, its version), or (None, why not in one line).

    Its import greets on stdout, which is the answer's: it is sent to stderr.
    """
    missing = how_to_install("deepspeed")
    if missing:
        return None, missing
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(f"deepspeed.runtime.zero.{_MODULES[stage]}")
            version = importlib.import_module("deepspeed").__version__
    except Exception as error:  # compilers, drivers, missing packages: whatever it trips over
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return None, f"deepspeed cannot be imported here ({text})"
    return getattr(module, f"estimate_zero{stage}_model_states_mem_needs"), version
