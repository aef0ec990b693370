"""The driver writes the tokens of transformers' own `generate`, and holds what that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.trace.generating import Case, nothing

from rigsize.errors import UnsupportedCombination
from rigsize.run.generation import Generation
from rigsize.run.step import StepRecipe
from rigsize.spec.adapter import Adapter

NEW_TOKENS = 6
FAMILIES = ("llama", "gemma3_text", "bloom", "mamba", "t5", "bart")


def written(case: Case) -> Generation:
    generation = Generation(case.model(), case.batch(length=12), case.recipe)
    generation.prefill(nothing)
    for _ in range(NEW_TOKENS - 1):
        generation.decode(nothing)
    return generation


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_writes_what_generate_writes(family: str, padded: bool) -> None:
    case = Case(family=family, padded=padded)
    model: Any = case.model()
    model.generation_config.eos_token_id = None
    theirs = model.generate(**case.batch(length=12), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(written(case).input_ids, theirs)


def test_it_writes_what_generate_writes_through_an_adapter() -> None:
    case = Case(family="llama", adapter=Adapter(method="lora", rank=4))
    model: Any = case.model()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:  # peft begins with zeros, through which nothing would be seen
            torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config.eos_token_id = None
    batch = case.batch(length=12)
    theirs = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    generation = Generation(model, batch, case.recipe)
    generation.prefill(nothing)
    for _ in range(NEW_TOKENS - 1):
        generation.decode(nothing)
    assert torch.equal(generation.input_ids, theirs)
    assert not torch.equal(written(Case(family="llama")).input_ids, theirs)


def test_what_is_held_between_two_passes() -> None:
    held = {h.name: tuple(h.tensor.shape) for h in written(Case(family="llama")).held()}
    # 12 tokens of prompt and 5 decoded ones have keys; the sixth is chosen and not yet read.
    assert held["cache.*.keys"] == (2, 2, 17, 24)
    assert held["input_ids"] == (2, 18)
    assert held["scores"] == (2, 5003)
    assert held["given.input_ids"] == (2, 12)
    assert "kwargs.attention_mask" not in held  # it masks nothing and is dropped


def test_a_window_keeps_one_key_less() -> None:
    layers = [h for h in written(Case(family="gemma3_text")).held() if h.name == "cache.*.keys"]
    # A sliding layer with a window of 16, to which the next token brings its own, and a full one.
    assert [h.tensor.shape[2] for h in layers] == [15, 17]


def test_a_class_without_generate_is_refused() -> None:
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"is_encoder_decoder": False})()
    recipe = StepRecipe(task="causal-lm", device_type="cpu")
    with pytest.raises(UnsupportedCombination, match="cannot generate"):
        Generation(model, {"input_ids": torch.ones(1, 1, dtype=torch.long)}, recipe)
