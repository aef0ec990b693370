"""`rigsize train`: flags to a job, the loop, the prediction beside what was measured."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import Given, device_of, print_answer, say, settings_of, typed
from rigsize.cli_job import parse_job
from rigsize.cli_ranks import as_rank, launch, launched
from rigsize.cli_settings import Settings, number
from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.run.compare import Comparison
    from rigsize.run.record import Record
    from rigsize.train.outcome import Outcome
    from rigsize.train.settings import TrainJob

__all__ = ["train_job", "train_verb"]

DOES_NOT_FIT = 3
_MOST_RANKS = 1024
_LOST_RANK = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def train_verb(given: Given) -> int:
    """`rigsize train`, on every rank."""
    settings = settings_of("train", given)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported
    ranks = settings.integer("ranks")
    if ranks is not None and not 1 <= ranks <= _MOST_RANKS:
        raise SpecError("ranks", ranks, "not a number in range", allowed=(f"1 to {_MOST_RANKS}",))
    job = train_job(settings)
    teller = _Teller(job.settings.progress)
    if _rank() == 0 and not launched():
        teller.assumptions(settings)
    from rigsize.train.parallel import UNDER_TORCHRUN, check_ranks
    from rigsize.train.setup import check_job

    under_torchrun = UNDER_TORCHRUN in os.environ
    check_ranks(job.strategy, ranks)
    if ranks and ranks > 1 and not under_torchrun:
        check_job(job)
        return launch(ranks, settings.integer("max-restarts"))
    return as_rank(lambda: _run(job, settings.switch("json"), teller))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


class _Teller:
    """What is said beside the loop's own progress, in the words of that progress."""

    def __init__(self, progress: str) -> None:
        self._progress = progress

    def assumptions(self, settings: Settings) -> None:
        """Settings without effect, and what was chosen where nothing was given."""
        for warning in settings.warnings:
            self.note(warning)
        if self._progress != "quiet":
            for line in settings.assumed:
                self.note(f"assumed: {line}")

    def note(self, text: str) -> None:
        """One line."""
        if self._progress == "json":
            self.event("note", text=text)
        else:
            say(text)

    def event(self, name: str, **fields: Any) -> None:
        """One JSON line; nothing where nobody asked for them."""
        if self._progress == "json":
            print(json.dumps({"event": name, **fields}), file=sys.stderr, flush=True)


# -- from flags to a job ------------------------------------------------------------------------


def train_job(settings: Settings) -> TrainJob:
    """The job of these flags; SizingError for what is missing or wrong."""
    data = settings.text("data")
    if data is None:
        raise SpecError("data", None, "missing", hint="rigsize train MODEL --data FILE")
    if settings.text("batch-size") == "auto":
        raise SpecError(
            "batch-size", "auto", "only estimate looks for it", hint="give the number it finds"
        )
    from rigsize.texts.source import DataSource
    from rigsize.train.settings import TrainJob

    # Before the job is parsed: a recipe asks whether it is a CPU.
    device = device_of(settings.text("device"))
    settings.given = {**settings.given, "device": device}
    job = parse_job(settings, "train")
    columns: dict[str, Any] = {
        f"{name}_column": settings.text(f"{name}-column") for name in ("text", "label", "target")
    }
    held_out = settings.text("eval-data")
    return TrainJob(
        source=job.source,
        workload=job.workload,
        strategy=job.strategy,
        settings=_settings(settings, job.global_batch, job.workload.task),
        data=DataSource(path=data, **columns),
        eval_data=None if held_out is None else DataSource(path=held_out, **columns),
        tokenizer=settings.text("tokenizer"),
        device=device,
        command=typed(),
        labels_asked=settings.integer("num-labels"),
    )


_NUMBERS = (
    "learning-rate",
    "weight-decay",
    "warmup-share",
    "eval-share",
    "save-minutes",
)
_INTEGERS = (
    "max-steps",
    "eval-every",
    "save-every",
    "keep",
    "patience",
    "log-every",
    "seed",
)
_TEXTS = ("schedule", "init", "progress")
_SWITCHES = ("group-by-length", "tensorboard", "export", "predict", "checkpoint")


def check_run_flags(settings: Settings) -> None:
    """SpecError for a figure beside the plan that `rigsize train` would refuse."""
    from rigsize.train.settings import TrainSettings

    TrainSettings(**_run_values(settings), out=Path())


