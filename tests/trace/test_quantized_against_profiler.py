"""Products with quantised weights: the CPU trace is what the allocator really did.

The real bitsandbytes and torchao run on the CPU beside the trace through the same classes. Only the
kernels differ on a card; `trace.taken_apart` and `program.four_bit` hold them.
"""

from __future__ import annotations

import pytest
from tests.trace.referee import compare, profiled, traced
from tests.trace.tiny import Case

from rigsize.spec.adapter import Adapter

LORA = Adapter(method="lora", rank=8)
QUICK = [
    Case(family="llama", task="causal-lm", compute="amp", quantization="nf4-double", adapter=LORA),
    Case(family="llama", task="causal-lm", compute="half", quantization="fp8", training=False),
]
FULL = [
    Case(family="llama", task="causal-lm", compute="half", quantization="nf4", adapter=LORA),
    Case(family="llama", task="causal-lm", quantization="nf4-double", adapter=LORA),
    Case(family="llama", task="causal-lm", compute="half", quantization="nf4", training=False),
    Case(family="gpt2", task="causal-lm", compute="half", quantization="nf4", training=False),
    Case(family="llama", task="causal-lm", compute="half", quantization="int8", adapter=LORA),
    Case(family="llama", task="causal-lm", compute="amp", quantization="int8", adapter=LORA),
    Case(
        family="llama", task="causal-lm", compute="half", quantization="int8-torchao", adapter=LORA
    ),
    Case(
        family="xlm-roberta",
        task="sequence-classification",
        compute="amp",
        quantization="nf4-double",
        adapter=LORA,
    ),
    *(
        Case(
            family="xlm-roberta",
            task="sequence-classification",
            compute="half",
            quantization=method,
            training=False,
        )
        for method in ("nf4", "int8-torchao", "fp8")
    ),
]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_quick(case: Case) -> None:
    assert not str(compare(traced(case), profiled(case)))


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_full(case: Case) -> None:
    assert not str(compare(traced(case), profiled(case)))
