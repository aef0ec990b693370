"""Really runs a Workload x Strategy and writes down what it took.

The model is the one that is traced (`trace.model.build`), the step is the one that is traced
(`run.step`); weights are random, ids are random, nothing is downloaded. torch is imported at the
first call. On CUDA a fresh process is assumed: what ran before would count.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rigsize.errors import MeasurementFailed, SizingError, SpecError
from rigsize.models.positions import check_task, max_positions
from rigsize.models.source import ModelSource
from rigsize.run import host
from rigsize.run.record import STATISTICS, Memory, ModelIdentity, Record, now
from rigsize.run.specs import LEAST_STEPS, MOST_STEPS
from rigsize.spec import Strategy, Workload, check_together
from rigsize.spec.checks import integer, one_of
from rigsize.units import format_bytes

if TYPE_CHECKING:
    import torch

    from rigsize.run.meters import CudaMeter, Meter
    from rigsize.run.step import StepRecipe
    from rigsize.trace.model import BuildOptions

__all__ = ["DEVICES", "check_job", "failed_record", "measure"]

DEVICES = ("cpu", "cuda")
_MESSAGE_CHARS = 500
# A RuntimeError, not torch.OutOfMemoryError: the words of c10's CPU allocator and of cuBLAS.
_OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def measure(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str = "cuda",
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
    command: str = "",
) -> Record:
    """The Record of at least three real steps; running out of memory is a result.

    A job that cannot be run at all, a task without a head or a CUDA that is not there, is an
    error; a run that breaks on its way is a Record with the outcome `failed`.
    """
    check_job(source, workload, strategy, device, steps=steps, seed=seed)
    # Read when torch is imported: the profiler otherwise reports every start on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # Before CUDA starts: afterwards this process's own context would be part of it.
    used_before = host.gpu_used_bytes() if device == "cuda" else None
    base = _blank(source, workload, strategy, device, steps=steps, seed=seed, command=command)
    base = _start(base, device)
    run = _Run(source=source, workload=workload, strategy=strategy, device=device, seed=seed)
    with _expected_failures(run):
        _execute(run, steps, used_before)
    return _finished(base, run)


def check_job(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
) -> None:
    """Refuses what cannot be run, before anything is imported or allocated."""
    one_of("device", device, DEVICES)
    integer("steps", steps, LEAST_STEPS, MOST_STEPS)
    integer("seed", seed, 0, 2**63 - 1)
    check_task(source.config, workload.task)
    _check_length(source, workload)
    check_together(workload, strategy)


def _check_length(source: ModelSource, workload: Workload) -> None:
    longest = max_positions(source.config)
    if longest is not None and workload.max_length > longest:
        raise SpecError(
            "max-length",
            workload.max_length,
            f"beyond the positions of {source.name}",
            allowed=(f"up to {longest:,}",),
        )


def failed_record(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int,
    seed: int,
    command: str,
    message: str,
) -> Record:
    """The Record of a run that left none itself: it crashed, or its time was over."""
    base = _blank(source, workload, strategy, device, steps=steps, seed=seed, command=command)
    return replace(base, message=message[:_MESSAGE_CHARS])


def _blank(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int,
    seed: int,
    command: str,
) -> Record:
    """What is known before the run; failed until it is more."""
    return Record(
        created=now(),
        command=command,
        model=ModelIdentity(
            name=source.name,
            origin=source.origin,
            config_digest=source.digest,
            config=dict(source.config),
        ),
        workload=asdict(workload),
        strategy=asdict(strategy),
        device=device,
        hardware=host.hardware(device),
        versions=host.versions(),
        seed=seed,
        outcome="failed",
        memory=Memory(unknown=dict.fromkeys(STATISTICS, "the run left no figure")),
        steps=steps,
    )


def _start(base: Record, device: str) -> Record:
    import torch

    if device == "cpu":
        return base
    if not torch.cuda.is_available():
        raise MeasurementFailed(
            "device", "cuda", "torch sees no CUDA device", hint="measure with --device cpu"
        )
    hardware, versions = host.with_cuda(base.hardware, base.versions, torch)
    return replace(base, hardware=hardware, versions=versions)


@dataclass(slots=True, kw_only=True)
class _Run:
    """What a run is made of and what it found; the only mutable thing here."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    device: str
    seed: int
    meter: Meter | None = None
    outcome: str = "failed"
    message: str = ""
    skipped_steps: int = 0
    """Optimizer steps that the GradScaler left out because a gradient overflowed."""

    @property
    def options(self) -> BuildOptions:
        from rigsize.trace.model import BuildOptions

        return BuildOptions(
            task=self.workload.task,
            compute=self.strategy.policy.compute,
            attention=self.strategy.attention,
            recompute=self.strategy.recompute == "block",
            training=self.workload.training,
            num_labels=self.workload.num_labels,
        )

    @property
    def recipe(self) -> StepRecipe:
        import torch

        from rigsize.run.step import StepRecipe

        policy = self.strategy.policy
        return StepRecipe(
            task=self.workload.task,
            autocast_dtype=getattr(torch, policy.half_dtype) if policy.compute == "amp" else None,
            device_type=self.device,
            hold_output=self.strategy.hold_output,
            max_grad_norm=self.strategy.max_grad_norm,
        )


@contextmanager
def _expected_failures(run: _Run) -> Iterator[None]:
    """A run may end in any exception of torch or the model: it becomes the outcome."""
    try:
        yield
        run.outcome = "ok"
    except SizingError:
        raise  # bad input, or a package that is missing
    except Exception as error:
        run.outcome = "out_of_memory" if _is_out_of_memory(error) else "failed"
        text = str(error).strip() or type(error).__name__
        run.message = " ".join(text.splitlines()[0].split())[:_MESSAGE_CHARS]
        if run.meter is not None:
            run.meter.abandon()


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error) for w in _OUT_OF_MEMORY)


