"""All measurements of a machine in their order, within their time, as one Record."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from rigsize.calibrate import host as on_host
from rigsize.calibrate.kernels import (
    Task,
    attentions,
    misaligned_products,
    products,
)
from rigsize.calibrate.links import collectives, copies
from rigsize.calibrate.timer import Timer
from rigsize.calibrate.traffic import traffic
from rigsize.errors import MeasurementFailed, SizingError, SpecError
from rigsize.hardware import Accelerator, find_accelerator, parse_gpus
from rigsize.models import ModelSource, resolve_model
from rigsize.run import host
from rigsize.run.calibrated import Calibrated, Sample
from rigsize.run.checks import DEVICES
from rigsize.run.record import STATISTICS, Memory, ModelIdentity, Record, now
from rigsize.spec import Strategy, Workload

__all__ = ["calibrate"]

_MODEL = "xlm-roberta-base"
_LIKE = "A100-80GB"
_WHOLE_S, _QUICK_WHOLE_S = 110.0, 12.0
"""No measurement is begun after; they end in two minutes, or in fifteen seconds."""
_BUDGET_S, _QUICK_BUDGET_S = 0.25, 0.05
"""Of one measurement's repetitions."""
_REASON_CHARS = 160
_NO_GPU = "needs a GPU, there is none"
_ON_GPU_ALONE = (
    "launches",
    "the misaligned vocabulary",
    "pinned copies",
    "collectives between the GPUs",
)


@dataclass(slots=True)
class _Session:
    device: str
    quick: bool
    tell: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def run(self, tasks: Iterable[Task], device: str) -> None:
        """Each task's sample; what cannot be measured keeps its reason, and the rest goes on."""
        budget_s = _QUICK_BUDGET_S if self.quick else _BUDGET_S
        whole_s = _QUICK_WHOLE_S if self.quick else _WHOLE_S
        timer = Timer(device, budget_s)
        for task in tasks:
            if time.monotonic() - self.began > whole_s:
                self.unmeasured.setdefault(task.what, f"{whole_s:g} s did not suffice for all")
                continue
            if task.what not in self.told:
                self.told.add(task.what)
                self.tell(task.what)
            try:
                self.samples.append(task.sample(timer(task.make())))
            except (RuntimeError, SpecError) as error:  # out of memory, or no kernel for the dtype
                self.unmeasured[task.what] = " ".join(str(error).split())[:_REASON_CHARS]
            if device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()

    @property
    def wall_s(self) -> float:
        """So far."""
        return time.monotonic() - self.began


