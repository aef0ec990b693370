from __future__ import annotations

import io
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tests.run.test_record import STRATEGY, WORKLOAD, a_record

from rigsize.errors import UnknownDevice, UnsupportedCombination
from rigsize.memory.outside import LINKED
from rigsize.models.source import ModelSource
from rigsize.run.compare import (
    Prediction,
    compare,
    find_cluster,
    not_predicted,
    predict,
    predict_record,
    prediction_from_json,
    question_of,
    render,
    to_json,
)
from rigsize.run.record import STATISTICS, Cap, Hardware, Memory, Texts, WorldRun
from rigsize.spec import Cluster, Strategy, Workload

PREDICTED = Prediction(
    allocated_peak_bytes=1010,
    reserved_peak_bytes=1980,
    device_peak_bytes=3000,
    low_bytes=2800,
    high_bytes=3200,
)

ON_CARD = replace(PREDICTED, device_peak_bytes=9 << 30, low_bytes=8 << 30, high_bytes=10 << 30)


def measured(device_bytes: int = 3100) -> Memory:
    return Memory(
        allocated_peak_bytes=1000,
        reserved_peak_bytes=2000,
        device_peak_bytes=device_bytes,
        context_bytes=device_bytes - 2000,
        host_peak_bytes=1,
    )


def test_errors_are_relative_to_the_measurement() -> None:
    comparison = compare(a_record(memory=measured()), PREDICTED)
    errors = [row.error_percent for row in comparison.rows]
    # (1010 - 1000) / 1000, (1980 - 2000) / 2000, (3000 - 3100) / 3100
    assert errors == pytest.approx([1.0, -1.0, -3.2258], abs=1e-3)
    assert comparison.inside_band is True
    assert comparison.exit_code == 0


@pytest.mark.parametrize(
    ("device_bytes", "code", "word"),
    [(2799, 4, "below"), (2800, 0, "inside"), (3200, 0, "inside"), (3201, 4, "above")],
)
def test_the_band_decides_the_exit_code(device_bytes: int, code: int, word: str) -> None:
    comparison = compare(a_record(memory=measured(device_bytes)), PREDICTED)
    assert comparison.exit_code == code
    assert word in comparison.verdict


def test_on_a_cpu_the_allocated_peak_is_judged() -> None:
    unknown = {name: "not on CPU" for name in STATISTICS if "allocated" not in name}
    memory = Memory(allocated_peak_bytes=1000, unknown=unknown)
    predicted = Prediction(
        allocated_peak_bytes=1001,
        reserved_peak_bytes=None,
        device_peak_bytes=None,
        low_bytes=1001,
        high_bytes=1001,
    )
    # A trace gives one figure; a thousandth is left for scalars: 1001 * 0.999 = 999.999.
    comparison = compare(a_record(device="cpu", memory=memory), predicted)
    assert comparison.exit_code == 0
    assert comparison.rows[1].unknown_reason == "not on CPU"
    assert "allocated peak inside" in comparison.verdict
    far = Memory(allocated_peak_bytes=1003, unknown=unknown)
    assert compare(a_record(device="cpu", memory=far), predicted).exit_code == 4


@pytest.mark.parametrize(("high", "code"), [(24 * 2**30, 0), (20 * 2**30, 4)])
def test_out_of_memory_must_have_been_predicted(high: int, code: int) -> None:
    record = a_record(outcome="out_of_memory", hardware=Hardware(gpu_memory_bytes=23 * 2**30))
    predicted = Prediction(
        allocated_peak_bytes=1,
        reserved_peak_bytes=1,
        device_peak_bytes=high,
        low_bytes=1,
        high_bytes=high,
    )
    comparison = compare(record, predicted)
    assert comparison.exit_code == code
    assert comparison.rows[0].measured_bytes is None
    assert comparison.rows[0].unknown_reason == "out of memory"


def test_nothing_to_judge_is_no_failure() -> None:
    assert compare(a_record(outcome="failed", message="x"), PREDICTED).exit_code == 0
    comparison = compare(a_record(memory=measured()), None, "no profile")
    assert comparison.inside_band is None
    assert to_json(comparison)["prediction_unknown_reason"] == "no profile"


def test_json_and_text_hold_the_same_rows() -> None:
    comparison = compare(a_record(memory=measured(), notes=("a note",)), PREDICTED)
    document = to_json(comparison)
    assert prediction_from_json(document["prediction"]) == PREDICTED
    assert [row["statistic"] for row in document["rows"]] == list(STATISTICS[:3])
    console = Console(file=io.StringIO(), width=120)
    console.print(render(comparison))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("NVIDIA L4", "allocated peak", "+1.00 %", "inside the predicted band", "a note"):
        assert words in text


