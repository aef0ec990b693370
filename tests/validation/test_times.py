"""How rows of the published table become questions, on rows made up here."""

from collections import Counter

import pytest
from validation.check_times import predict, report
from validation.times_rows import LeftOut, question_of

BERT = {
    "id": "made-up",
    "slice": "dle-bert-pretrain-a100",
    "framework": "PyTorch NGC 21.11",
    "model": "BERT-large",
    "method": "full",
    "task": "mlm+nsp",
    "seq_len": "128",
    "micro_batch": "64.0",
    "grad_accum": "4.0",
    "n_gpus": "16",
    "n_nodes": "2",
    "gpu": "A100-SXM",
    "precision": "tf32",
    "step_time_s": "0.8",
}


def test_a_row_becomes_a_question() -> None:
    question = question_of(BERT)
    assert question.workload.mask_share == 20 / 128
    assert question.strategy.parallel == "ddp"
    assert question.strategy.accumulation == 4
    assert (question.cluster.per_node, question.cluster.nodes) == (8, 2)
    assert question.seconds == 0.8
    assert question.network_bytes_per_s == 200e9


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"framework": "TensorFlow1"}, "TensorFlow"),
        ({"seq_len": "512"}, "binned"),
        ({"slice": "never-heard-of"}, "not written out"),
    ],
)
def test_what_is_no_question_says_why(change: dict[str, str], why: str) -> None:
    with pytest.raises(LeftOut, match=why):
        question_of(BERT | change)


@pytest.mark.slow
def test_a_prediction_is_reported_with_its_error() -> None:
    found = predict(question_of(BERT), draws=20)
    half = predict(question_of(BERT | {"step_time_s": str(found.answer.step_s.p50 / 2)}), draws=20)
    assert half.error_percent == pytest.approx(100)
    assert not half.held
    lines = report([half], Counter({("other", "no reason"): 3}))
    assert any("median error 100.0 % (target 12 %)" in line for line in lines)
    assert "- other, 3 rows: no reason" in lines
