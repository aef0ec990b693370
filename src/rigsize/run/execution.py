"""The steps of a run, under its meter. What breaks on the way becomes the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from rigsize.errors import SizingError
from rigsize.run.batch import batch_sizes, random_batch
from rigsize.run.building import build_model, set_matrix_precision
from rigsize.run.cuda_meter import CudaMeter
from rigsize.run.job import Job, build_options, step_recipe
from rigsize.run.meters import CpuMeter, Meter
from rigsize.run.recording import shorten

__all__ = ["Execution", "execute", "is_out_of_memory"]

# A RuntimeError, not torch.OutOfMemoryError: the words of c10's CPU allocator and of cuBLAS.
_OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(slots=True, kw_only=True)
class Execution:
    """What a run found; the only mutable thing here."""

    meter: Meter | None = None
    """None where the run ended before the model was loaded."""
    outcome: str = "failed"
    message: str = ""
    skipped_steps: int = 0
    """Optimizer steps that the GradScaler left out because a gradient overflowed."""


def execute(job: Job, used_before_bytes: int | None) -> Execution:
    """Builds the model and makes the steps; `used_before_bytes` is what others hold of the card."""
    found = Execution()
    with _expected_failures(found):
        _execute(job, found, used_before_bytes)
    return found


@contextmanager
def _expected_failures(found: Execution) -> Iterator[None]:
    """A run may end in any exception of torch or the model: it becomes the outcome."""
    try:
        yield
        found.outcome = "ok"
    except SizingError:
        raise  # bad input, or a package that is missing
    except Exception as error:
        found.outcome = "out_of_memory" if is_out_of_memory(error) else "failed"
        found.message = shorten(str(error)) or type(error).__name__
        if found.meter is not None:
            found.meter.abandon()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, cuBLAS or the host's allocator ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error) for w in _OUT_OF_MEMORY)


def _execute(job: Job, found: Execution, used_before_bytes: int | None) -> None:
    from rigsize.trace.capture import quiet_transformers
    from rigsize.trace.model import forward_arguments, load_config, named_tensors

    torch.manual_seed(job.seed)
    if job.device == "cuda":
        found.meter = CudaMeter(used_before_bytes)
        set_matrix_precision(job.strategy)
    options = build_options(job)
    with quiet_transformers():
        config = load_config(job.source.config, options)
        model = build_model(job, config)
    batch = random_batch(
        config,
        options,
        batch_sizes(job.workload, job.strategy),
        padded=job.workload.padding_in_batch,
        seed=job.seed,
    )
    batch = {name: tensor.to(job.device) for name, tensor in batch.items()}
    if found.meter is None:
        given = named_tensors(batch).values()
        found.meter = CpuMeter([*model.parameters(), *model.buffers(), *given])
    inputs: dict[str, Any] = batch | forward_arguments(config, options)
    with _attention(job):
        if job.workload.training:
            _train(job, found, found.meter, model, inputs)
        else:
            _infer(job, found.meter, model, inputs)


def _train(
    job: Job, found: Execution, meter: Meter, model: torch.nn.Module, batch: Mapping[str, Any]
) -> None:
    from rigsize.run.optimizers import make_torch_optimizer
    from rigsize.run.step import train_step

    optimizer = make_torch_optimizer(model.parameters(), job.strategy)
    scaler = _scaler(job)
    recipe, accumulation = step_recipe(job), job.strategy.accumulation
    for _ in range(job.steps):
        scale = scaler.get_scale() if scaler else 0.0
        meter.begin_step()
        train_step(
            model,
            (batch for _ in range(accumulation)),
            optimizer,
            recipe,
            shares=[1 / accumulation] * accumulation,
            scaler=scaler,
            phase=meter.mark,
        )
        meter.end_step()
        found.skipped_steps += bool(scaler) and scaler.get_scale() < scale


def _infer(job: Job, meter: Meter, model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    from rigsize.run.step import inference_step

    recipe = step_recipe(job)
    for _ in range(job.steps):
        meter.begin_step()
        out = inference_step(model, batch, recipe, phase=meter.mark)
        # Inside the step, so that the meter sees it go: else it would live through the next one.
        del out
        meter.end_step()


def _attention(job: Job) -> AbstractContextManager[Any]:
    """`flash` allows SDPA no other kernel; on a CPU the word has no effect."""
    if job.strategy.attention != "flash" or job.device == "cpu":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels: AbstractContextManager[Any] = sdpa_kernel([SDPBackend.FLASH_ATTENTION])
    return kernels


def _scaler(job: Job) -> Any:
    """A GradScaler that starts at 1.

    At its default of 65,536 the gradients of random weights overflow: the first optimizer steps
    are skipped, and the states they would make are missing from the peak.
    """
    if not job.strategy.policy.loss_scaling:
        return None
    return torch.amp.GradScaler(job.device, init_scale=1.0)