def test_the_adapter_hands_the_question_over() -> None:
    asked: list[Any] = []

    def estimate(
        source: ModelSource, workload: Workload, strategy: Strategy, cluster: Cluster
    ) -> Any:
        asked.extend((source.name, workload, strategy, cluster.accelerator.is_cpu))
        fields = {name: getattr(PREDICTED, name) for name in PREDICTED.__dataclass_fields__}
        return SimpleNamespace(memory=SimpleNamespace(**fields, more=1))

    found = predict(estimate, _source(), WORKLOAD, STRATEGY, find_cluster("cpu", None))
    assert found == PREDICTED
    assert asked == ["tiny", WORKLOAD, STRATEGY, True]


def test_a_fake_group_keeps_no_communicators() -> None:
    def estimate(*_: Any) -> Any:
        fields = {name: getattr(ON_CARD, name) for name in ON_CARD.__dataclass_fields__}
        return SimpleNamespace(memory=SimpleNamespace(**fields))

    strategy = Strategy(parallel="fsdp")
    cluster = find_cluster("cuda", "NVIDIA A100-SXM4-40GB", 4)
    assert cluster.devices == 4
    real = predict(estimate, _source(), WORKLOAD, strategy, cluster)
    fake = predict(estimate, _source(), WORKLOAD, strategy, cluster, fake=True)
    assert real == ON_CARD
    less = [getattr(real, n) - getattr(fake, n) for n in ("low_bytes", "high_bytes")]
    assert less == [LINKED.value.low, LINKED.value.high]
    assert real.device_peak_bytes is not None
    assert fake.device_peak_bytes == real.device_peak_bytes - LINKED.value.mid


def test_ranks_beyond_a_node_are_nodes() -> None:
    assert find_cluster("cpu", None, 4096).devices == 4096


def test_a_card_is_found_by_torchs_name() -> None:
    assert find_cluster("cuda", "NVIDIA L4").accelerator.id == "L4"
    with pytest.raises(UnknownDevice, match="could not be read"):
        find_cluster("cuda", None)


@pytest.mark.parametrize(
    ("strategy", "ranks", "words"),
    [
        (Strategy(), 1, ""),
        (Strategy(parallel="ddp"), 2, "not predicted yet (DDP over 2)"),
        (
            Strategy(parallel="fsdp", offload="cpu"),
            4,
            "not predicted yet (FSDP over 4, offload cpu)",
        ),
        (Strategy(method="lora"), 1, "not predicted yet (lora)"),
    ],
)
def test_what_is_not_predicted_is_named(strategy: Strategy, ranks: int, words: str) -> None:
    assert not_predicted(strategy, ranks) == words


def test_what_is_not_predicted_is_no_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedCombination("parallel", "fsdp", "not answered yet")

    monkeypatch.setattr("rigsize.run.compare.load_estimate", lambda: refuse)
    strategy = asdict(Strategy(parallel="fsdp"))
    world = WorldRun(size=4, parallel="fsdp", offload="none", fake=True)
    record = a_record(memory=measured(), strategy=strategy, world=world)
    record = replace(record, hardware=Hardware(gpu="NVIDIA L4"))
    prediction, reason = predict_record(_source(), record)
    comparison = compare(record, prediction, reason)
    assert comparison.exit_code == 0
    assert comparison.verdict == "not predicted yet (FSDP over 4)"
    assert comparison.rows[0].unknown_reason == "not predicted yet (FSDP over 4)"
    assert comparison.rows[0].measured_bytes == 1000


def test_the_question_of_a_record_of_texts_has_its_padding() -> None:
    texts = Texts(kind="histogram", micro_batches=6, micro_steps=3, padded=False)
    workload, strategy, sizes = question_of(a_record(texts=texts, sizes={"B": 2, "S": 9}))
    assert not workload.padding_in_batch
    assert strategy.accumulation == 3
    assert sizes == {"B": 2, "S": 9}
    workload, _, sizes = question_of(a_record())
    assert workload.padding_in_batch
    assert sizes is None


def test_out_of_memory_below_a_cap_is_judged_by_the_cap() -> None:
    cap = Cap(cap_bytes=3000, allocator_limit_bytes=2500, proven=False)
    record = a_record(
        outcome="out_of_memory", cap=cap, hardware=Hardware(gpu_memory_bytes=80 * 2**30)
    )
    assert compare(record, PREDICTED).exit_code == 0  # its band reaches 3,200


def _source() -> ModelSource:
    return ModelSource(
        name="tiny",
        origin="config",
        config={},
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )
