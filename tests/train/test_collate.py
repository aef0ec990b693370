"""Micro-batches by hand: padding, masks, labels, selected rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rigsize.run.heads import IGNORED
from rigsize.run.job import options_of
from rigsize.spec import Strategy, Workload
from rigsize.texts.tokenised import Example
from rigsize.train.collate import Collator, Vocabulary, masked_positions

VOCABULARY = Vocabulary(size=100, pad_id=1, mask_id=4, special_ids=frozenset({0, 1, 2, 4}))


class Config:
    model_type = "xlm-roberta"
    pad_token_id = 1


def example(*ids: int, label: int | None = None, second: list[int] | None = None) -> Example:
    more = None if second is None else np.array(second, dtype=np.int32)
    return Example(np.array(ids, dtype=np.int32), label, more)


def collate(task: str, examples: list[Example], reads_last: bool = False, **given: Any) -> Any:
    loss = given.pop("loss", "all")
    workload = Workload(model="m", task=task, max_length=given.pop("max_length", 6), **given)
    strategy = Strategy(loss=loss)
    options = options_of(workload, strategy)
    collator = Collator(
        workload, strategy, options, Config(), VOCABULARY, seed=1, reads_last=reads_last
    )
    return collator(range(len(examples)), examples, 0)


SHORT, LONG = example(0, 7, 2, label=1), example(0, 8, 9, 10, 2, label=0)


def test_fixed_padding_goes_to_the_limit() -> None:
    made = collate("sequence-classification", [SHORT, LONG])
    assert made.inputs["input_ids"].tolist() == [[0, 7, 2, 1, 1, 1], [0, 8, 9, 10, 2, 1]]
    assert made.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert made.inputs["labels"].tolist() == [1, 0]
    sizes = made.sizes
    assert (sizes.B, sizes.S, sizes.real_tokens, sizes.computed_tokens) == (2, 6, 8, 12)
    assert sizes.labelled == 2


def test_dynamic_padding_goes_to_the_longest_and_needs_no_mask_where_all_are_as_long() -> None:
    assert collate("sequence-classification", [SHORT, LONG], padding="dynamic").sizes.S == 5
    alike = collate("sequence-classification", [LONG, LONG], padding="dynamic")
    assert "attention_mask" not in alike.inputs
    assert not alike.sizes.padded


def test_an_unpadded_row_has_positions_of_each_text_and_its_first_tokens() -> None:
    made = collate("sequence-classification", [SHORT, LONG], padding="unpadded")
    assert made.inputs["input_ids"].tolist() == [[0, 7, 2, 0, 8, 9, 10, 2]]
    # XLM-R counts from the padding id + 1
    assert made.inputs["position_ids"].tolist() == [[2, 3, 4, 2, 3, 4, 5, 6]]
    assert made.inputs["positions"].tolist() == [0, 3]
    packing = made.inputs["packing"]
    assert packing.offsets.tolist() == [0, 3, 8]
    assert packing.grid.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]  # rows of the longest, 5
    assert made.sizes.point == {"B": 2, "S": 5, "T": 0, "M": 2, "N": 8}


def test_a_decoder_is_read_at_the_last_token() -> None:
    made = collate("sequence-classification", [SHORT, LONG], padding="unpadded", reads_last=True)
    assert made.inputs["positions"].tolist() == [2, 7]


def test_a_decoder_predicts_the_next_token_of_its_own_text() -> None:
    made = collate("causal-lm", [SHORT, LONG], padding="unpadded")
    assert made.inputs["positions"].tolist() == [0, 1, 3, 4, 5, 6]
    assert made.inputs["labels"].tolist() == [7, 2, 8, 9, 10, 2]
    padded = collate("causal-lm", [SHORT, LONG], loss="masked")
    assert padded.inputs["positions"].tolist() == [0, 1, 6, 7, 8, 9]
    assert padded.inputs["labels"].tolist() == [7, 2, 8, 9, 10, 2]
    assert collate("causal-lm", [SHORT, LONG]).sizes.labelled == 6


def test_chunked_rows_are_filled_up_to_a_multiple_of_eight() -> None:
    made = collate("causal-lm", [SHORT, LONG], padding="unpadded", loss="chunked")
    assert made.inputs["labels"].tolist() == [7, 2, 8, 9, 10, 2, IGNORED, IGNORED]
    assert (made.sizes.M, made.sizes.labelled) == (8, 6)


def test_masked_positions_hang_on_the_text_alone() -> None:
    ids = np.array([0, *range(10, 30), 2])
    chosen, replaced = masked_positions(ids, VOCABULARY, 0.15, (1, 0, 7))
    assert len(chosen) == round(0.15 * 22)
    assert not np.isin(ids[chosen], [0, 2]).any()
    untouched = np.setdiff1d(np.arange(22), chosen)
    assert (replaced[untouched] == ids[untouched]).all()
    again, _ = masked_positions(ids, VOCABULARY, 0.15, (1, 0, 7))
    other, _ = masked_positions(ids, VOCABULARY, 0.15, (1, 1, 7))
    assert chosen.tolist() == again.tolist() != other.tolist()


def test_four_fifths_become_the_mask_and_a_tenth_stays() -> None:
    ids = np.arange(10, 90)
    masks = kept = total = 0
    for number in range(200):
        chosen, replaced = masked_positions(ids, VOCABULARY, 0.2, (0, 0, number))
        masks += int((replaced[chosen] == 4).sum())
        kept += int((replaced[chosen] == ids[chosen]).sum())
        total += len(chosen)
    assert masks / total == pytest.approx(0.8, abs=0.02)
    assert kept / total == pytest.approx(0.1, abs=0.02)


def test_masked_rows_are_those_with_labels() -> None:
    texts = [example(0, *range(10, 20), 2), example(0, *range(20, 24), 2)]
    dense = collate("masked-lm", texts, max_length=12)
    rows = collate("masked-lm", texts, max_length=12, loss="masked")
    labels = dense.inputs["labels"].reshape(-1)
    assert rows.inputs["positions"].tolist() == (labels != IGNORED).nonzero().view(-1).tolist()
    assert rows.inputs["labels"].tolist() == labels[labels != IGNORED].tolist()
    assert rows.sizes.labelled == 2 + 1  # round(0.15 x 12), round(0.15 x 6)


def test_pairs_lie_side_by_side() -> None:
    made = collate("embedding", [example(0, 7, 2, second=[0, 8, 2])] * 2)
    assert made.inputs["labels"].tolist() == [1, 0, 3, 2]
    assert (made.sizes.B, made.sizes.texts) == (4, 2)


def test_targets_have_a_length_of_their_own() -> None:
    made = collate("seq2seq-lm", [example(5, 6, second=[7, 8, 2])], max_target_length=4)
    assert made.inputs["labels"].tolist() == [[7, 8, 2, IGNORED]]
    assert (made.sizes.T, made.sizes.labelled) == (4, 3)


def test_a_label_a_token() -> None:
    made = collate("token-classification", [example(0, 7, 2, second=[IGNORED, 1, IGNORED])])
    assert made.inputs["labels"].tolist() == [[IGNORED, 1] + [IGNORED] * 4]
    assert made.sizes.labelled == 1
