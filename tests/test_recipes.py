"""Recipes are flags by name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rigsize.errors import SpecError
from rigsize.recipes import RECIPES, recipe_flags

XLM_R, T5 = {"model_type": "xlm-roberta"}, {"model_type": "t5", "is_encoder_decoder": True}


def flags(name: str, task: str, config: Mapping[str, object], **given: bool) -> dict[str, object]:
    return dict(recipe_flags(name, task, config, **{"on_cpu": False, "training": True} | given))


def test_the_seed_is_what_the_article_says() -> None:
    seed = flags("seed", "masked-lm", XLM_R)
    assert (seed["max_length"], seed["padding"], seed["loss"]) == ("128", "fixed", "all")


def test_lean_leaves_out_padding_and_rows_without_a_label() -> None:
    lean = flags("lean", "masked-lm", XLM_R)
    assert (lean["padding"], lean["loss"]) == ("unpadded", "masked")
    assert lean["precision"] == "amp-bf16"
    assert flags("lean", "masked-lm", XLM_R, on_cpu=True)["precision"] == "fp32"
    assert flags("lean", "causal-lm", {"model_type": "llama"})["loss"] == "chunked"


def test_an_encoder_and_decoder_keeps_its_rows() -> None:
    assert flags("lean", "seq2seq-lm", T5)["padding"] == "dynamic"


def test_inference_has_no_loss() -> None:
    assert "loss" not in flags("lean", "masked-lm", XLM_R, training=False)


def test_recipes_that_change_rounding_say_so() -> None:
    for name in ("lean-8bit", "lean-bf16"):
        assert "rounding" in (RECIPES[name].__doc__ or "")


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean lean"):
        flags("leen", "masked-lm", XLM_R)
