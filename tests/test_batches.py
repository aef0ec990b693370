"""The worst and the usual batch of texts of known lengths, by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rigsize.batches import longest_text, usual_batch, worst_batch
from rigsize.spec import Strategy, Workload
from rigsize.texts.stats import LengthHistogram

LENGTHS = LengthHistogram(((4, 2), (10, 1), (30, 1)))


def job(padding: str, max_length: int = 64, **strategy: Any) -> tuple[Workload, Strategy]:
    workload = Workload(model="tiny", task="masked-lm", max_length=max_length, padding=padding)
    return workload, Strategy(**strategy)


def test_a_dynamic_batch_is_padded_to_its_longest() -> None:
    asked = job("dynamic", micro_batch=2)
    assert worst_batch(LENGTHS, *asked).workload.max_length == 30
    # Of six pairs three hold the 30, two of the rest the 10, and one is of two 4s: 114 / 6 = 19.
    assert usual_batch(LENGTHS, *asked).workload.max_length == 19
    assert longest_text(LENGTHS, asked[0]) == 30


def test_longer_texts_are_cut() -> None:
    asked = job("dynamic", max_length=16, micro_batch=2)
    assert worst_batch(LENGTHS, *asked).workload.max_length == 16
    assert longest_text(LENGTHS, asked[0]) == 16


def test_unpadded_texts_add_up() -> None:
    asked = job("unpadded", micro_batch=3)
    assert worst_batch(LENGTHS, *asked).strategy.tokens_per_batch == 30 + 10 + 4
    assert usual_batch(LENGTHS, *asked).strategy.tokens_per_batch == 36  # 3 x 48 / 4
    # More texts than there are: the longest again.
    assert worst_batch(LENGTHS, *job("unpadded", micro_batch=6)).strategy.tokens_per_batch == 108


def test_a_budget_bounds_a_row() -> None:
    asked = job("unpadded", micro_batch=3, tokens_per_batch=40)
    assert worst_batch(LENGTHS, *asked).strategy.tokens_per_batch == 40
    assert usual_batch(LENGTHS, *asked).strategy.tokens_per_batch == 36


@given(
    st.dictionaries(st.integers(1, 200), st.integers(1, 50), min_size=1),
    st.integers(1, 32),
    st.integers(1, 200),
    st.sampled_from(["dynamic", "unpadded"]),
)
def test_a_usual_batch_is_never_worse(
    counts: dict[int, int], size: int, limit: int, padding: str
) -> None:
    lengths = LengthHistogram(tuple(sorted(counts.items())))
    asked = job(padding, max_length=limit, micro_batch=size)
    worst, usual = worst_batch(lengths, *asked), usual_batch(lengths, *asked)
    assert usual.workload.max_length <= worst.workload.max_length <= limit
    if padding == "unpadded":
        least, most = usual.strategy.tokens_per_batch, worst.strategy.tokens_per_batch
        assert least is not None
        assert most is not None
        assert size <= least <= most
