"""The replay: steps until nothing changes, the peak's moment, and what lives then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.program import tiny_profile as tiny

from rigsize.memory.allocator import CachingAllocator
from rigsize.memory.replay import MAX_STEPS, Moment, Replay, replay, replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.environment import Environment
from rigsize.program.timeline import Place, Timeline
from rigsize.spec import Strategy

MIB = 1 << 20
STATES = 2 * tiny.WEIGHTS + 8 * 4
"""Two moments; on the host a step counter for each of eight parameters counts, too."""


def built(environment: Environment = tiny.CPU, **strategy: Any) -> Program:
    return build_program(tiny.profile(), tiny.POINT, Strategy(**strategy), environment)


def by_hand(load: list[int], micro: list[int]) -> Program:
    """An inference Program whose slices list bytes to allocate (+) and to free again (-)."""
    timeline = Timeline()
    place = Place("activations.blocks_other", "forward")
    alive: dict[int, list[int]] = {}
    slices: dict[str, list[int]] = {"load": [], "micro": []}
    for name, sizes in (("load", load), ("micro", micro)):
        for size in sizes:
            if size > 0:
                storage = timeline.alloc(size, place)
                alive.setdefault(size, []).append(storage)
                slices[name].append(storage)
            else:
                slices[name].append(~alive[-size].pop())
    slices["first"] = slices["micro"]
    return Program(timeline=timeline, slices=slices, parameters=[], training=False, accumulation=1)


def test_foreach_peaks_in_the_optimizer() -> None:
    # Everything loaded, gradients, states, and the roots of all parameters at once.
    played = replay_exact(built(optimizer="adamw-foreach"))
    assert played.allocated_peak_bytes == tiny.LOADED + 2 * tiny.WEIGHTS + STATES == 1_533_344
    assert (played.peak.step, played.peak.slice, played.peak.phase) == (
        0,
        "optimizer_first",
        "optimizer",
    )
    assert (played.reserved_peak_bytes, played.num_alloc_retries) == (0, 0)
    assert played.out_of_memory is None


def test_fused_peaks_in_the_second_steps_backward() -> None:
    # 622,224 in the first step (tests/program/test_build.py); the second one has states, too.
    played = replay_exact(built(optimizer="adamw-fused"))
    assert played.allocated_peak_bytes == 622_224 + STATES
    assert (played.peak.step, played.peak.slice, played.peak.phase) == (1, "micro", "backward")


def test_live_storages_are_those_of_the_peak() -> None:
    program = built(optimizer="adamw-fused")
    played = replay_exact(program)
    assert played.live_requested_bytes == played.allocated_peak_bytes
    assert sum(program.timeline.sizes[s] for s in played.live) == played.live_requested_bytes
    operation = program.slices[played.peak.slice][played.peak.index]
    assert program.timeline.sizes[operation] == 256_000  # the embedding's gradient is born
    assert operation in played.live


def test_phase_peaks_are_of_the_steady_step() -> None:
    played = replay_exact(built(optimizer="adamw-fused"))
    forward = tiny.LOADED + STATES + 7 * 4096 + 16
    assert played.phase_peaks["forward"] == forward
    assert played.phase_peaks["backward"] == played.allocated_peak_bytes
    assert "load" not in played.phase_peaks
    # all gradients go in zero_grad, which begins with all of them
    assert played.phase_peaks["zero_grad"] == tiny.LOADED + STATES + tiny.WEIGHTS


def test_accumulation_keeps_the_gradients_alive() -> None:
    alone = replay_exact(built(optimizer="adamw-fused")).allocated_peak_bytes
    played = replay_exact(built(optimizer="adamw-fused", accumulation=3))
    # At 622,224 all gradients were alive. Now they are, and the embedding's a second time, but no
    # other gradient is: a new one dies when it was added.
    assert played.allocated_peak_bytes - alone == 256_000
    assert (played.peak.slice, played.peak.phase) == ("accumulate", "backward")


def test_a_second_step_follows_the_first_and_a_third_confirms() -> None:
    # Step 1 has the states from its beginning, so its peak is new; step 2 repeats it.
    assert replay_exact(built(optimizer="adamw-fused")).steps == 3
    assert replay_exact(built(optimizer="sgd")).steps == 2


def test_the_allocator_counts_whole_blocks_and_segments() -> None:
    # 1,000 bytes are two blocks of 512 in a segment of 2 MiB; 12 MiB have a segment of their own.
    program = by_hand([1000], [12 * MIB, -12 * MIB])
    played = replay(program)
    assert played.allocated_peak_bytes == 1024 + 12 * MIB
    assert played.reserved_peak_bytes == 14 * MIB
    assert played.live_requested_bytes == 1000 + 12 * MIB
    assert played.peak == Moment(0, "first", 0, "first")
    assert replay_exact(program).allocated_peak_bytes == 1000 + 12 * MIB


def test_the_context_is_off_the_capacity_to_the_byte() -> None:
    program = by_hand([1000], [12 * MIB, -12 * MIB])
    assert replay(program, capacity_bytes=14 * MIB).out_of_memory is None
    short = replay(program, capacity_bytes=14 * MIB - 1)
    assert short.out_of_memory is not None
    assert short.out_of_memory.segment_bytes == 12 * MIB
    assert short.steps == 0


def test_out_of_memory_while_loading_is_a_result() -> None:
    played = replay(by_hand([30 * MIB], [512, -512]), capacity_bytes=20 * MIB)
    assert played.out_of_memory is not None
    assert (played.allocated_peak_bytes, played.steps) == (0, 0)


def test_cached_segments_are_given_back_before_memory_runs_out() -> None:
    # 40 MiB freed cannot serve 60 MiB; under 80 MiB it must go back first.
    program = by_hand([512], [40 * MIB, -40 * MIB, 60 * MIB, -60 * MIB])
    assert replay(program).reserved_peak_bytes == 102 * MIB
    tight = replay(program, capacity_bytes=80 * MIB)
    assert tight.out_of_memory is None
    assert tight.num_alloc_retries >= 1
    assert tight.reserved_peak_bytes == 62 * MIB
    assert tight.allocated_peak_bytes == replay(program).allocated_peak_bytes


def test_reserved_memory_repeats_within_the_limit_of_steps() -> None:
    for strategy in ({}, {"accumulation": 8}, {"optimizer": "adafactor"}):
        played = replay(built(tiny.A100, **strategy))
        assert 2 <= played.steps < MAX_STEPS


def test_a_training_step_on_a_device() -> None:
    played = replay(built(tiny.A100, optimizer="adamw-fused"))
    exact = replay_exact(built(tiny.A100, optimizer="adamw-fused"))
    assert exact.allocated_peak_bytes == 622_224 + STATES + 2 * 8_519_680
    assert exact.allocated_peak_bytes <= played.allocated_peak_bytes <= played.reserved_peak_bytes
    # Two workspaces of 8.125 MiB share 20 MiB; all else is small and shares segments of 2 MiB.
    assert played.reserved_peak_bytes == 22 * MIB


@pytest.mark.parametrize("played", [replay, replay_exact])
def test_replays_repeat(played: Any) -> None:
    first, second = (played(built(tiny.A100)) for _ in range(2))
    assert isinstance(first, Replay)
    assert first == second


@pytest.mark.parametrize("room", [None, 20 * MIB, 22 * MIB, 24 * MIB])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulation": 2},
        {"accumulation": 4, "optimizer": "adamw-foreach"},
        {"accumulation": 3, "optimizer": "sgd", "recompute": "none"},
        {"accumulation": 4, "precision": "amp-fp16", "max_grad_norm": 1.0},
    ],
)
def test_slices_that_change_nothing_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], room: int | None
) -> None:
    program = built(tiny.A100, **settings)
    ran: list[int] = []
    run = CachingAllocator.run

    def counted(self: CachingAllocator, ops: list[int], *rest: Any) -> int:
        ran[-1] += len(ops)
        return run(self, ops, *rest)

    monkeypatch.setattr(CachingAllocator, "run", counted)
    ran.append(0)
    short = replay(program, capacity_bytes=room)
    monkeypatch.setattr(CachingAllocator, "state", lambda *_: None)
    ran.append(0)
    whole = replay(program, capacity_bytes=room)
    assert str(whole.out_of_memory) == str(short.out_of_memory)
    assert replace(whole, out_of_memory=None) == replace(short, out_of_memory=None)
    if room is None and program.accumulation > 2:
        assert ran[0] < 0.8 * ran[1]
