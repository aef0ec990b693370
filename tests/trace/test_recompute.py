"""Which blocks recompute, and what a selective one keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.trace.tiny import CONFIGS, Case

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.spec import Strategy
from rigsize.spec.recompute import recompute_period
from rigsize.trace.model import build, load_config
from rigsize.trace.recompute import enable_recompute

LLAMA = Case(family="llama", task="causal-lm")


def model_of(case: Case, layers: int) -> Any:
    options = case.options()
    config = load_config(CONFIGS[case.family] | {"num_hidden_layers": layers}, options)
    return build(config, options)


def recomputing(model: Any) -> list[bool]:
    return [layer.gradient_checkpointing for layer in model.model.layers]


@pytest.mark.parametrize("period", [2, 3, 4])
def test_every_n_are_the_blocks_that_transformers_takes(period: int) -> None:
    ours = model_of(replace(LLAMA, recompute=f"every-{period}"), 7)
    theirs = model_of(LLAMA, 7)
    theirs.train().activation_checkpointing_enable(every_n_layers=period)
    assert recomputing(ours) == recomputing(theirs)
    assert recomputing(ours) == [n % period == 0 for n in range(7)]


def test_blocks_can_be_named_one_by_one() -> None:
    model = model_of(LLAMA, 4)
    enable_recompute(model, "every-2", (True, False, False, True))
    assert recomputing(model) == [True, False, False, True]


def test_a_model_of_one_block_has_none_to_choose() -> None:
    with pytest.raises(UnsupportedCombination, match="one by one") as raised:
        model_of(replace(LLAMA, recompute="every-2"), 1)
    assert raised.value.nearest == "block"


def saved_bytes(word: str) -> int:
    """Bytes that the graph of one real forward pass keeps."""
    case = replace(LLAMA, recompute=word)
    options = case.options()
    config = load_config(CONFIGS["llama"] | {"num_hidden_layers": 6}, options)
    torch.manual_seed(0)
    model = build(config, options, "cpu")
    tokens = torch.randint(4, 100, (2, 24))

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as prof:
        out = model(input_ids=tokens, labels=tokens, use_cache=False)
    assert out.loss.requires_grad
    assert prof.profiler is not None
    events = prof.profiler.kineto_results.events()
    return sum(e.nbytes() for e in events if e.name() == "[memory]")


def test_each_kind_keeps_what_its_name_says() -> None:
    none, half, selective, block = map(saved_bytes, ("none", "every-2", "selective", "block"))
    assert block < selective < none
    assert block < half < none
    # Of six blocks three are recomputed.
    assert abs(half - (none + block) / 2) < 0.01 * none


@pytest.mark.parametrize(
    ("word", "near"), [("every-1", "block"), ("every", "every-2"), ("blocks", "block")]
)
def test_other_words_are_refused(word: str, near: str) -> None:
    with pytest.raises(SpecError) as raised:
        Strategy(recompute=word)
    assert raised.value.nearest == near


def test_periods() -> None:
    words = ("none", "block", "selective", "every-2", "every-12")
    assert [recompute_period(word) for word in words] == [0, 1, 1, 2, 12]
