from typing import Any

import pytest

from rigsize.point import assumed_sizes, point_of
from rigsize.spec import Strategy, Workload


def workload(task: str = "masked-lm", **given: Any) -> Workload:
    values: dict[str, Any] = {"model": "tiny", "max_length": 20} | given
    return Workload(task=task, **values)


def test_padded_texts() -> None:
    assert point_of(workload(), Strategy(micro_batch=3)) == {"B": 3, "S": 20, "T": 0}
    both = workload("seq2seq-lm")
    assert point_of(both, Strategy(micro_batch=3)) == {"B": 3, "S": 20, "T": 20}
    shorter = workload("seq2seq-lm", max_target_length=5)
    assert point_of(shorter, Strategy(micro_batch=1)) == {"B": 1, "S": 20, "T": 5}
    assert assumed_sizes(workload(), Strategy(micro_batch=3)) == ()


@pytest.mark.parametrize(
    ("task", "loss", "padding", "tokens", "expected"),
    [
        # 0.15 x 20 = 3 tokens a text, of 4 texts
        ("masked-lm", "masked", "fixed", None, {"S": 20, "M": 12}),
        ("masked-lm", "chunked", "fixed", None, {"S": 20, "M": 16}),
        # 0.15 x 80 tokens
        ("masked-lm", "masked", "unpadded", None, {"S": 20, "N": 80, "M": 12}),
        ("masked-lm", "masked", "unpadded", 50, {"S": 20, "N": 50, "M": 8}),  # 7.5 is 8
        ("masked-lm", "all", "unpadded", 50, {"S": 20, "N": 50}),
        # the last token of a text predicts none: 4 x 19, 80 - 4, 50 - 4
        ("causal-lm", "masked", "fixed", None, {"S": 20, "M": 76}),
        ("causal-lm", "chunked", "fixed", None, {"S": 20, "M": 80}),
        ("causal-lm", "all", "unpadded", None, {"S": 20, "N": 80, "M": 76}),
        ("causal-lm", "chunked", "unpadded", 50, {"S": 20, "N": 50, "M": 48}),
        # one row a text is no size of its own
        ("sequence-classification", "all", "unpadded", 50, {"S": 20, "N": 50}),
        # four texts of 22 tokens: the others have one each at least
        ("embedding", "all", "unpadded", 22, {"S": 19, "N": 22}),
        ("embedding", "all", "unpadded", 1000, {"S": 20, "N": 80}),
    ],
)
def test_rows_and_tokens(
    task: str, loss: str, padding: str, tokens: int | None, expected: dict[str, int]
) -> None:
    strategy = Strategy(micro_batch=4, loss=loss, tokens_per_batch=tokens)
    assert point_of(workload(task, padding=padding), strategy) == {"B": 4, "T": 0} | expected


def test_one_row_at_least() -> None:
    few = workload(mask_share=0.01)
    assert point_of(few, Strategy(micro_batch=2, loss="masked"))["M"] == 2


def test_each_size_is_said_to_be_assumed() -> None:
    packed = workload(padding="unpadded")
    strategy = Strategy(micro_batch=4, loss="chunked", tokens_per_batch=50)
    assert assumed_sizes(packed, strategy) == (
        "4 texts of 50 tokens together, the longest 20",
        "the LM head reads 8 rows: 0.15 of the tokens are predicted, in 8 pieces of one length",
    )
    assert assumed_sizes(packed, Strategy(micro_batch=4)) == (
        "4 texts of 80 tokens together, every text of max-length",
    )
    causal = Strategy(micro_batch=4, loss="masked")
    assert assumed_sizes(workload("causal-lm"), causal) == (
        "the LM head reads 76 rows: all tokens but the last of each text",
    )
