"""The peak of each moment, by hand and by its laws."""

from __future__ import annotations

from typing import Any

import pytest
from tests.program import tiny_profile as tiny
from tests.stored import stored_estimate

from rigsize.estimate import peaks
from rigsize.hardware.accelerators import Band
from rigsize.memory.compiled import least_bytes
from rigsize.memory.ledger import LedgerRow
from rigsize.memory.peaks import peaks_of
from rigsize.memory.replay import replay_exact
from rigsize.program.build import build_program
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy

COUNTERS = 8 * 4


def moments(mesh: Mesh | None = None, **strategy: Any) -> dict[str, tuple[int, int]]:
    program = build_program(
        tiny.profile(), tiny.POINT, Strategy(**strategy), tiny.CPU, mesh or Mesh()
    )
    return replay_exact(program, beside_steps=True).moments


def test_moments_by_hand() -> None:
    found = moments(optimizer="adamw-foreach")
    assert list(found) == ["loading", "first step", "later steps", "evaluation"]
    allocated = {name: size for name, (size, _) in found.items()}
    assert allocated["loading"] == tiny.LOADED
    # Weights, gradients, two moments and a root each; the first step's states come behind backward.
    assert allocated["first step"] == tiny.LOADED + 4 * tiny.WEIGHTS + COUNTERS
    assert allocated["later steps"] == allocated["first step"]
    # No gradients; the forward pass alone beside the states.
    states = 2 * tiny.WEIGHTS + COUNTERS
    assert tiny.LOADED + states < allocated["evaluation"] < allocated["first step"]


def test_the_first_step_is_the_lighter_where_backward_decides() -> None:
    found = moments(optimizer="adamw-fused", precision="fp32")
    assert found["first step"][0] <= found["later steps"][0]


def test_moments_beside_the_steps_are_asked_for() -> None:
    program = build_program(tiny.profile(), tiny.POINT, Strategy(), tiny.CPU)
    assert "evaluation" not in replay_exact(program).moments
    whole, steps = replay_exact(program, beside_steps=True), replay_exact(program)
    assert whole.allocated_peak_bytes == steps.allocated_peak_bytes
    assert whole.peak == steps.peak


def test_device_peaks_have_what_is_outside() -> None:
    program = build_program(tiny.profile(), tiny.POINT, Strategy(), tiny.CPU)
    played = replay_exact(program, beside_steps=True)
    found = peaks_of(played, Band(1, 2, 3))
    assert [p.device_peak_bytes for p in found] == [r + 2 for _, r in played.moments.values()]
    assert [p.moment for p in found if p.is_bound] == ["evaluation"]
    assert {p.device_peak_bytes for p in peaks_of(played, None)} == {None}


@pytest.mark.parametrize("precision", ["fp32", "amp-bf16", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_steps_peaks_never_fall_and_end_at_the_answer(
    precision: str, accumulation: int
) -> None:
    answer = stored_estimate(
        task="masked-lm", micro_batch=4, precision=precision, accumulation=accumulation
    )
    sizes = [peak.device_peak_bytes or 0 for peak in peaks(answer)]
    assert sizes == sorted(sizes)
    at = {peak.moment: peak.device_peak_bytes for peak in peaks(answer)}
    assert at["later steps"] == answer.memory.device_peak_bytes


def test_what_a_compiler_leaves() -> None:
    sizes = {
        "weights.blocks": 5,
        "weights.autocast_casts": 7,
        "gradients": 11,
        "activations.norms": 13,
        "temporaries": 17,
        "logits": 19,
        "allocator": 23,
        "context": 29,
    }
    rows = [LedgerRow(name=n, num_bytes=b, basis="traced") for n, b in sizes.items()]
    assert least_bytes(rows) == 5 + 11 + 19 + 29


def test_compile_bounds_the_eager_answer_from_both_sides() -> None:
    eager = stored_estimate(task="masked-lm", micro_batch=8)
    compiled = stored_estimate(task="masked-lm", micro_batch=8, compile=True)
    assert compiled.memory.high_bytes == eager.memory.high_bytes
    assert compiled.memory.device_peak_bytes == eager.memory.device_peak_bytes
    assert compiled.memory.low_bytes < eager.memory.low_bytes
    bases = {row.name: row.basis for row in compiled.memory.ledger}
    assert bases["temporaries"] == bases["activations.norms"] == "assumed"
    assert bases["weights.blocks"] == "traced"
    assert any("--compile" in note for note in compiled.notes)
