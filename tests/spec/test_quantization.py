"""What quantised weights may be used for; each refusal names what would work."""

from __future__ import annotations

from typing import Any

import pytest

from rigsize.errors import SizingError
from rigsize.spec import Strategy, Workload, check_together
from rigsize.spec.quantization import read_text, text_of

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
