"""How rows of the published table become questions, on rows made up here."""

from collections import Counter
from dataclasses import replace

import pytest
from validation.check_times import Judged, judge, known_misses, predict, report
from validation.times_questions import LeftOut
from validation.times_rows import question_of

from rigsize.steptime.step import Quantiles, StepTime

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
    assert question.cluster.network_bytes_per_s == 200e9


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


def judged(seconds: float, name: str = BERT["slice"]) -> Judged:
    """A row of 0.8 s, predicted as so much, with a tenth to both sides."""
    answer = StepTime(
        step_s=Quantiles(0.9 * seconds, seconds, 1.1 * seconds),
        micro_s=seconds,
        update_s=0.0,
        parts=(),
        bound_by="compute",
        widest="the GPU",
        flops=1,
        mfu=None,
        assumptions=(),
    )
    question = question_of(BERT)
    return Judged(question=replace(question, row={**question.row, "slice": name}), answer=answer)


def test_a_missed_target_fails_unless_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    # Four of five hold: 80 %. Then none does, and all are twice as long.
    met = [*(judged(0.8) for _ in range(4)), judged(0.95)]
    assert judge(met, frozenset()) == 0
    missed = [judged(1.6)] * 5
    assert judge(missed, frozenset()) == 1
    assert "missed: Cards with kernel tables, median error: 100.0 %" in capsys.readouterr().out
    names = ["Cards with kernel tables, median error", "Cards with kernel tables, intervals"]
    assert judge(missed, frozenset(names[:1])) == 1
    assert judge(missed, frozenset(names)) == 0
    assert "known miss: Cards with kernel tables, intervals: 0 %" in capsys.readouterr().out


def test_known_misses_are_those_of_the_list() -> None:
    text = "## Old\n- no: one\n\n## Known misses\n\nAll:\n\n- A, b: why\n- C: why\n\n## D\n- e: f"
    assert known_misses(text) == {"A, b", "C"}


def test_a_slice_that_was_fitted_says_that_it_proves_nothing() -> None:
    lines = report([judged(0.8, "qwen2.5-inference-hf"), judged(0.8)], Counter())
    assert "## qwen2.5-inference-hf (fitted: proves nothing)" in lines
    assert "## dle-bert-pretrain-a100 (proof)" in lines


@pytest.mark.slow
def test_a_prediction_is_reported_with_its_error() -> None:
    found = predict(question_of(BERT), draws=20)
    half = predict(question_of(BERT | {"step_time_s": str(found.answer.step_s.p50 / 2)}), draws=20)
    assert half.error_percent == pytest.approx(100)
    assert not half.point.held
    lines = report([half], Counter({("other", "no reason"): 3}))
    assert any("median error 100.0 % (target 12 %)" in line for line in lines)
    assert "- other, 3 rows: no reason" in lines
