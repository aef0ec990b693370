from __future__ import annotations

import pytest
from tests.report.conftest import Estimated
from tests.report.hand_made import profile

from rigsize.report.explain import (
    HEIGHT,
    WIDTH,
    Sample,
    chart,
    explain,
    explain_document,
    show_expression,
)
from rigsize.units import GIB


def test_holders_sum_to_what_lives_at_the_peak(estimated: Estimated) -> None:
    estimate = estimated()
    found = explain(estimate)
    assert sum(h.num_bytes for h in found.holders) == estimate.replay.live_requested_bytes
    sizes = [h.num_bytes for h in found.holders]
    assert sizes == sorted(sizes, reverse=True)
    assert all(h.module.endswith("dense") or "*" not in h.module for h in found.holders)


def test_layers_are_one_row_with_a_star(estimated: Estimated) -> None:
    weights = [h for h in explain(estimated()).holders if h.category == "weights.blocks"]
    assert [(h.module, h.num_tensors) for h in weights] == [("encoder.layer.*.dense", 2)]


def test_sizes_come_from_shapes_and_from_the_trace(estimated: Estimated) -> None:
    estimate = estimated()
    from rigsize.keys import trace_key

    key = trace_key(estimate.source, estimate.workload, estimate.strategy, device="cuda")
    tensors = explain(estimate, profile(key)).tensors
    by_place = {(t.category, t.op): t.size for t in tensors}
    assert by_place["weights.embeddings", ""] == "1,000·64·4"
    # 16 x 128 tokens of 64 fp32 values.
    blocks = [t for t in tensors if t.op == "addmm" and t.module == "encoder.layer.*.dense"]
    assert {(t.size, t.num_bytes) for t in blocks} <= {("256·B·S", 256 * 16 * 128)}
    assert all(t.num_bytes for t in tensors)


def test_without_a_profile_no_expression_is_claimed(estimated: Estimated) -> None:
    assert {t.size for t in explain(estimated()).tensors if t.op} == {""}


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (((768, "1"),), "768"),
        (((12_288, "BS"),), "12,288·B·S"),
        (((4, "BSS"), (8, "1")), "4·B·S·S + 8"),
        (((2, "B.S128"),), "2·B·S128"),
        (((2, "BS.S8"),), "2·B·S·S8"),
    ],
)
def test_expressions(expression: tuple[tuple[int, str], ...], shown: str) -> None:
    assert show_expression(expression) == shown


def test_the_curve_is_a_whole_steady_step(estimated: Estimated) -> None:
    estimate = estimated(accumulation=3)
    found = explain(estimate)
    program = estimate.program
    operations = sum(len(program.slices[name]) for name in program.step(found.step - 1))
    assert len(found.samples) == operations
    # A steady step ends as it began: weights, states and the batch.
    assert found.samples[-1].num_bytes < max(s.num_bytes for s in found.samples)
    assert {"forward", "backward", "optimizer"} <= {s.phase for s in found.samples}


def test_the_chart_marks_the_peak() -> None:
    heights = [1, 2, 3, 8, 3, 2, 1, 1]
    samples = [Sample(phase="forward", num_bytes=h * GIB) for h in heights]
    lines = chart(samples, width=8, height=8)
    bars, mark = lines[:8], lines[9]
    assert bars[0].endswith("|   #")
    assert bars[7].endswith("|########")
    assert mark.index("^") == bars[0].index("#")
    assert "8.00" in bars[0]
    assert lines[10].strip() == "|fwd"


def test_the_chart_has_a_fixed_size() -> None:
    samples = [Sample(phase="forward", num_bytes=(i % 97) * GIB) for i in range(5000)]
    lines = chart(samples)
    assert len(lines) == HEIGHT + 3
    assert max(map(len, lines)) <= WIDTH + 11
    assert chart([]) == []


def test_a_flat_step_has_a_floor() -> None:
    samples = [Sample(phase="forward", num_bytes=b * GIB) for b in (100, 101, 100)]
    assert "#" in chart(samples, width=3)[0]
    assert chart(samples, width=3)[HEIGHT].split()[0] == "99.00"


def test_the_document(estimated: Estimated) -> None:
    document = explain_document(explain(estimated()))
    assert set(document) == set(
        "modules largest phase_peaks_bytes step alive_over_step attention_kernels sizes_at".split()
    )
    assert set(document["modules"][0]) == {"module", "category", "num_tensors", "bytes"}
    assert document["sizes_at"] == {"B": 16, "S": 128, "T": 0}
