"""ZeRO-1, 2 and 3 beside what real DeepSpeed allocated in the same run, and by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.program.phases import Phase, program_of, program_phases
from tests.program.tiny_profile import A100, profile
from tests.program.zero_cases import CASES, REFERENCE, ZeroCase

import rigsize.program.zero
import rigsize.program.zero3
from rigsize.memory.replay import replay, replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.mesh import Mesh
from rigsize.program.zero_layout import Layout, copied_groups, layout_of
from rigsize.spec import Strategy

STORED: dict[str, list[Any]] = json.loads(REFERENCE.read_text())
PARTS = {"after_backward": "backward", "optimizer": "step", "zero_grad": "step"}
"""The engine's calls, and what is one of them here."""
CAST_BYTES = {"llama": 2 * 12 * 2}
"""The engine's `module.bfloat16()` casts buffers, too: two of 12 rotary frequencies in fp32."""


def ours(case: ZeroCase, monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    monkeypatch.setattr(rigsize.program.zero, "REDUCE_BUCKET", case.bucket)
    monkeypatch.setattr(rigsize.program.zero3, "REDUCE_BUCKET", case.bucket)
    monkeypatch.setattr(rigsize.program.zero3, "LIMITS", case.limits())
    program = program_of(case.traced(), case.strategy(), Mesh(shard=case.ranks))
    merged: list[Phase] = []
    cast = CAST_BYTES.get(case.family, 0)
    for name, *sizes in program_phases(program):
        end, peak = (size - cast for size in sizes)
        part = PARTS.get(name, name)
        if merged and merged[-1].name == part:
            peak = max(peak, merged.pop().peak_bytes)
        merged.append(Phase(part, end, peak))
    return merged


def real(case: ZeroCase) -> list[Phase]:
    """As stored; a call of `step` that does not end a step frees nothing and makes nothing."""
    phases = [Phase(*found) for found in STORED[str(case)]]
    steps = [n for n, phase in enumerate(phases) if phase.name == "step"]
    idle = {n for k, n in enumerate(steps, start=1) if k % case.accumulation}
    return [phase for n, phase in enumerate(phases) if n not in idle]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.stage < 3], ids=str)
def test_stages_1_and_2_are_equal_to_the_byte(
    case: ZeroCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = zip(real(case), ours(case, monkeypatch), strict=True)
    assert [f"real {a}, ours {b}" for a, b in pairs if a != b] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.stage == 3], ids=str)
