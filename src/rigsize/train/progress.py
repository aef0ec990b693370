"""Long work shows itself: a bar, lines, JSON lines or nothing, all on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rigsize.units import format_bytes

__all__ = ["Progress", "StepReport", "make_progress"]

_LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimizer step, as it is logged and shown."""

    step: int
    """Steps made, this one included."""
    steps: int
    """In all."""
    epoch: float
    loss: float
    """Mean over everything the step predicts, on all ranks."""
    learning_rate: float
    step_s: float
    real_tokens_per_s: float
    """Without padding, all ranks."""
    examples_per_s: float
    padding_share: float
    """Of the positions computed."""
    memory_bytes: int | None
    """Allocated peak so far on this rank; None where no meter runs."""
    left_s: float | None
    """Expected time to the last step."""

    def text(self) -> str:
        """One line."""
        memory = "" if self.memory_bytes is None else f", {format_bytes(self.memory_bytes)}"
        left = "" if self.left_s is None else f", {_clock(self.left_s)} left"
        return (
            f"step {self.step:,}/{self.steps:,}: loss {self.loss:.4f},"
            f" {self.real_tokens_per_s:,.0f} tokens/s{memory}{left}"
        )


class Progress(Protocol):
    """What the loop tells."""

    def step(self, report: StepReport) -> None:
        """A step ended."""

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation ended."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The run is over."""


def make_progress(kind: str, steps: int, *, speaks: bool) -> Progress:
    """The reporter of a kind of `settings.PROGRESSES`; ranks that do not speak are quiet."""
    if not speaks or kind == "quiet":
        return _Quiet()
    if kind == "json":
        return _Json()
    if kind == "rich" or (kind == "auto" and sys.stderr.isatty()):
        return _Rich(steps)
    return _Plain()


def _say(text: str) -> None:
    print(f"rigsize: {text}", file=sys.stderr, flush=True)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """`loss 0.8123, accuracy 0.7000`."""
    return ", ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in metrics.items())


class _Quiet:
    def step(self, report: StepReport) -> None: ...

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Plain(_Quiet):
    """A line now and then: for logs and pipes."""

    def __init__(self) -> None:
        self._last = 0.0

    def step(self, report: StepReport) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S or report.step == report.steps:
            self._last = now
            _say(report.text())

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        _say(f"step {step:,}: held out: {metrics_text(metrics)}")

    def note(self, text: str) -> None:
        _say(text)


class _Json(_Quiet):
    """One JSON object a line, for machines."""

    def step(self, report: StepReport) -> None:
        self._write({"event": "step", **asdict(report)})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write({"event": "evaluation", "step": step, **metrics})

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    @staticmethod
    def _write(document: Mapping[str, Any]) -> None:
        print(json.dumps(document), file=sys.stderr, flush=True)


class _Rich:
    """A bar with loss, tokens/s, memory and time left."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=steps)

    def step(self, report: StepReport) -> None:
        text = report.text().partition(": ")[2]
        self._bar.update(self._task, completed=report.step, description=text)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._bar.console.print(f"step {step:,}: held out: {metrics_text(metrics)}")

    def note(self, text: str) -> None:
        self._bar.console.print(f"rigsize: {text}", highlight=False, markup=False)

    def close(self) -> None:
        self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
