"""The Program of a hand-made profile, operation by operation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.program import tiny_profile as tiny

from rigsize.errors import TraceFailed
from rigsize.program.build import Program, build_program
from rigsize.program.environment import Environment
from rigsize.spec import Strategy


def built(
    environment: Environment = tiny.CPU,
    *,
    layers: tuple[int, ...] = (0, 1, 2),
    use: str = "training",
    **strategy: Any,
) -> Program:
    profile = tiny.profile(layers=layers, use=use)
    return build_program(profile, tiny.POINT, Strategy(**strategy), environment)


def running(program: Program, *names: str) -> list[int]:
    """Requested bytes alive after every operation of these slices."""
    total, totals = 0, []
    for name in names:
        for operation in program.slices[name]:
            if operation >= 0:
                total += program.timeline.sizes[operation]
            else:
                total -= program.timeline.sizes[~operation]
            totals.append(total)
    return totals


def test_load_holds_parameters_buffers_and_the_batch() -> None:
    program = built()
    assert running(program, "load")[-1] == tiny.LOADED
    assert [p.name for p in program.parameters] == [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.dense.weight",
        "encoder.layer.0.dense.bias",
        "encoder.layer.1.dense.weight",
        "encoder.layer.1.dense.bias",
        "encoder.layer.2.dense.weight",
        "encoder.layer.2.dense.bias",
        "classifier.weight",
    ]
    assert sum(p.numel for p in program.parameters) == tiny.PARAMETERS
    totals: Counter[str] = Counter()
    for storage in program.slices["load"]:
        place = program.timeline.places[storage]
        totals[place.category] += program.timeline.sizes[storage]
    assert totals == {
        "weights.embeddings": 256_000,
        "weights.blocks": 3 * 4_160 * 4,
        "weights.lm_head": 512,
        "buffers": 1024,
        "inputs": 128,
    }


def test_a_micro_step_byte_by_byte() -> None:
    program = built()
    alive = running(program, "load", "micro")[len(program.slices["load"]) :]
    # BS = 16, so an activation has 4,096 bytes; the classifier's output has 16.
    forward = [4096, *(4096,) * 6, 16]
    layer = [4096, -4096, -4096, 16_384, 256, -4096]
    backward = [4096, 512, *layer * 3, 256_000, -4096, -4096, -16]
    expected, total = [], tiny.LOADED
    for change in (*forward, *backward):
        total += change
        expected.append(total)
    assert alive == expected
    assert max(alive) == 622_224  # when the embedding's gradient is born
    assert alive[-1] == tiny.LOADED + tiny.WEIGHTS  # gradients stay, all else is gone


def test_gradients_are_marked_and_found() -> None:
    program = built()
    timeline = program.timeline
    kept = [s for s in program.slices["micro"] if s >= 0 and ~s not in program.slices["micro"]]
    assert {timeline.places[s].category for s in kept} == {"gradients"}
    assert sorted(timeline.sizes[s] for s in kept) == sorted(
        p.num_bytes for p in program.parameters
    )


def test_without_a_device_there_are_no_workspaces() -> None:
    program = built()
    assert program.slices["first"] == program.slices["micro"]


def test_workspaces_are_made_once_by_each_thread() -> None:
    program = built(tiny.A100)
    first, micro = program.slices["first"], program.slices["micro"]
    made = [s for s in first if s not in micro]
    assert [program.timeline.sizes[s] for s in made] == [8_519_680, 8_519_680]
    assert [program.timeline.places[s].category for s in made] == ["workspaces"] * 2
    assert [program.timeline.places[s].phase for s in made] == ["forward", "backward"]
    # behind the embedding's output, and where backward begins: 8 operations and the first workspace
    assert [first.index(s) for s in made] == [1, 9]


def test_phases_begin_where_they_do_in_every_form_of_the_step() -> None:
    starts = built(tiny.A100, accumulation=2).phase_starts
    assert starts["micro"] == [(0, "forward"), (8, "backward")]
    assert starts["first"] == [(0, "forward"), (9, "backward")]  # forward's workspace
    assert starts["accumulate"] == [(0, "forward"), (8, "backward")]
    assert [phase for _, phase in starts["optimizer"]] == ["optimizer", "zero_grad"]


def test_a_further_micro_step_adds_its_gradients_and_frees_them() -> None:
    program = built(accumulation=4)
    micro, further = program.slices["micro"], program.slices["accumulate"]
    assert len(further) == len(micro) + 8  # one more free a parameter
    alive = running(program, "accumulate")
    assert alive[-1] == 0
    # 7 activations, the output, the gradient handed down to the embedding, and its own gradient.
    born = 4096 + 4096 + 16 + 256_000
    assert max(alive) == born
    born_here = {s for s in further if s >= 0}
    assert not born_here & set(micro)
    categories = {program.timeline.places[s].category for s in born_here}
    assert "gradients" not in categories
    assert "gradients" in {program.timeline.places[s].category for s in micro if s >= 0}


def test_each_gradient_dies_right_after_its_birth() -> None:
    program = built(accumulation=2)
    further = program.slices["accumulate"]
    gradient = {256_000, 16_384, 512, 256}
    for index, operation in enumerate(further):
        if operation >= 0 and program.timeline.sizes[operation] in gradient:
            assert further[index + 1] == ~operation


def test_the_optimizer_makes_its_states_once() -> None:
    program = built(optimizer="adamw-foreach", max_grad_norm=None)
    # Two moments and a step counter on the host for each of eight parameters; roots die at once.
    assert running(program, "optimizer_first")[-1] == 2 * tiny.WEIGHTS + 8 * 4 - tiny.WEIGHTS
    assert running(program, "optimizer")[-1] == -tiny.WEIGHTS  # zero_grad
    assert max(running(program, "optimizer")) == tiny.WEIGHTS


def test_master_copies_are_loaded_before_the_first_step() -> None:
    plain, masters = built(precision="fp32"), built(precision="fp16-master")
    assert running(masters, "load")[-1] - running(plain, "load")[-1] == 4 * tiny.PARAMETERS


def test_every_slice_is_in_balance() -> None:
    program = built(tiny.A100, accumulation=3, optimizer="adamw-8bit")
    alive: set[int] = set()
    for name in ("load", *program.step(0), *program.step(1), *program.step(2)):
        for operation in program.slices[name]:
            if operation >= 0:
                assert operation not in alive, name
                alive.add(operation)
            else:
                assert ~operation in alive, name
                alive.remove(~operation)


@pytest.mark.parametrize(
    ("accumulation", "first", "later"),
    [
        (1, ["first", "optimizer_first"], ["micro", "optimizer"]),
        (2, ["first", "accumulate", "optimizer_first"], ["micro", "accumulate", "optimizer"]),
        (512, ["first", *["accumulate"] * 2, "optimizer_first"], None),
    ],
)
def test_schedule(accumulation: int, first: list[str], later: list[str] | None) -> None:
    program = built(accumulation=accumulation)
    assert program.step(0) == first
    assert later is None or program.step(1) == program.step(7) == later


def test_inference_has_no_backward_and_leaves_nothing() -> None:
    program = built(use="inference", accumulation=4)
    assert (program.step(0), program.step(1)) == (["first"], ["micro"])
    alive = running(program, "micro")
    # Two layers' outputs and a product at most.
    assert max(alive) == 3 * 4096
    assert alive[-1] == 0
    assert set(program.slices) == {"load", "first", "micro"}


def test_a_middle_layer_stands_for_many() -> None:
    three, seven = built(), built(layers=(0, 1, 1, 1, 1, 1, 2))
    more = 4 * (64 * 64 + 64) * 4
    assert running(seven, "load")[-1] - running(three, "load")[-1] == more
    assert len([p for p in seven.parameters if p.name.endswith("dense.bias")]) == 7
    # Forward keeps two activations a layer, and every "near" reference found its neighbour.
    starts = {phase: index for index, phase in seven.phase_starts["micro"]}
    assert running(seven, "micro")[starts["backward"] - 1] == 15 * 4096 + 16
    assert running(seven, "load", "micro")[-1] == tiny.LOADED + more + tiny.WEIGHTS + more


def test_a_size_outside_the_proved_domains_is_refused() -> None:
    with pytest.raises(TraceFailed, match="not proved"):
        build_program(tiny.profile(), {"B": 2, "S": 1, "T": 0}, Strategy(), tiny.CPU)
