"""Ranks as forks of one process that has torch already: a launch takes a fraction of a second."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank of one launch does: resume, train until a step, save at some."""

    folder: Path
    log: Path
    until: int
    size: int = 2
    model: str = "plain"
    parallel: str = "ddp"
    save_at: tuple[int, ...] = ()
    kill_at: tuple[str, int, int] | None = None
    """Phase, which save of this launch (1 is the first) and rank of a kill -9."""
    full_from: tuple[int, int] | None = None
    """Step and rank from which on the rank's disk is full."""
    export_to: Path | None = None
    seed: int = 0
    folders: tuple[Path, ...] = field(default=())
    """Of each rank, where they shall disagree."""


def losses_of(job: Job, rank: int = 0) -> tuple[int, dict[int, float]]:
    """The step that a rank resumed from, and its losses by step."""
    lines = job.log.with_suffix(f".{rank}").read_text().splitlines()
    first, *rest = [json.loads(line) for line in lines]
    return first["resumed"], {line["step"]: line["loss"] for line in rest}


def launch(job: Job) -> list[int]:
    """Runs the ranks to their end; their exit codes, -9 for a killed one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.rank"])
    from tests.train.rank import run_rank

    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [context.Process(target=run_rank, args=(r, store, job)) for r in range(job.size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
    return [process.exitcode or 0 for process in ranks]
