"""What quantised weights may be used for; each refusal names what would work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigsize.errors import SizingError
from rigsize.spec import Strategy, Workload, check_together
from rigsize.spec.quantization import (
    assumptions_of,
    check_card,
    check_checkpoint,
    check_cpu,
    of_checkpoint,
    read_text,
    text_of,
)
from rigsize.spec.strategy import QUANTIZATIONS

TRAIN = Workload(model="m", task="causal-lm", max_length=8)
SERVE = Workload(model="m", task="causal-lm", max_length=8, use="inference")

REFUSED: dict[str, tuple[Workload, dict[str, Any], str]] = {
    "in full": (TRAIN, {"quantization": "nf4"}, "--method qlora"),
    "int8 in full": (TRAIN, {"quantization": "int8"}, "--method int8-lora"),
    "int4 by peft": (
        TRAIN,
        {"quantization": "int4-torchao", "method": "lora", "precision": "bf16"},
        "did you mean nf4?",
    ),
    "fp8 by peft": (TRAIN, {"quantization": "fp8", "method": "lora"}, "did you mean int8-torchao?"),
    "dora": (TRAIN, {"quantization": "nf4", "method": "dora"}, "--method qlora"),
    "qlora of int8": (
        TRAIN,
        {"quantization": "int8", "method": "qlora"},
        "did you mean nf4-double",
    ),
    "fsdp": (TRAIN, {"method": "qlora", "parallel": "fsdp"}, "quant_storage"),
    "zero3": (TRAIN, {"method": "qlora", "parallel": "zero3"}, "did you mean ddp?"),
    "precision": (TRAIN, {"method": "lora", "precision": "int8"}, "int8-lora"),
    "int4 of fp32": (SERVE, {"quantization": "int4-torchao"}, "--precision bf16"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_with_what_works(case: str) -> None:
    workload, given, expected = REFUSED[case]
    with pytest.raises(SizingError) as caught:
        check_together(workload, Strategy(**given))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "qlora", "precision": "amp-bf16"},
        {"method": "qlora", "quantization": "nf4", "precision": "bf16", "parallel": "ddp"},
        {"method": "int8-lora", "precision": "amp-bf16"},
        {"method": "lora", "quantization": "int8-torchao", "precision": "bf16"},
        {"method": "ia3", "quantization": "nf4", "precision": "bf16"},
    ],
    ids=str,
)
def test_answered(given: dict[str, Any]) -> None:
    check_together(TRAIN, Strategy(**given))


def test_the_word_in_a_trace_key() -> None:
    assert text_of(Strategy()) == ""
    assert text_of(Strategy(method="qlora", precision="amp-bf16")) == "nf4-double"
    # LLM.int8 computes in fp16: fp16 around it has no casts, bf16 has.
    assert text_of(Strategy(precision="int8")) == "int8-fp16"
    assert text_of(Strategy(precision="bf16", quantization="int8")) == "int8"
    assert read_text("int8-fp16") == ("int8", "float16")
    assert read_text("nf4") == ("nf4", "bfloat16")


CHECKPOINTS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
    ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4-double"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "int8"),
]


@pytest.mark.parametrize(("found", "stored"), CHECKPOINTS, ids=str)
def test_a_checkpoint_says_how_it_is_stored(found: dict[str, Any], stored: str) -> None:
    config = {"model_type": "llama", "quantization_config": found}
    assert of_checkpoint(config) == stored
    check_checkpoint(config, Strategy(quantization=stored or "none", precision="bf16"))


def test_a_checkpoint_is_not_stored_otherwise() -> None:
    config = {"quantization_config": {"load_in_8bit": True}}
    with pytest.raises(SizingError, match="stored as int8"):
        check_checkpoint(config, Strategy(precision="bf16"))


@pytest.mark.parametrize(
    ("method", "hint"), [("gptq", "int4-torchao"), ("awq", "int4-torchao"), ("hqq", "without this")]
)
def test_other_libraries_are_refused_by_name(method: str, hint: str) -> None:
    with pytest.raises(SizingError, match=hint) as caught:
        of_checkpoint({"quantization_config": {"quant_method": method}})
    assert method in str(caught.value)


@pytest.mark.parametrize(
    ("given", "capability", "field", "nearest"),
    [
        ({"precision": "fp8"}, (8, 6), "precision", "int8"),
        ({"precision": "fp8"}, (7, 0), "precision", "int4"),
        ({"precision": "int8"}, (7, 0), "precision", "int4"),
        ({"precision": "bf16", "quantization": "int4-torchao"}, (7, 5), "quantization", "nf4"),
        ({"precision": "bf16", "quantization": "fp8"}, (8, 0), "quantization", "int8-torchao"),
        ({"precision": "amp-bf16", "method": "int8-lora"}, (7, 0), "method", "qlora"),
    ],
)
def test_a_card_that_is_too_old(
    given: dict[str, str], capability: tuple[int, int], field: str, nearest: str
) -> None:
    strategy = Strategy(**given)  # type: ignore[arg-type]
    with pytest.raises(SizingError, match="needs compute capability") as caught:
        check_card(strategy, "card", capability)
    # What was asked for is what is refused, and the nearest is what this card has.
    assert (caught.value.field, caught.value.nearest) == (field, nearest)
    check_card(replace(strategy, **{field: nearest}), "card", capability)  # type: ignore[arg-type]
    check_card(strategy, "card", (9, 0))


def test_a_cpu_that_cannot() -> None:
    for strategy in (
        Strategy(precision="int8"),
        Strategy(precision="bf16", quantization="int4-torchao"),
    ):
        with pytest.raises(SizingError):
            check_cpu(strategy, training=False)
    check_cpu(Strategy(precision="int4"), training=False)
    check_cpu(Strategy(method="int8-lora", precision="amp-bf16"), training=True)


@pytest.mark.parametrize("stored", QUANTIZATIONS)
def test_what_is_taken_for_granted_is_said(stored: str) -> None:
    strategy = Strategy(precision="bf16", quantization=stored)
    assert bool(assumptions_of(strategy, training=False)) == (stored != "none")
