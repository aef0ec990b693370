"""Generation's Program, by the hand-made profile of `tiny_generation`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.program import tiny_generation as tiny
from tests.program.tiny_profile import A100, CPU, LOADED

from rigsize.errors import TraceFailed
from rigsize.memory.replay import replay, replay_exact
from rigsize.program import generation
from rigsize.program.build import Program
from rigsize.program.environment import Environment
from rigsize.program.generation import build_generation, key_lengths, stretches
from rigsize.spec import Strategy

LENGTHS = st.integers(2, 40)
BATCHES = st.integers(1, 6)


def program(
    B: int = 2, S: int = 8, new: int = 4, environment: Environment = CPU, *, window: bool = False
) -> Program:
    point = {"B": B, "S": S, "T": 0} | ({"C": S + new - 1} if new > 1 else {})
    return build_generation(tiny.profile(window=window), point, Strategy(), environment)


def requested_peak(B: int, S: int, new: int) -> int:
    return replay_exact(program(B, S, new)).allocated_peak_bytes


def test_key_lengths_of_a_decoder_and_of_an_encoder_decoder() -> None:
    # The prefill over 8 tokens writes the ninth, the step that reads it has 9 keys.
    assert list(key_lengths({"S": 8, "C": 11}, encodes=False)) == [9, 10, 11]
    # A decoder behind an encoder begins with one token of its own.
    assert list(key_lengths({"S": 8, "C": 4}, encodes=True)) == [2, 3, 4]
    assert list(key_lengths({"S": 8}, encodes=False)) == []


def test_peaks_by_hand() -> None:
    played = replay_exact(program())
    # Prefill, in the third layer: three times 64 x 16 of keys, and 256 x 16 of activations.
    assert played.phase_peaks["prefill"] == LOADED + 3 * 1024 + 4096
    # 11 keys, third layer: its 64 x 22 beside 64 x 20 of before, two layers done, ids 8 x (20 + 2).
    assert played.phase_peaks["decode"] == LOADED + 3 * 1408 + 1280 + 176
    assert played.allocated_peak_bytes == played.phase_peaks["prefill"]


def test_the_cache_is_a_row_of_its_own() -> None:
    found = program(S=2, new=30)  # decoding is the peak
    played = replay_exact(found)
    assert played.peak.slice == "decode.31"
    rows = {found.timeline.places[s].category for s in played.live}
    assert "cache" in rows
    held = sum(
        found.timeline.sizes[s] for s in played.live if found.timeline.places[s].category == "cache"
    )
    assert held == 3 * 64 * 2 * 31 + 64 * 2 * 30


def test_everything_dies_with_the_call() -> None:
    found = program()
    alive: set[int] = set()
    for name in found.step(0):
        for operation in found.slices[name]:
            if operation >= 0:
                alive.add(operation)
            else:
                alive.remove(~operation)
    assert not alive


def test_one_token_needs_no_decoding() -> None:
    found = program(new=1)
    assert found.step(0) == ["first", "end"]


def test_past_a_window_the_cache_stays() -> None:
    found = program(S=8, new=20, window=True)
    sizes = [
        found.timeline.sizes[o]
        for o in found.slices["decode.27"]
        if o >= 0 and found.timeline.places[o].category == "cache"
    ]
    assert sizes == [64 * 16 * 2] * 3


def test_stretches_end_at_the_windows() -> None:
    assert stretches(range(9, 20), (15,)) == [range(9, 16), range(16, 20)]
    assert stretches(range(9, 20), (4, 30)) == [range(9, 20)]
    assert stretches(range(9, 9), ()) == []


@pytest.mark.parametrize("new", [8, 30])
def test_the_steps_between_leave_out_only_what_passes(
    monkeypatch: pytest.MonkeyPatch, new: int
) -> None:
    short = replay_exact(program(new=new))
    monkeypatch.setattr(generation, "WHOLE_STEPS", 100)
    whole = replay_exact(program(new=new))
    assert short.allocated_peak_bytes == whole.allocated_peak_bytes
    assert short.phase_peaks == whole.phase_peaks


def test_a_long_text_is_spread_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MOST_OPERATIONS", 50)
    found = program(new=60)
    assert len(found.decoding) < 20
    assert any("decoding steps is replayed" in line for line in found.assumptions)
    assert found.decoding[-1] == "decode.67"  # the longest is always there
    monkeypatch.undo()
    peak = replay_exact(program(new=60)).allocated_peak_bytes
    assert replay_exact(found).allocated_peak_bytes == peak


def test_a_length_that_was_not_proved_is_refused() -> None:
    profile = tiny.profile()
    assert profile.decode is not None
    profile.decode.domains.clear()
    with pytest.raises(TraceFailed, match="differ from one length"):
        build_generation(profile, {"B": 2, "S": 8, "T": 0, "C": 9}, Strategy(), CPU)


def test_the_workspace_is_made_once() -> None:
    found = program(environment=A100)
    made = [
        o
        for name in ("first", *found.decoding)
        for o in found.slices[name]
        if o >= 0 and found.timeline.places[o].category == "workspaces"
    ]
    assert len(made) == 1


@given(BATCHES, LENGTHS, LENGTHS)
def test_more_never_needs_less(B: int, S: int, new: int) -> None:
    peak = requested_peak(B, S, new)
    assert peak <= requested_peak(B + 1, S, new)
    assert peak <= requested_peak(B, S + 1, new)
    assert peak <= requested_peak(B, S, new + 1)


@given(BATCHES, LENGTHS, LENGTHS)
def test_what_is_handed_out_holds_what_was_asked_for(B: int, S: int, new: int) -> None:
    found = program(B, S, new, A100)
    played = replay(found)
    assert played.live_requested_bytes <= played.allocated_peak_bytes
    assert played.allocated_peak_bytes <= played.reserved_peak_bytes
