from __future__ import annotations

import json
from typing import Any

import pytest
from tests.report.conftest import Estimated
from tests.report.hand_made import PARAMETERS

from rigsize.report.answer import Answer, least_bytes, state_bytes_per_parameter
from rigsize.report.document import estimate_document, render, unknown
from rigsize.report.explain import explain, explain_document

TOP = set(
    "model workload strategy cluster memory peaks host time cost fit plan parameters"
    " trainable_parameters head_parameters checkpoint_parameters checkpoint_note precision"
    " attention_kernels versions assumptions notes command".split()
)


def walk(value: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, the object it stands in, value) of everything in a document."""
    if isinstance(value, list):
        return [found for item in value for found in walk(item, f"{path}[]")]
    if not isinstance(value, dict):
        return []
    found = []
    for key, item in value.items():
        found += [(f"{path}.{key}", value, item), *walk(item, f"{path}.{key}")]
    return found


def test_keys_are_the_contract(estimated: Estimated) -> None:
    document = estimate_document(Answer(estimate=estimated()))
    assert set(document) == TOP
    assert set(document["memory"]) == set(
        "allocated_peak_bytes reserved_peak_bytes device_peak_bytes low_bytes high_bytes"
        " peak_moment ledger".split()
    )
    assert set(document["fit"]) == set(
        "fits verdict capacity_bytes headroom_bytes requested_headroom_bytes"
        " host_capacity_bytes host_capacity_bytes_unknown_reason".split()
    )
    assert document["plan"] == {
        "micro_batch": 16,
        "accumulation": 1,
        "ranks": 1,
        "global_batch": 16,
    }
    assert document["parameters"] == document["trainable_parameters"] == PARAMETERS
    assert document["checkpoint_parameters"] == 278_885_778
    assert {row["basis"] for row in document["memory"]["ledger"]} <= {
        *("traced", "derived", "assumed", "measured")
    }


def test_the_version_comes_first() -> None:
    assert next(iter(json.loads(render({"a": 1})))) == "schema_version"


@pytest.mark.parametrize("gpu", ["A100-40GB", "cpu"])
@pytest.mark.parametrize("use", ["fine-tuning", "inference"])
def test_bytes_are_integers_and_every_null_says_why(
    estimated: Estimated, gpu: str, use: str
) -> None:
    answer = Answer(estimate=estimated(gpu, use=use))
    document = estimate_document(answer) | {"explain": explain_document(explain(answer.estimate))}
    # A record's own optional fields are as the user left them: nothing is unknown about them.
    asked = (".workload.", ".strategy.")
    for path, holder, value in walk(document):
        key = path.rpartition(".")[2]
        if key.endswith("bytes") and not isinstance(value, dict):
            assert value is None or type(value) is int, path
        if value is None and not path.startswith(asked):
            assert holder[f"{key}_unknown_reason"], path
    assert json.loads(render(document))["schema_version"] == "1.0"


def test_the_ledger_sums_to_the_peak(estimated: Estimated) -> None:
    for gpu, peak in (("A100-40GB", "device_peak_bytes"), ("cpu", "allocated_peak_bytes")):
        memory = estimate_document(Answer(estimate=estimated(gpu)))["memory"]
        assert sum(row["bytes"] for row in memory["ledger"]) == memory[peak]


def test_cpu_has_no_verdict(estimated: Estimated) -> None:
    answer = Answer(estimate=estimated("cpu"))
    fit = estimate_document(answer)["fit"]
    assert fit["fits"] is None
    assert fit["fits_unknown_reason"] == "not on CPU"
    assert answer.exit_code == 0


def test_above_the_limit_is_exit_3(estimated: Estimated) -> None:
    below = Answer(estimate=estimated(), fail_over_bytes=2**40)
    above = Answer(estimate=estimated(), fail_over_bytes=2**20)
    assert (below.exit_code, above.exit_code) == (0, 3)
    assert estimate_document(above)["fit"]["over_limit"] is True


def test_headroom_is_of_the_card_itself(estimated: Estimated) -> None:
    estimate = estimated()
    plain, kept = Answer(estimate=estimate), Answer(estimate=estimate, requested_headroom_bytes=9)
    assert plain.capacity_bytes is not None
    assert plain.headroom_bytes is not None
    assert kept.capacity_bytes == plain.capacity_bytes + 9
    assert kept.headroom_bytes == plain.headroom_bytes + 9


def test_states_a_parameter(estimated: Estimated) -> None:
    # AdamW keeps two fp32 moments, SGD without momentum nothing.
    assert state_bytes_per_parameter(estimated()) == pytest.approx(8, abs=0.001)
    assert state_bytes_per_parameter(estimated(optimizer="sgd")) == 0
    assert state_bytes_per_parameter(estimated(use="inference")) == 0


def test_the_least_bytes_are_a_bound(estimated: Estimated) -> None:
    # 2 weight + 2 gradient + 2 states in training, 2 in inference.
    assert least_bytes(estimated()) == 6 * PARAMETERS
    assert least_bytes(estimated(optimizer="sgd")) == 4 * PARAMETERS
    assert least_bytes(estimated(use="inference")) == 2 * PARAMETERS


def test_unknown_carries_its_reason() -> None:
    assert unknown("x_bytes", "why") == {"x_bytes": None, "x_bytes_unknown_reason": "why"}
