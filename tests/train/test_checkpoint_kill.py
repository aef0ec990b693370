"""kill -9 in every phase of a save, on either rank, never costs more than that save."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from tests.train.launch import Job, launch, losses_of

from rigsize.train.checkpoint import PHASES

KILLED = -9
# Rank 0 renames once its manifest is written; a killed rank 1 stops it before or after that.
EITHER = ("manifest_written", 1)


@pytest.mark.slow
def test_kill_in_every_phase_on_either_rank(tmp_path: Path) -> None:
    """One run killed 18 times: each launch resumes, takes a step, and dies while it saves.

    Dropout is on and differs by rank, so that equal losses prove the random states too.
    """
    kills = [(phase, rank) for phase, rank in product(PHASES, (0, 1))]
    last = len(kills) + 3
    whole = Job(folder=tmp_path / "whole", log=tmp_path / "whole-log", until=last)
    assert launch(whole) == [0, 0]
    _, expected = losses_of(whole)

    folder, step = tmp_path / "killed", 1
    first = Job(folder=folder, log=tmp_path / "first", until=1, save_at=(1,))
    assert launch(first) == [0, 0]
    for number, (phase, rank) in enumerate(kills):
        job = Job(
            folder=folder,
            log=tmp_path / f"log-{number}",
            until=last,
            save_at=tuple(range(1, last)),
            kill_at=(phase, 1, rank),
            seed=number + 1,  # of weights and dropout: a resumed run depends on neither
        )
        codes = launch(job)
        assert codes[rank] == KILLED, (phase, rank, codes)
        assert [losses_of(job, other) for other in (0, 1)] == [
            (step, {step + 1: expected[step + 1]})
        ] * 2, (phase, rank)
        before = PHASES.index(phase) < PHASES.index("renamed")
        allowed = {0, 1} if (phase, rank) == EITHER else {0} if before else {1}
        newest = max(int(path.name.split("-")[1]) for path in folder.glob("step-*[0-9]"))
        assert newest - step in allowed, (phase, rank)
        step = newest

    end = Job(folder=folder, log=tmp_path / "end", until=last, save_at=(last,), seed=99)
    assert launch(end) == [0, 0]
    assert losses_of(end) == (step, {at: expected[at] for at in range(step + 1, last + 1)})
    assert {path.name for path in folder.glob("step*")} == {f"step-{step}", f"step-{last}"}