def calibrate(
    device: str,
    *,
    quick: bool = False,
    command: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measures this machine in two minutes at most (`quick`: fifteen seconds) and says so.

    Args:
        device: cpu or cuda; a GPU's host is measured with it.
        quick: fewer sizes and repetitions, and a shallower model.
        command: kept in the Record.
        tell: called with each topic as it begins.

    Raises:
        MeasurementFailed: no CUDA device is there.
    """
    if device not in DEVICES:
        raise SpecError("device", device, "unknown value", allowed=DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        why = "torch sees no CUDA device"
        raise MeasurementFailed("device", "cuda", why, hint="--device cpu measures the host")
    within = "a quarter of a minute" if quick else "two minutes at most"
    tell(f"measuring this machine's {'GPU and host' if device == 'cuda' else 'host'}: {within}")
    session = _Session(device=device, quick=quick, tell=tell)
    source = resolve_model(_MODEL, allow_network=False)
    config = on_host.tiny_config(source.config)
    before = torch.get_float32_matmul_precision()
    on_host.dispatch_task(config)  # its imports are no part of the time
    session.began = time.monotonic()
    try:
        for tasks, place in _plan(session, source):
            session.run(tasks, place)
    finally:
        torch.set_float32_matmul_precision(before)
    return _record(session, dataclasses.replace(source, config=config), command)


def _plan(session: _Session, source: ModelSource) -> Iterator[tuple[Iterable[Task], str]]:
    """(tasks, where they run), what decides most first."""
    device, quick = session.device, session.quick
    if device == "cuda":
        yield _one(session, "launches", lambda: on_host.launch_task(source, _counted())), "cuda"
        half = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        yield products("cuda", half, quick=quick), "cuda"
        yield (task._replace(what=_ON_GPU_ALONE[1]) for task in misaligned_products(half)), "cuda"
        yield traffic("cuda", quick=quick), "cuda"
        yield attentions("cuda", half, quick=quick), "cuda"
        yield copies(), "cuda"
        for dtype in ("tf32", "fp32") if half == "bf16" else ("fp32",):
            yield products("cuda", dtype, quick=quick), "cuda"
        if torch.cuda.device_count() > 1:
            yield collectives(torch.cuda.device_count(), quick=quick), "cuda"
        else:
            session.unmeasured[_ON_GPU_ALONE[3]] = "there is one GPU"
    else:
        session.unmeasured |= dict.fromkeys(_ON_GPU_ALONE, _NO_GPU)
    tiny = on_host.tiny_config(source.config)
    yield _one(session, "dispatch", lambda: on_host.dispatch_task(tiny)), "cpu"
    yield on_host.adamw_tasks(quick=quick), "cpu"
    if device == "cpu":
        yield products("cpu", "fp32", quick=quick), "cpu"
        yield traffic("cpu", quick=quick), "cpu"
        yield attentions("cpu", "fp32", quick=quick), "cpu"


def _counted() -> Accelerator:
    """The card whose work counts the launches; of one that the table lacks, what is alike."""
    accelerator, notes = _accelerator(torch.cuda.get_device_name())
    return find_accelerator(_LIKE if notes and "no row" in notes[0] else accelerator)


def _one(session: _Session, what: str, make: Callable[[], Task]) -> Iterator[Task]:
    """Built when its turn comes; what cannot be built is not measured."""
    try:
        yield make()
    except (RuntimeError, SizingError) as error:
        session.unmeasured[what] = " ".join(str(error).split())[:_REASON_CHARS]


def _record(session: _Session, source: ModelSource, command: str) -> Record:
    device = session.device
    found, software = host.hardware(device), host.versions()
    if device == "cuda":
        found, software = host.with_cuda(found, software, torch)
    accelerator, notes = _accelerator(found.gpu if device == "cuda" else "cpu")
    workload = Workload(model=source.name, task=on_host.TASK, max_length=on_host.TOKENS)
    steps = [s for s in session.samples if s.kind in ("dispatch", "launch")]
    return Record(
        kind="calibration",
        created=now(),
        command=command,
        model=ModelIdentity(
            name=f"{source.name}, tiny",
            origin="config",
            config_digest=source.digest,
            config=dict(source.config),
        ),
        workload=dataclasses.asdict(workload),
        strategy=dataclasses.asdict(Strategy()),
        device=device,
        hardware=found,
        versions=software,
        seed=0,
        outcome="ok",
        memory=Memory(unknown=dict.fromkeys(STATISTICS, "a calibration measures times")),
        step_times_s=steps[0].times_s if steps else (),
        steps=len(steps[0].times_s) if steps else 0,
        notes=notes,
        calibration=Calibrated(
            accelerator=accelerator,
            quick=session.quick,
            samples=tuple(session.samples),
            unmeasured=session.unmeasured,
            wall_s=session.wall_s,
        ),
    )


def _accelerator(name: str | None) -> tuple[str, tuple[str, ...]]:
    """(the id of its row, what was assumed of it); its own name where no row has it."""
    if name == "cpu":
        return find_accelerator("cpu").id, ()
    try:
        gpus = parse_gpus(name or "")
    except SizingError:
        return name or "unknown", (f"no row of the table is {name}: nothing is predicted for it",)
    return gpus.accelerator.id, (gpus.assumed_note,) if gpus.assumed_note else ()
