"""Random batches of selected rows and of unpadded texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.trace.tiny import CONFIGS

from rigsize.run.batch import batch_sizes, random_batch, text_lengths
from rigsize.run.heads import IGNORED
from rigsize.run.packing import Packing
from rigsize.spec import Strategy, Workload
from rigsize.trace.model import BuildOptions, load_config, named_tensors


def batch_of(task: str, sizes: dict[str, int], **given: Any) -> dict[str, Any]:
    options = BuildOptions(task=task, compute="fp32", **given)
    family = "llama" if task == "causal-lm" else "xlm-roberta"
    config = load_config(CONFIGS[family] | {"eos_token_id": 2}, options)
    return random_batch(config, options, sizes, padded=True, seed=0)


def test_lengths_by_hand() -> None:
    # 3 texts behind one of 9 share 11 tokens
    assert text_lengths({"B": 4, "S": 9, "N": 20}) == [9, 4, 4, 3]
    assert text_lengths({"B": 1, "S": 9, "N": 9}) == [9]
    assert text_lengths({"B": 3, "S": 5, "N": 15}) == [5, 5, 5]


def test_texts_in_one_row() -> None:
    batch = batch_of("token-classification", {"B": 3, "S": 4, "N": 9}, unpadded=True)
    packing = batch["packing"]
    assert isinstance(packing, Packing)
    assert packing.offsets.tolist() == [0, 4, 7, 9]
    # XLM-R counts positions from behind the padding id, 1.
    assert batch["position_ids"].tolist() == [[2, 3, 4, 5, 2, 3, 4, 2, 3]]
    assert (batch["input_ids"] == 2).nonzero()[:, 1].tolist() == [3, 6, 8]  # ends of the texts
    assert batch["labels"].shape == (1, 9)
    assert set(batch) == {"input_ids", "position_ids", "packing", "labels"}


def test_a_classifier_reads_one_row_a_text() -> None:
    sizes = {"B": 3, "S": 4, "N": 9}
    batch = batch_of("sequence-classification", sizes, unpadded=True)
    assert batch["positions"].tolist() == [0, 4, 7]
    assert batch["labels"].shape == (3,)


@pytest.mark.parametrize("unpadded", [False, True])
def test_rows_are_chosen_once_each(unpadded: bool) -> None:
    sizes = {"B": 3, "S": 8, "M": 7} | ({"N": 20} if unpadded else {})
    batch = batch_of("masked-lm", sizes, loss="masked", unpadded=unpadded)
    rows = batch["positions"].tolist()
    assert rows == sorted(set(rows))
    assert 0 <= rows[0] <= rows[-1] < batch["input_ids"].numel()
    assert batch["labels"].shape == (7,)
    assert (batch["labels"] >= 0).all()


def test_rows_beyond_what_there_is_have_no_label() -> None:
    batch = batch_of("causal-lm", {"B": 2, "S": 5, "M": 16}, loss="chunked")
    assert batch["positions"].tolist() == [*range(10), *[0] * 6]
    assert batch["labels"][10:].tolist() == [IGNORED] * 6
    assert (batch["labels"][:10] >= 0).all()


def test_inference_has_no_labels() -> None:
    batch = batch_of("causal-lm", {"B": 2, "S": 4, "N": 7, "M": 5}, unpadded=True, training=False)
    assert set(batch) == {"input_ids", "position_ids", "packing", "positions"}


def test_the_sizes_are_those_of_an_estimate() -> None:
    workload = Workload(model="tiny", task="masked-lm", max_length=20, padding="unpadded")
    strategy = Strategy(micro_batch=4, loss="masked", tokens_per_batch=50)
    assert batch_sizes(workload, strategy) == {"B": 4, "S": 20, "N": 50, "M": 8}
    assert batch_sizes(workload, 4) == {"B": 4, "S": 20, "N": 80}


def test_every_tensor_has_a_name() -> None:
    batch = batch_of("embedding", {"B": 2, "S": 4, "N": 7}, unpadded=True)
    named = named_tensors(batch)
    assert set(named) == {
        "input_ids", "position_ids", "packing.offsets", "packing.grid", "labels"
    }  # fmt: skip
    assert all(isinstance(tensor, torch.Tensor) for tensor in named.values())
