"""Positions: of inputs, targets, what is written behind a prompt, and virtual tokens before it."""

from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.models import check_lengths, resolve_model
from rigsize.spec import Strategy, Workload

XLMR, GPT2, T5 = (resolve_model(name) for name in ("xlm-roberta-base", "gpt2", "google-t5/t5-base"))


def asked(**more: Any) -> Workload:
    return Workload(**{"model": "m", "task": "causal-lm", "max_length": 8, **more})


WRITING = {"use": "inference", "prompt_length": 1000, "max_length": 1000}
PREFIX = Strategy(method="prefix", virtual_tokens=20)


@pytest.mark.parametrize(
    ("source", "workload", "strategy", "field"),
    [
        (XLMR, asked(task="masked-lm", max_length=512), Strategy(), None),
        (XLMR, asked(task="masked-lm", max_length=513), Strategy(), "max-length"),
        (XLMR, asked(task="embedding", max_length=492), PREFIX, None),
        (XLMR, asked(task="embedding", max_length=493), PREFIX, "max-length"),
        (GPT2, asked(**WRITING, max_new_tokens=24), Strategy(), None),
        (GPT2, asked(**WRITING, max_new_tokens=25), Strategy(), "max-new-tokens"),
        (T5, asked(task="seq2seq-lm", max_length=100_000), Strategy(), None),  # relative positions
    ],
)
def test_positions(source: Any, workload: Workload, strategy: Strategy, field: str | None) -> None:
    if field is None:
        check_lengths(source, workload, strategy)
        return
    with pytest.raises(SpecError, match="has positions for") as caught:
        check_lengths(source, workload, strategy)
    assert caught.value.field == field
