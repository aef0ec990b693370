"""Runs a file of jobs, each in a process of its own, and keeps one JSON line of each.

A line holds the job's Record and, beside it, the prediction that this machine's own versions
make. A job whose id is in the output already is not run again; running out of memory, crashing
or taking too long is a result; what the time did not suffice for is named.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rigsize.errors import SizingError, SpecError
from rigsize.models.source import ModelSource, resolve_model
from rigsize.run import host
from rigsize.run.children import Child, fork_child, spawn_child
from rigsize.run.measure import DEVICES, check_job, failed_record
from rigsize.run.record import from_json, to_json
from rigsize.run.specs import Spec, read_specs, spec_json
from rigsize.spec.checks import one_of

__all__ = ["LINE_SCHEMA_VERSION", "SuiteReport", "read_lines", "run_suite"]

LINE_SCHEMA_VERSION = "1.0"
CASE_TIMEOUT_S = 600.0
MOST_MINUTES = 60 * 24 * 30
_LEAST_CASE_S = 5.0
"""With less time left than this no further case is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """What a call did."""

    lines: tuple[Mapping[str, Any], ...]
    """Of this call, in the order of the suite."""
    already: tuple[str, ...]
    """Ids that the output held before."""
    left: tuple[str, ...]
    """Ids that the time did not suffice for."""
    out: Path

    @property
    def outcomes(self) -> dict[str, int]:
        """How many lines of this call by outcome."""
        counts: dict[str, int] = {}
        for line in self.lines:
            outcome = line["record"]["outcome"] if line["record"] else "refused"
            counts[outcome] = counts.get(outcome, 0) + 1
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suite:
    device: str
    fork: bool
    predict: bool
    case_timeout_s: float
    command: str
    deadline: float
    gpu: str | None
    one_thread: bool
    """Of a forked child: its parent's OpenMP threads, if it had any, did not come along, and the
    child would wait for them for ever."""
    folder: Path = field(default_factory=Path)