def _run_values(settings: Settings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    parsers: dict[tuple[str, ...], Callable[[str], Any]] = {
        _NUMBERS: lambda name: (
            None if (text := settings.text(name)) is None else number(name, text)
        ),
        _INTEGERS: settings.integer,
        _TEXTS: settings.text,
    }
    for names, parse in parsers.items():
        values |= {
            name.replace("-", "_"): value for name in names if (value := parse(name)) is not None
        }
    return values


def _settings(settings: Settings, global_batch: int | None, task: str) -> Any:
    from rigsize.train.settings import TrainSettings

    values = {"global_batch": global_batch, "out": _out(settings, task), **_run_values(settings)}
    for name in _SWITCHES:
        key = name.replace("-", "_")
        if key in settings.given:
            values[key] = settings.switch(name)
    values["resume"] = _resume(settings)
    if settings.text("eval-data") and settings.text("eval-share"):
        raise UnsupportedCombination(
            "eval-share", settings.text("eval-share"), "--eval-data is what is evaluated on"
        )
    return TrainSettings(**values)


def _resume(settings: Settings) -> str:
    """After torchrun restarted the ranks there may be a checkpoint, or not yet."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        return "auto"
    return "must" if settings.switch("resume") else "never"


def _out(settings: Settings, task: str) -> Path:
    given = settings.text("out")
    if given is not None:
        return Path(given).expanduser()
    model = (settings.text("model") or "model").rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^\w.-]+", "-", model)
    folder = Path("runs") / f"{name}-{task}"
    settings.assumed.append(f"out {folder}")
    return folder


# -- the run and its answer ---------------------------------------------------------------------


def _run(job: TrainJob, as_json: bool, teller: _Teller) -> int:
    from rigsize.run.execution import is_out_of_memory
    from rigsize.train.loop import train
    from rigsize.train.record import broken_record

    try:
        outcome, record = train(job)
    except Exception as error:
        if is_out_of_memory(error):
            return _out_of_memory(job, broken_record(job, error), as_json, teller)
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST_RANK):
            raise MeasurementFailed(
                "ranks",
                _rank(),
                "lost another rank",
                hint="torchrun starts all again from the last whole checkpoint: --max-restarts",
            ) from error
        raise
    if record is not None:
        return _answer(outcome, record, as_json, teller)
    if outcome.world.first:
        step = outcome.state.step
        teller.note(f"{outcome.ended} at step {step:,}: nothing was left to do, no Record is made")
        teller.event("end", ended=outcome.ended, step=step, exit_code=outcome.exit_code)
    return outcome.exit_code


def _out_of_memory(job: TrainJob, record: Record, as_json: bool, teller: _Teller) -> int:
    from rigsize.run.record import to_json, write_record

    path = write_record(job.settings.out / "records", record)
    teller.note(f"out of memory: {record.message}; checkpoints stay; Record: {path}")
    teller.note("smaller --batch-size with --grad-accum, --recompute block or lean need less")
    teller.event("end", ended="out of memory", record=str(path), exit_code=DOES_NOT_FIT)
    print_answer(lambda: {"record": to_json(record)}, as_json, lambda: ["out of memory"])
    return DOES_NOT_FIT


def _answer(outcome: Outcome, record: Record, as_json: bool, teller: _Teller) -> int:
    from rigsize.run.compare import compare, to_json
    from rigsize.run.record import to_json as record_json
    from rigsize.run.record import write_record

    job = outcome.plan.job
    path = write_record(job.settings.out / "records", record)
    comparison = compare(record, *_prediction(outcome, record))
    print_answer(
        lambda: (
            {
                "record": record_json(record),
                "metrics": {k: v for k, v in outcome.state.metrics.items() if k != "step"},
                "ended": outcome.ended,
                "step": outcome.state.step,
                "out": str(job.settings.out),
            }
            | to_json(comparison)
        ),
        as_json,
        lambda: _text(outcome, comparison),
    )
    teller.note(f"Record: {path}")
    code = outcome.exit_code or comparison.exit_code
    if outcome.exit_code:
        saved = " and saved; go on with the same command and --resume"
        kept = saved if job.settings.checkpoint else "; without checkpoints nothing was saved"
        teller.note(f"stopped at step {outcome.state.step:,}{kept}")
    teller.event(
        "end",
        ended=outcome.ended,
        step=outcome.state.step,
        verdict=comparison.verdict,
        record=str(path),
        exit_code=code,
    )
    return code


def _prediction(outcome: Outcome, record: Record) -> tuple[Any, str]:
    from rigsize.run.compare import predict_record

    job = outcome.plan.job
    if not job.settings.predict:
        return None, "not asked for"
    if not record.sizes:
        return None, "no step was made"
    return predict_record(job.source, record)


def _text(outcome: Outcome, comparison: Comparison) -> Iterator[RenderableType]:
    from rigsize.run.compare import render
    from rigsize.train.progress import metrics_text

    state = outcome.state
    yield f"{outcome.ended} at step {state.step:,} of {outcome.plan.steps:,}"
    if state.metrics:
        metrics = {k: v for k, v in state.metrics.items() if k != "step"}
        yield f"held out ({len(outcome.plan.eval_indices):,} texts): {metrics_text(metrics)}"
    yield render(comparison)
    if outcome.model_folder:
        yield f"model: {outcome.model_folder}"