def _execute(run: _Run, steps: int, used_before: int | None) -> None:
    import torch

    from rigsize.run.batch import batch_sizes, random_batch
    from rigsize.run.meters import CpuMeter, CudaMeter
    from rigsize.trace.capture import quiet_transformers
    from rigsize.trace.model import forward_arguments, load_config

    torch.manual_seed(run.seed)
    if run.device == "cuda":
        run.meter = CudaMeter(used_before)
        _set_matrix_precision(run.strategy)
    with quiet_transformers():
        config = load_config(run.source.config, run.options)
        model = _build(run, config)
    batch = random_batch(
        config,
        run.options,
        batch_sizes(run.workload, run.strategy.micro_batch),
        padded=run.workload.padding_in_batch,
        seed=run.seed,
    )
    batch = {name: tensor.to(run.device) for name, tensor in batch.items()}
    if run.meter is None:
        run.meter = CpuMeter([*model.parameters(), *model.buffers(), *batch.values()])
    inputs: dict[str, Any] = batch | forward_arguments(config, run.options)
    with _attention(run):
        if run.workload.training:
            _train(run, model, inputs, steps)
        else:
            _infer(run, model, inputs, steps)


def _train(run: _Run, model: torch.nn.Module, batch: Mapping[str, Any], steps: int) -> None:
    from rigsize.run.optimizers import make_torch_optimizer
    from rigsize.run.step import train_step

    assert run.meter is not None
    optimizer = make_torch_optimizer(model.parameters(), run.strategy)
    scaler = _scaler(run)
    accumulation = run.strategy.accumulation
    for _ in range(steps):
        scale = scaler.get_scale() if scaler else 0.0
        run.meter.begin_step()
        train_step(
            model,
            (batch for _ in range(accumulation)),
            optimizer,
            run.recipe,
            shares=[1 / accumulation] * accumulation,
            scaler=scaler,
            phase=run.meter.mark,
        )
        run.meter.end_step()
        run.skipped_steps += bool(scaler) and scaler.get_scale() < scale


def _infer(run: _Run, model: torch.nn.Module, batch: Mapping[str, Any], steps: int) -> None:
    from rigsize.run.step import inference_step

    assert run.meter is not None
    for _ in range(steps):
        run.meter.begin_step()
        out = inference_step(model, batch, run.recipe, phase=run.meter.mark)
        # Inside the step, so that the meter sees it go: else it would live through the next one.
        del out
        run.meter.end_step()


def _build(run: _Run, config: Any) -> torch.nn.Module:
    """The model on its device in its dtype, with nothing of its making left in the cache."""
    import torch

    from rigsize.trace.model import build

    _check_host_room(run, config)
    model = build(config, run.options, run.device)
    if run.strategy.policy.compute == "half" and run.strategy.policy.half_dtype == "float16":
        # Built in bf16 and converted on the host: in place on the card it would leave holes.
        model = model.to("cpu", torch.float16)
        _free_cache(run.device)
        model = model.to(run.device)
    _free_cache(run.device)
    return model


def _check_host_room(run: _Run, config: Any) -> None:
    """A CPU run beyond the free memory would be killed and take others with it."""
    from rigsize.trace.model import build

    available = host.available_host_bytes() if run.device == "cpu" else None
    if available is None:
        return
    policy = run.strategy.policy
    each = policy.weight_bytes
    if run.workload.training:
        each += policy.gradient_bytes + policy.master_bytes
    model = build(config, run.options, "meta")
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
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _set_matrix_precision(strategy: Strategy) -> None:
    import torch

    tf32 = strategy.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def _attention(run: _Run) -> AbstractContextManager[Any]:
    """`flash` allows SDPA no other kernel; on a CPU the word has no effect."""
    if run.strategy.attention != "flash" or run.device == "cpu":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels: AbstractContextManager[Any] = sdpa_kernel([SDPBackend.FLASH_ATTENTION])
    return kernels


def _scaler(run: _Run) -> Any:
    """A GradScaler that starts at 1.

    At its default of 65,536 the gradients of random weights overflow: the first optimizer steps
    are skipped, and the states they would make are missing from the peak.
    """
    import torch

    if not run.strategy.policy.loss_scaling:
        return None
    return torch.amp.GradScaler(run.device, init_scale=1.0)


def _finished(base: Record, run: _Run) -> Record:
    meter = run.meter
    record = replace(base, outcome=run.outcome, message=run.message, notes=tuple(_notes(run)))
    if meter is None:
        unknown = dict.fromkeys(STATISTICS, "the run ended before the model was loaded")
        return replace(record, memory=Memory(unknown=unknown))
    return replace(
        record,
        memory=meter.memory(host.peak_host_bytes()),
        phase_peaks_bytes=dict(meter.phase_peaks),
        step_peaks_bytes=tuple(meter.step_peaks),
        step_times_s=tuple(meter.step_times),
    )


def _notes(run: _Run) -> list[str]:
    notes = []
    if run.skipped_steps:
        notes.append(f"{run.skipped_steps} optimizer steps skipped: gradients overflowed")
    if run.device == "cpu":
        notes.append("step times include the profiler")
        if run.strategy.attention == "flash":
            notes.append("attention 'flash' has no effect on a CPU")
        return notes
    meter: CudaMeter | None = run.meter  # type: ignore[assignment]
    return notes + (meter.notes() if meter is not None else [])
