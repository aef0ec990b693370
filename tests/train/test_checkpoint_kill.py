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
    """One run killed 18 times: each launch resumes, saves once, and dies in its second save.

    Dropout is on and differs by rank, so that equal losses prove the random states too.
    """
    kills = [(phase, rank) for phase, rank in product(PHASES, (0, 1))]
    last = 2 * len(kills) + 1
    whole = Job(folder=tmp_path / "whole", log=tmp_path / "whole-log", until=last)
    assert launch(whole) == [0, 0]
    _, expected = losses_of(whole)

    folder, step = tmp_path / "killed", 0
    for number, (phase, rank) in enumerate(kills):
        job = Job(
            folder=folder,
            log=tmp_path / f"log-{number}",
            until=last,
            save_at=tuple(range(1, last + 1)),
            kill_at=(phase, 2, rank),
            seed=number,  # a resumed run does not depend on it, the first one has 0
        )
        codes = launch(job)
        assert codes[rank] == KILLED, (phase, rank, codes)
        resumed = [losses_of(job, other)[0] for other in (0, 1)]
        assert resumed[0] == resumed[1] == step, (phase, rank)
        for other in (0, 1):
            _, losses = losses_of(job, other)
            assert losses == {at: expected[at] for at in losses}, (phase, rank, other)
        steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*[0-9]"))
        step = steps[-1]
        before = PHASES.index(phase) < PHASES.index("renamed")
        allowed = {1, 2} if (phase, rank) == EITHER else {1 if before else 2}
        assert step - resumed[0] in allowed, (phase, rank)

    end = Job(folder=folder, log=tmp_path / "end", until=last, save_at=(last,), seed=99)
    assert launch(end) == [0, 0]
    resumed_last, losses = losses_of(end)
    assert resumed_last == step
    assert losses == {at: expected[at] for at in range(step + 1, last + 1)}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {f"step-{last}", f"step-{step}"}
    )
