"""Two ranks: the same losses on two and on one, and ranks that see or meet different things."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from tests.train.launch import Job, launch, losses_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "parallel"),
    # even: a bias of one element, of which the second rank holds none.
    [("even", "fsdp"), ("even", "ddp"), ("xlm-r", "ddp"), ("xlm-r", "fsdp-offload")],
)
def test_two_ranks_resume_on_two_and_on_one(model: str, parallel: str, tmp_path: Path) -> None:
    job = Job(
        folder=tmp_path / "saved",
        log=tmp_path / "whole",
        until=6,
        save_at=(3,),
        model=model,
        parallel=parallel,
    )
    assert launch(job) == [0, 0]
    _, expected = losses_of(job)
    for size, again in ((2, parallel), (1, parallel), (1, "single")):
        resumed = dataclasses.replace(
            job, log=tmp_path / f"{again}-{size}", size=size, parallel=again, save_at=(), seed=5
        )
        assert launch(resumed) == [0] * size
        step, losses = losses_of(resumed)
        assert step == 3
        # On the same ranks exactly; on another number sums are rounded in another order.
        tolerance = 0.0 if size == 2 else 1e-5
        assert losses == pytest.approx({n: expected[n] for n in (4, 5, 6)}, rel=tolerance, abs=0)


def test_one_rank_resumes_on_two_sharded(tmp_path: Path) -> None:
    job = Job(
        folder=tmp_path / "saved",
        log=tmp_path / "one",
        until=6,
        save_at=(3,),
        model="even",
        parallel="single",
        size=1,
    )
    assert launch(job) == [0]
    _, expected = losses_of(job)
    sharded = dataclasses.replace(
        job, log=tmp_path / "two", size=2, parallel="fsdp", save_at=(), seed=5
    )
    assert launch(sharded) == [0, 0]
    step, losses = losses_of(sharded)
    assert step == 3
    assert losses == pytest.approx({n: expected[n] for n in (4, 5, 6)}, rel=1e-5)


def test_ranks_never_resume_from_different_steps(tmp_path: Path) -> None:
    """Each rank has a folder of its own; the first has one step more, then another content."""
    folders = (tmp_path / "a", tmp_path / "b")
    job = Job(folder=folders[0], log=tmp_path / "first", until=4, save_at=(2, 4))
    assert launch(job) == [0, 0]
    shutil.copytree(folders[0], folders[1])
    _, expected = losses_of(job)

    def resumed(log: str) -> list[int]:
        again = dataclasses.replace(
            job, log=tmp_path / log, folders=folders, until=5, save_at=(), seed=5
        )
        assert launch(again) == [0, 0]
        _, losses = losses_of(again)
        assert all(losses[n] == expected[n] for n in losses if n in expected)
        return [losses_of(again, rank)[0] for rank in (0, 1)]

    assert resumed("same") == [4, 4]
    # One byte differs for the second rank only.
    shard = next((folders[1] / "step-4" / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert resumed("damaged") == [2, 2]
    shutil.rmtree(folders[1] / "step-4")
    assert resumed("missing") == [2, 2]


def test_ranks_that_do_not_share_the_folder_are_told_at_the_first_save(tmp_path: Path) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    job = Job(folder=folders[0], log=tmp_path / "log", until=2, save_at=(1,), folders=folders)
    assert launch(job) == [2, 2]  # both end with the error, none waits for the other
    assert [list(folder.iterdir()) for folder in folders] == [[folders[0] / ".lock"], []]


def test_a_full_disk_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    job = Job(
        folder=tmp_path / "saved", log=tmp_path / "log", until=3, save_at=(1, 2), full_from=(2, 1)
    )
    assert launch(job) == [5, 5]  # the exit code of MeasurementFailed
    assert [path.name for path in (tmp_path / "saved").glob("step*")] == ["step-1"]
