"""The steps of a run, under its meter. What breaks on the way becomes the outcome."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from rigsize.errors import SizingError
from rigsize.run import host
from rigsize.run.building import build_model, set_matrix_precision
from rigsize.run.clock import Clock, times_apart
from rigsize.run.cuda_history import CudaHistory
from rigsize.run.cuda_meter import CudaMeter
from rigsize.run.feeds import Feed, make_feed
from rigsize.run.generation import Generation
from rigsize.run.job import Job, build_options, step_recipe
from rigsize.run.meters import CpuMeter, Meter, StepWatch
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.rank_allocation import rank_allocation
from rigsize.run.recording import shorten
from rigsize.run.specs import LEAST_STEPS
from rigsize.run.step import inference_step, train_step
from rigsize.run.supply import Namer, Supply, lasting
from rigsize.run.worlds import CardUse, card_use, limit_allocator
from rigsize.trace.capture import quiet_transformers
from rigsize.trace.model import forward_arguments, load_config
from rigsize.train.parallel import World, before_micro

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
    feed: Feed | None = None
    clock: Clock | None = None
    """The timed steps; None where they are the metered ones."""
    card: CardUse = field(default_factory=CardUse)
    pss_peak_bytes: int | None = None
    allocator_limit_bytes: int | None = None
    """Under a cap."""
    outcome: str = "failed"
    message: str = ""
    skipped_steps: int = 0
    """Optimizer steps that the GradScaler left out because a gradient overflowed."""


def execute(job: Job, world: World, used_before_bytes: int | None) -> Execution:
    """Builds the model and makes the steps; `used_before_bytes` is what others hold of the card."""
    found = Execution()
    with _expected_failures(found):
        _execute(job, world, found, used_before_bytes)
    return found


@contextmanager
def _expected_failures(found: Execution) -> Iterator[None]:
    """A run may end in any exception of torch or the model: it becomes the outcome."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's own warnings are no result
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


def _execute(job: Job, world: World, found: Execution, used_before_bytes: int | None) -> None:
    torch.manual_seed(job.seed)
    options = build_options(job)
    if job.device == "cuda":
        found.meter = CudaMeter(used_before_bytes)
        set_matrix_precision(job.strategy)
    found.card = card_use(world, used_before_bytes)
    found.allocator_limit_bytes = limit_allocator(job.options.cap_bytes, found.card)
    with quiet_transformers():
        config = load_config(job.source.config, options)
        found.feed = feed = make_feed(job, config, world)
        model = build_model(job, config, world)
    optimizer = None
    if job.workload.training:
        optimizer = make_torch_optimizer(model.named_parameters(), job.strategy)
    supply = Supply(feed, world.device, forward_arguments(config, options))
    names = Namer(model, optimizer, supply) if job.options.keeps_peak else None
    if found.meter is None:
        found.meter = CpuMeter([*lasting(model, optimizer), *supply.resident], names)
    elif names is not None and isinstance(found.meter, CudaMeter):
        found.meter = CudaHistory(found.meter, names)
    run = _Run(job, found, model, optimizer, supply)
    with _attention(job):
        run.steps(found.meter, LEAST_STEPS if times_apart(job) else job.steps)
        if times_apart(job):
            found.clock = Clock()
            run.steps(found.clock, job.steps)


class _Run:
    """The steps, one after another, whoever watches."""

    def __init__(
        self,
        job: Job,
        found: Execution,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        supply: Supply,
    ) -> None:
        self._job, self._found = job, found
        self._model, self._optimizer, self._supply = model, optimizer, supply
        self._recipe, self._scaler = step_recipe(job), _scaler(job)
        self._look()

    def steps(self, watch: StepWatch, count: int) -> None:
        """`count` steps, from the feed's first window on."""
        for number in range(count):
            watch.begin_step()
            if self._optimizer is None:
                self._infer(watch, number)
            else:
                self._train(watch, number, self._optimizer)
            watch.end_step()
            self._look()

    def _train(self, watch: StepWatch, number: int, optimizer: torch.optim.Optimizer) -> None:
        scale = self._scaler.get_scale() if self._scaler else 0.0
        train_step(
            self._model,
            self._supply.inputs(number),
            optimizer,
            self._recipe,
            shares=self._supply.shares(number),
            scaler=self._scaler,
            phase=watch.mark,
            before_micro=before_micro(self._model),
            after_step=rank_allocation(self._model, number + 1),
        )
        self._found.skipped_steps += bool(self._scaler) and self._scaler.get_scale() < scale

    def _infer(self, watch: StepWatch, number: int) -> None:
        batch = next(iter(self._supply.inputs(number)))
        if self._job.workload.generates:
            self._generate(watch, batch)
            return
        out = inference_step(self._model, batch, self._recipe, phase=watch.mark)
        # Inside the step, so that the meter sees it go: else it would live through the next one.
        del out

    def _generate(self, watch: StepWatch, batch: Mapping[str, Any]) -> None:
        """One call of `generate`; its passes are one phase, for a mark between them costs time."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        generation = Generation(self._model, inputs, self._recipe)
        generation.prefill(watch.mark)
        for _ in range(self._job.workload.new_tokens - 1):
            generation.decode(lambda _phase: None)

    def _look(self) -> None:
        """At the host, between the steps: it costs milliseconds."""
        pss = host.pss_bytes()
        if pss is not None:
            self._found.pss_peak_bytes = max(self._found.pss_peak_bytes or 0, pss)


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