def run_suite(
    file: Path,
    max_minutes: float,
    out: Path,
    device: str = "cuda",
    *,
    fork: bool | None = None,
    predict: bool = True,
    case_timeout_s: float = CASE_TIMEOUT_S,
    command: str = "",
    progress: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> SuiteReport:
    """Runs the jobs of `file` in their order until all are done or the time is over.

    Args:
        file: a suite (`run.specs.read_specs`).
        max_minutes: no job is started after, and a running one is ended.
        out: the JSON lines; appended to, so that a stopped suite can be taken up again.
        device: cpu or cuda.
        fork: whether one parent imports torch once and forks a child a job, before any CUDA
            start; None takes it on Linux where CUDA has not been started.
        predict: also estimate each job.
        case_timeout_s: the longest a single job may take.
        command: kept in the Records.
        progress: called with each line as it is written.
    """
    one_of("device", device, DEVICES)
    _check_minutes(max_minutes)
    specs = read_specs(file)
    done = _repair(out)
    deadline = time.monotonic() + 60 * max_minutes
    used_before = "torch" in sys.modules
    lines: list[Mapping[str, Any]] = []
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rigsize-suite-") as folder:
        suite = _Suite(
            device=device,
            fork=_prepare_fork(fork),
            predict=predict,
            case_timeout_s=case_timeout_s,
            command=command,
            deadline=deadline,
            gpu=host.hardware(device).gpu,
            one_thread=used_before,
            folder=Path(folder),
        )
        for spec in specs:
            if spec.id in done:
                continue
            if deadline - time.monotonic() < _LEAST_CASE_S:
                left.append(spec.id)
                continue
            line = _run_case(suite, spec)
            _append(out, line)
            lines.append(line)
            progress(line)
    already = tuple(spec.id for spec in specs if spec.id in done)
    return SuiteReport(lines=tuple(lines), already=already, left=tuple(left), out=out)


def read_lines(out: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a suite's output; a line cut off by a kill is left out."""
    if not out.exists():
        return
    with out.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("id"), str):
                yield line


def _check_minutes(minutes: float) -> None:
    if not 0 < minutes <= MOST_MINUTES:
        allowed = (f"more than 0, up to {MOST_MINUTES:,}",)
        raise SpecError("max-minutes", minutes, "not a time", allowed=allowed)


def _repair(out: Path) -> set[str]:
    """Ids that are done; a last line without its end is cut away."""
    if out.is_dir():
        raise SpecError("out", str(out), "a folder", allowed=("a file for JSON lines",))
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        return set()
    raw = out.read_bytes()
    if raw and not raw.endswith(b"\n"):
        out.write_bytes(raw[: raw.rfind(b"\n") + 1])
    return {str(line["id"]) for line in read_lines(out)}


def _append(out: Path, line: Mapping[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _prepare_fork(wanted: bool | None) -> bool:
    """Imports once what every child needs; nothing here may start CUDA or a thread."""
    started = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
    possible = sys.platform.startswith("linux") and not started and not _autograd_has_threads()
    if wanted and not possible:
        raise SpecError(
            "fork",
            wanted,
            "cannot be used here",
            hint="needs Linux, and neither CUDA nor a trace started",
        )
    fork = possible if wanted is None else wanted
    if fork:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # see run.measure
        import torch  # noqa: F401  # imported for the children
        import transformers

        from rigsize.trace.model import AUTO_CLASSES

        for name in set(AUTO_CLASSES.values()):
            getattr(transformers, name)  # transformers imports its parts at first use
    return fork


def _autograd_has_threads() -> bool:
    """Whether this process traced for an accelerator: autograd's threads do not come along a fork.

    torch refuses a backward pass in such a child ("autograd's threading in combination with
    fork-based multiprocessing", torch/csrc/autograd/engine.cpp).
    """
    module = sys.modules.get("rigsize.trace.fake_accelerator")
    return module is not None and bool(module.is_registered())


def _run_case(suite: _Suite, spec: Spec) -> dict[str, Any]:
    """The line of one job."""
    began = time.monotonic()
    line: dict[str, Any] = {"schema_version": LINE_SCHEMA_VERSION, "id": spec.id}
    try:
        source = resolve_model(spec.workload.model, allow_network=False)
        check_job(
            source,
            spec.workload,
            spec.strategy,
            suite.device,
            steps=spec.steps,
            options=spec.options,
        )
    except SizingError as error:
        return line | _refused(str(error)) | {"wall_s": time.monotonic() - began}
    line |= _answers(suite, spec, source)
    return line | {"wall_s": round(time.monotonic() - began, 3)}


def _refused(reason: str) -> dict[str, Any]:
    return {
        "record": None,
        "record_unknown_reason": reason,
        "prediction": None,
        "prediction_unknown_reason": reason,
    }


def _answers(suite: _Suite, spec: Spec, source: ModelSource) -> dict[str, Any]:
    """Measures and predicts; side by side on a card, one after the other on the CPU."""
    allowed_s = min(suite.case_timeout_s, suite.deadline - time.monotonic())
    ends = time.monotonic() + allowed_s
    measuring = _child(suite, spec, "measure")
    # What synthetic texts come to is known when they were run.
    waits = spec.options.histogram is not None
    together = suite.predict and suite.device == "cuda" and not waits
    predicting = _child(suite, spec, "predict") if together else None
    answer = _measured(suite, spec, source, measuring, ends, allowed_s)
    if not suite.predict:
        reason = "not asked for"
        return answer | {"prediction": None, "prediction_unknown_reason": reason}
    if predicting is None:
        predicting = _child(suite, spec, "predict", answer["record"] if waits else None)
    return answer | _predicted(predicting, ends)


def _child(suite: _Suite, spec: Spec, role: str, record: Mapping[str, Any] | None = None) -> Child:
    job = {
        "spec": spec_json(spec),
        "device": suite.device,
        "gpu": suite.gpu,
        "command": suite.command,
        "one_thread": suite.fork and suite.one_thread,
        "record": record,
    }
    start = fork_child if suite.fork else spawn_child
    return start(role, job, suite.folder)


def _measured(
    suite: _Suite, spec: Spec, source: ModelSource, child: Child, ends: float, allowed_s: float
) -> dict[str, Any]:
    answer = child.answer(ends)
    if answer is not None and "record" in answer:
        from_json(answer["record"])  # a line that cannot be read again is not written
        return {"record": answer["record"]}
    if answer is not None:
        return {"record": None, "record_unknown_reason": answer["error"]}
    record = failed_record(
        source,
        spec.workload,
        spec.strategy,
        suite.device,
        steps=spec.steps,
        seed=spec.seed,
        command=suite.command,
        message=child.how_it_ended(allowed_s),
    )
    return {"record": to_json(record)}


def _predicted(child: Child, ends: float) -> dict[str, Any]:
    # The measurement may have used all the time; a prediction is quick and needs no card.
    answer = child.answer(max(ends, time.monotonic() + _LEAST_CASE_S))
    if answer is None:
        reason = f"the estimate {child.how_it_ended(_LEAST_CASE_S)}"
        return {"prediction": None, "prediction_unknown_reason": reason}
    if "error" in answer:
        return {"prediction": None, "prediction_unknown_reason": answer["error"]}
    return answer
