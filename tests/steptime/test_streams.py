"""Hand-worked clocks, in seconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


seconds = st.floats(0.0, 10.0)
stages = st.lists(
    st.builds(
        Stage,
        busy_s=seconds,
        host_s=seconds,
        fetch_s=st.one_of(st.just(0.0), seconds),
        gather_s=st.one_of(st.just(0.0), seconds),
        reductions=st.lists(st.tuples(st.floats(0.0, 1.0), seconds), max_size=3).map(
            lambda found: tuple(sorted(found))
        ),
        store_s=st.one_of(st.just(0.0), seconds),
        host_step_s=st.one_of(st.just(0.0), seconds),
        waits=st.booleans(),
    ),
    max_size=8,
)


@given(stages)
def test_between_the_longest_stream_and_all_of_them_in_turn(made: list[Stage]) -> None:
    clock = played(*made)
    streams = (
        sum(stage.busy_s for stage in made),
        sum(stage.host_s + stage.host_step_s for stage in made),
        sum(stage.gather_s + sum(s for _, s in stage.reductions) for stage in made),
        sum(stage.fetch_s for stage in made),
        sum(stage.store_s for stage in made),
    )
    assert clock.compute >= max(streams) - 1e-6
    assert clock.compute <= sum(streams) + 1e-6


@given(stages)
def test_what_compute_waits_for_is_all_that_it_is_not_busy(made: list[Stage]) -> None:
    clock = played(*made)
    busy = sum(stage.busy_s for stage in made)
    assert clock.compute == pytest.approx(busy + sum(clock.waits.values()), abs=1e-6)


@given(stages, st.integers(0, 7), seconds)
def test_more_of_anything_is_never_faster(made: list[Stage], at: int, more: float) -> None:
    if not made:
        return
    at %= len(made)
    longer = made[at]._replace(busy_s=made[at].busy_s + more, gather_s=made[at].gather_s + more)
    slower = [*made[:at], longer, *made[at + 1 :]]
    assert played(*slower).compute >= played(*made).compute - 1e-6
