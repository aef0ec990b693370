"""The model of a run on its device: the one that is traced, with random weights."""

from __future__ import annotations

import gc
from typing import Any

import torch

from rigsize.errors import MeasurementFailed
from rigsize.run import host
from rigsize.run.job import Job, build_options
from rigsize.spec import Strategy
from rigsize.trace.model import build
from rigsize.units import format_bytes

__all__ = ["build_model", "set_matrix_precision"]


def build_model(job: Job, config: Any) -> torch.nn.Module:
    """The model on its device in its dtype, with nothing of its making left in the cache."""
    _check_host_room(job, config)
    options, policy = build_options(job), job.strategy.policy
    model = build(config, options, job.device)
    if policy.compute == "half" and policy.half_dtype == "float16":
        # Built in bf16 and converted on the host: in place on the card it would leave holes.
        model = model.to("cpu", torch.float16)
        _free_cache(job.device)
        model = model.to(job.device)
    _free_cache(job.device)
    return model


def _check_host_room(job: Job, config: Any) -> None:
    """A CPU run beyond the free memory would be killed and take others with it."""
    available = host.available_host_bytes() if job.device == "cpu" else None
    if available is None:
        return
    policy = job.strategy.policy
    each = policy.weight_bytes
    if job.workload.training:
        each += policy.gradient_bytes + policy.master_bytes
    model = build(config, build_options(job), "meta")
    needed = each * sum(p.numel() for p in model.parameters())
    if needed > available:
        raise MeasurementFailed(
            "device",
            "cpu",
            f"weights and gradients alone take {format_bytes(needed)},"
            f" {format_bytes(available)} of host memory are free",
            hint="a smaller model, or a machine with more memory",
        )


def _free_cache(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def set_matrix_precision(strategy: Strategy) -> None:
    """TF32 products where the policy says so, full fp32 otherwise."""
    tf32 = strategy.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