def test_stage_3_once_it_knows_the_order_of_modules(
    case: ZeroCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its first micro-step it learns that order and holds less; we count it like any other.

    Small parameters are made whole in that step, which we do at construction.
    """
    found, expected = ours(case, monkeypatch), real(case)
    assert found[0].peak_bytes == expected[0].peak_bytes
    steady = 2 * case.accumulation + 2
    pairs = zip(expected[steady:], found[steady:], strict=True)
    assert [f"real {a}, ours {b}" for a, b in pairs if a != b] == []


def test_every_case_was_really_run() -> None:
    assert sorted(STORED) == sorted(str(case) for case in CASES)


# The layout, by hand.


def test_a_vector_is_padded_to_two_elements_a_rank_and_cut_in_equal_parts() -> None:
    # 10 + 7 + 6 = 23 elements, to a multiple of 2 x 4: 24, of which each of four ranks has 6.
    layout = Layout(numels=(10, 7, 6), ranks=4, rank=3)
    assert (layout.padding, layout.flat, layout.partition) == (1, 24, 6)
    assert layout.pieces() == [[(0, 6), (1, 4)], [(1, 2), (2, 5)], [(2, 1), (3, 5)]]
    assert layout.own() == [0, 0, 5]


def test_the_rank_that_holds_the_most_is_looked_at() -> None:
    # Gradients stay whole: rank 0 keeps 10 elements, 1 and 2 keep 17 and 13, 3 keeps 6.
    assert layout_of((10, 7, 6), 4).rank == 1


def test_neighbours_of_one_rank_travel_together_and_a_slice_alone_is_not_copied() -> None:
    assert copied_groups([(0, 5), (0, 3)], 100) == []
    assert copied_groups([(0, 5), (1, 3), (1, 4)], 100) == [12]
    # Passing the limit of 6 sends what is together: 5 + 3, then 4 alone.
    assert copied_groups([(0, 5), (1, 3), (2, 4)], 6) == [8]


@given(numels=st.lists(st.integers(1, 500), min_size=1, max_size=12), ranks=st.integers(1, 40))
def test_every_element_has_one_owner(numels: list[int], ranks: int) -> None:
    layout = layout_of(numels, ranks)
    assert [sum(n for _, n in pieces) for pieces in layout.pieces()] == numels
    assert layout.partition * ranks == layout.flat >= sum(numels)
    owned = [sum(replace(layout, rank=rank).own()) for rank in range(ranks)]
    assert sum(owned) == sum(numels)
    assert max(owned) <= layout.partition


# Laws.

STAGES = st.sampled_from(["zero1", "zero2", "zero3"])
STATES = ("master_copy", "optimizer_states")


def tiny(ranks: int, batch: int = 2, **strategy: Any) -> Program:
    point = {"B": batch, "S": 8, "T": 0}
    return build_program(profile(), point, Strategy(**strategy), A100, Mesh(shard=ranks))


def held(program: Program, *categories: str) -> int:
    """Bytes of these rows that are alive between two steps."""
    timeline = program.timeline
    alive: set[int] = set()
    for name in ["load", *program.step(0)]:
        for operation in program.slices[name]:
            (alive.add if operation >= 0 else alive.discard)(max(operation, ~operation))
    return sum(timeline.sizes[s] for s in alive if timeline.places[s].category in categories)


@given(stage=STAGES, ranks=st.integers(1, 64), accumulation=st.integers(1, 3))
def test_more_shards_never_hold_more(stage: str, ranks: int, accumulation: int) -> None:
    given_: dict[str, Any] = {
        "parallel": stage,
        "optimizer": "adamw-fused",
        "accumulation": accumulation,
    }
    few, many = tiny(ranks, **given_), tiny(2 * ranks, **given_)
    # Stages 1 and 2 pad the vector to two elements a rank, stage 3 its eight tensors to one.
    padding = 4 * 2 * 2 * ranks + 4 * 8
    for row in (STATES, ("weights.flat", "weights.partitioned"), ("gradients",)):
        assert held(many, *row) <= held(few, *row) + padding


@given(stage=STAGES, ranks=st.integers(1, 8), batch=st.integers(2, 64))
def test_a_larger_batch_never_needs_less(stage: str, ranks: int, batch: int) -> None:
    small, large = (
        replay_exact(tiny(ranks, size, parallel=stage)).allocated_peak_bytes
        for size in (batch, batch + 1)
    )
    assert small <= large


@given(stage=STAGES, ranks=st.integers(1, 8), accumulation=st.integers(1, 3))
def test_what_is_born_dies_or_stays(stage: str, ranks: int, accumulation: int) -> None:
    program = tiny(ranks, parallel=stage, accumulation=accumulation)
    played = replay(program)
    assert sum(played.phase_peaks.values()) > 0
    timeline, alive = program.timeline, set[int]()
    for number in range(3):
        for name in (["load"] if number == 0 else []) + program.step(number):
            for operation in program.slices[name]:
                if operation >= 0:
                    assert operation not in alive
                    alive.add(operation)
                else:
                    alive.remove(~operation)
    kept = {timeline.places[s].category for s in alive}
    assert not kept & {"logits", "temporaries", "activations.embeddings_and_head"}


def test_without_masters_of_its_own_the_optimizer_steps_on_one_flat_part() -> None:
    # 76,608 fp32 parameters over 4 ranks: 19,152 each, a master and two moments of 4 bytes.
    assert held(tiny(4, parallel="zero2", optimizer="adamw-fused"), "master_copy") == 4 * 19_152
    states = held(tiny(4, parallel="zero2", optimizer="adamw-fused"), "optimizer_states")
    assert states == 8 * 19_152 + 4


@pytest.mark.parametrize(
    ("offload", "rows"), [("optimizer", ()), ("cpu", ()), ("cpu-params", STATES)]
)
def test_offload_leaves_the_device(offload: str, rows: tuple[str, ...]) -> None:
    program = tiny(4, parallel="zero3", offload=offload)
    assert bool(held(program, *STATES)) == bool(rows)
    assert bool(held(program, "weights.partitioned")) == (offload == "optimizer")
    if offload == "optimizer":
        assert not held(tiny(4, parallel="zero2", offload=offload), *STATES)
