"""The order of texts: whole, deterministic, the same window on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SpecError
from rigsize.train.order import Order


def order(lengths: list[int], **given: int | bool | None) -> Order:
    values = {"global_batch": 4, "micro_batch": 2} | given
    return Order(
        lengths=np.array(lengths),
        indices=np.arange(len(lengths)),
        **values,  # type: ignore[arg-type]
    )


def test_an_epoch_holds_every_text_once_and_another_epoch_another_order() -> None:
    made = order([5] * 10)
    assert made.windows == 3  # 4 + 4 + 2
    epochs = [
        [int(i) for window in made.epoch(n) for step in window.micro_batches for i in step[0]]
        for n in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_it_begins_anywhere() -> None:
    made = order([3, 9, 4, 1, 5, 5, 2, 8], seed=3)
    whole = list(made.epoch(1))
    later = list(made.epoch(1, 1))
    assert later[0].micro_batches[0][0].tolist() == (whole[1].micro_batches[0][0].tolist())


def test_the_largest_micro_batch_of_a_window_comes_last() -> None:
    made = order([1, 2, 3, 4, 50, 6, 7, 8], global_batch=8)
    steps = [sum(made.lengths[i] for i in s[0]) for s in next(made.epoch(0)).micro_batches]
    assert steps == sorted(steps)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=8, max_size=60),
    ranks=st.sampled_from([1, 2, 4]),
    budget=st.sampled_from([None, 40, 100]),
    grouped=st.booleans(),
)
def test_a_window_is_the_same_on_any_number_of_ranks(
    lengths: list[int], ranks: int, budget: int | None, grouped: bool
) -> None:
    common = {"global_batch": 8, "group_by_length": grouped, "tokens_per_batch": budget}
    alone = order(lengths, **common)
    shared = order(lengths, ranks=ranks, **common)
    for one, many in zip(alone.epoch(0), shared.epoch(0), strict=False):
        if one.texts % ranks == 0:
            assert texts_of(one) == texts_of(many)
        assert len({len(step) for step in many.micro_batches}) == 1
        for step in many.micro_batches:
            assert all(len(part) for part in step)
            if budget:
                assert all(shared.lengths[part].sum() <= budget for part in step)


def texts_of(window: object) -> list[int]:
    return sorted(int(i) for step in window.micro_batches for part in step for i in part)  # type: ignore[attr-defined]


def test_grouping_pads_less() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 100, 800)]

    def padding(made: Order) -> float:
        parts = [p for w in made.epoch(0) for s in w.micro_batches for p in s]
        widest = sum(len(p) * made.lengths[p].max() for p in parts)
        return float(1 - made.lengths.sum() / widest)

    assert padding(order(lengths, global_batch=16, micro_batch=16, group_by_length=True)) < 0.05
    assert padding(order(lengths, global_batch=16, micro_batch=16)) > 0.3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ranks": 3, "global_batch": 4}, "evenly"),
        ({"ranks": 16, "global_batch": 16}, "fewer texts than ranks"),
        ({"tokens_per_batch": 4}, "longest text has 5 tokens"),
    ],
)
def test_what_cannot_be_dealt_is_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        order([5] * 8, **given)
