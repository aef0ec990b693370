"""Classes of a text task that do not work on text alone: refused by name, with the reason."""

from __future__ import annotations

import pytest

from rigsize.errors import UnsupportedCombination
from rigsize.models import check_task, default_task
from rigsize.models.not_text import _REASONS, why_not_text
from rigsize.models.positions import tasks_of


def test_every_reason_is_of_a_class_that_exists() -> None:
    for model_type, task in _REASONS:
        assert task in tasks_of(model_type), model_type


def test_text_is_no_exception() -> None:
    assert why_not_text("bert", "masked-lm") == ""
    assert check_task({"model_type": "bert"}, "masked-lm") == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("model_type", "task", "why"),
    [
        ("voxtral", "seq2seq-lm", "sound"),
        ("bros", "token-classification", "the box of every token"),
        ("layoutlmv2", "token-classification", "picture"),
        ("gemma4_assistant", "causal-lm", "another model"),
    ],
)
def test_the_message_says_why(model_type: str, task: str, why: str) -> None:
    with pytest.raises(UnsupportedCombination, match=why) as caught:
        check_task({"model_type": model_type}, task)
    assert "\n" not in str(caught.value)
    assert model_type in str(caught.value)


def test_the_usual_task_is_one_on_text() -> None:
    # it also has a class for sound, which comes first in the order of tasks
    assert default_task({"model_type": "moss_transcribe_diarize"}) == "causal-lm"
    assert default_task({"model_type": "voxtral"}) == "seq2seq-lm"  # refused later, with the reason
