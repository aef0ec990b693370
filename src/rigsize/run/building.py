"""The model of a run on its device: the one that is traced, with random weights."""

from __future__ import annotations

import gc
from typing import Any

import torch

from rigsize.errors import MeasurementFailed
from rigsize.run import host
from rigsize.run.job import Job, build_options
from rigsize.spec import Strategy
from rigsize.trace.model import build, build_base, prepare
from rigsize.train.parallel import World, shard
from rigsize.units import format_bytes

__all__ = ["build_model", "fill", "set_matrix_precision"]


def build_model(job: Job, config: Any, world: World) -> torch.nn.Module:
    """The model as its ranks hold it, with nothing of its making left in the cache.

    In a fake world weights are random too: nobody sends the real ones.
    """
    _check_host_room(job, config, world)
    strategy = job.strategy

    def make(place: str) -> torch.nn.Module:
        # Straight onto the card where the whole model goes there: the host may be small.
        whole = place == "cpu" and strategy.parallel != "fsdp"
        return _adapted(job, config, job.device if whole else place)

    model = shard(make, strategy, world, training=job.workload.training)
    if world.fake:
        fill(model)
    _free_cache(job.device)
    return model


def _adapted(job: Job, config: Any, place: str) -> torch.nn.Module:
    options, policy = build_options(job), job.strategy.policy
    if options.quantization:
        # Never whole on the card in its 16 bit: the card may hold only what it becomes.
        start = "meta" if place == "meta" else "cpu"
        return prepare(build_base(config, options, start), options, place)
    model = build_base(config, options, place)
    if policy.compute == "half" and policy.half_dtype == "float16":
        # Built in bf16 and converted on the host: in place on the card it would leave holes.
        model = model.to("meta" if place == "meta" else "cpu", torch.float16)
        _free_cache(job.device)
        model = model.to(place)
    return prepare(model, options)


def fill(model: torch.nn.Module) -> None:
    """Storage that was only reserved holds whatever was there: slow numbers, impossible indices.

    Position ids, rotary frequencies and the like get their values from transformers' own
    initialisation of the modules that hold them.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    with torch.no_grad():
        for parameter in model.parameters():
            local: Any = getattr(parameter, "to_local", None)
            (parameter if local is None else local()).normal_(0, 0.02)
        for buffer in model.buffers():
            buffer.zero_()
        for module in base.modules():
            if any(buffer is not None for buffer in module._buffers.values()):
                base._init_weights(module)


def _check_host_room(job: Job, config: Any, world: World) -> None:
    """A CPU run beyond the free memory would be killed and take others with it."""
    available = host.available_host_bytes() if job.device == "cpu" else None
    if available is None:
        return
    policy = job.strategy.policy
    more = policy.gradient_bytes + policy.master_bytes if job.workload.training else 0
    model = build(config, build_options(job), "meta")
    ranks = world.size if job.strategy.parallel == "fsdp" else 1
    each = ((p.numel(), p.requires_grad) for p in model.parameters())
    needed = sum(n * (policy.weight_bytes + more * trained) for n, trained in each) // ranks
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
