"""The run's log: JSON lines, and TensorBoard where it is asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rigsize.errors import MeasurementFailed
from rigsize.train.progress import StepReport

__all__ = ["Log", "read_log"]

_SHOWN = ("loss", "learning_rate", "real_tokens_per_s", "examples_per_s", "padding_share")


class Log:
    """`log.jsonl` of a run's folder; after a resume it goes on behind the step it resumed from."""

    def __init__(self, file: Path, *, resumed_step: int, tensorboard: bool) -> None:
        kept = [entry for entry in read_log(file) if entry["step"] <= resumed_step]
        partial = file.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        partial.replace(file)
        self._file: IO[str] = file.open("a", encoding="utf-8")
        self._board = _board(file.parent / "tensorboard") if tensorboard else None

    def step(self, report: StepReport) -> None:
        """A step that was read."""
        entry = asdict(report)
        self._write({"event": "step", **entry})
        if self._board is not None:
            for name in _SHOWN:
                self._board.add_scalar(f"train/{name}", entry[name], report.step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation."""
        self._write({"event": "evaluation", "step": step, **metrics})
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"held_out/{name}", value, step)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Everything is on disk."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that a kill cut short is left out."""
    if not file.exists():
        return []
    entries = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _board(folder: Path) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise MeasurementFailed(
            "tensorboard",
            "on",
            "needs the package tensorboard, which is not installed",
            hint="pip install tensorboard, or read log.jsonl",
        ) from error
    return module.SummaryWriter(str(folder))
