"""Hand-worked clocks, in seconds."""

import pytest

from rigsize.steptime.streams import COPIES, HOST, HOST_STEP, LINKS, Clock, Stage, run


def played(*stages: Stage) -> Clock:
    clock = Clock()
    run(clock, stages)
    clock.drain()
    return clock


def test_compute_waits_for_the_host_and_the_host_runs_ahead() -> None:
    # The host needs 1 s for each stage. Compute: 0-3; 3-3.5; then the host has the third ready at
    # 3 already: 3.5-3.6. Nothing waits after the first stage has begun.
    clock = played(Stage(busy_s=3, host_s=1), Stage(busy_s=0.5, host_s=1), Stage(0.1, 1))
    assert clock.compute == pytest.approx(3.6)
    assert clock.waits == {}
    # Turned around: .1 s of compute ends when its last launch came, at 1; .5 at 2; 3 from 2 to 5.
    late = played(Stage(0.1, 1), Stage(0.5, 1), Stage(3, 1))
    assert late.compute == pytest.approx(5.0)
    assert late.waits[HOST] == pytest.approx(0.9 + 0.5)


def test_the_next_gather_runs_beside_this_stage() -> None:
    # Gather 1: 0-2. Compute 1: 2-3, with gather 2 from 2 to 4. Compute 2: 4-5.
    clock = played(Stage(busy_s=1, gather_s=2), Stage(busy_s=1, gather_s=2))
    assert clock.compute == pytest.approx(5)
    assert clock.waits == {LINKS: pytest.approx(3)}


def test_reductions_queue_behind_gathers_and_each_other() -> None:
    # Reductions ready at 1 and 2, of 1.5 s each: 1-2.5, 2.5-4; compute ends at 2 and waits to 4.
    clock = played(Stage(busy_s=2, reductions=((0.5, 1.5), (1.0, 1.5))))
    assert clock.compute == pytest.approx(4)
    assert clock.links_s == pytest.approx(3)


def test_copies_come_before_gathers_and_behind_reductions() -> None:
    # Copy in 0-1, gather 1-2, compute 2-3, reduce 3-5, copy out 5-9, host step 9-12.
    stage = Stage(busy_s=1, fetch_s=1, gather_s=1, reductions=((1.0, 2.0),), store_s=4)
    clock = played(stage, Stage(waits=True, host_step_s=3))
    assert clock.compute == pytest.approx(12)
    assert clock.waits == {
        COPIES: pytest.approx(1 + 4),
        LINKS: pytest.approx(1 + 2),
        HOST_STEP: pytest.approx(3),
    }


def test_a_stage_that_waits_is_not_prefetched_for() -> None:
    # 1 s of compute, then a copy back of 2 s that may only begin when all is done.
    clock = played(Stage(busy_s=1), Stage(waits=True, fetch_s=2))
    assert clock.compute == pytest.approx(3)
