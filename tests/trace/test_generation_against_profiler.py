"""Prefill and decoding steps are what the CPU's allocator did, operator by operator.

As in `test_against_profiler`: no tolerance after the exemptions of `exemptions.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.trace.generating import Case, generated_peak, predicted_peak, verdict
from tests.trace.tiny import CONFIGS

from rigsize.spec.adapter import Adapter
from rigsize.trace.capture import Traced
from rigsize.trace.model import load_config
from rigsize.trace.recorder import ALLOC, CARRY

LORA = Adapter(method="lora", rank=4)
PASSES = ("prefill", "decode")
QUICK = [
    Case(family="llama"),
    Case(family="llama", compute="half", padded=True),
    Case(family="gemma3_text", padded=True),
    Case(family="t5", compute="half"),
    Case(family="llama", compute="half", adapter=LORA),
]
SLOW = [
    *(Case(family=f) for f in "gpt2 gpt_neox falcon gemma3_text mamba bart".split()),
    *(Case(family=f, padded=True) for f in "qwen2 bloom gemma2 t5 m2m_100".split()),
    Case(family="qwen3", compute="half"),
    Case(family="mixtral", compute="half", padded=True),
    Case(family="llama", attention="eager"),
    Case(family="llama", compute="amp"),
    Case(family="llama", compute="half", adapter=replace(LORA, method="dora")),
    Case(family="llama", adapter=Adapter(method="ia3")),
    Case(family="gpt2", padded=True, adapter=LORA),
    Case(family="t5", adapter=LORA),
]


@pytest.mark.parametrize("cache", PASSES)
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_trace_is_what_the_allocator_did(case: Case, cache: str) -> None:
    found = verdict(case, cache)
    assert not str(found), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("cache", PASSES)
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_every_family(case: Case, cache: str) -> None:
    found = verdict(case, cache)
    assert not str(found), str(found)


SPECIAL_TOKENS = 64
"""Bytes: `generate` turns its special tokens into tensors, an int64 or a flag each."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "prompt"),
    [
        (Case(family="llama", padded=True), 13),  # the last step is the peak
        (Case(family="gemma3_text"), 8),  # it grows past the window of 16
        (Case(family="bart", padded=True), 40),
        (Case(family="llama", adapter=LORA), 13),
    ],
    ids=str,
)
def test_a_whole_generate_peaks_where_predicted(case: Case, prompt: int) -> None:
    new_tokens = 20
    real = generated_peak(case, new_tokens, prompt)
    assert 0 <= real - predicted_peak(case, new_tokens, prompt) <= SPECIAL_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("stored_as", ["int8", "nf4"])
def test_quantised_weights_write_tokens_too(stored_as: str) -> None:
    options = replace(Case(family="llama", compute="half").options, quantization=stored_as)
    model = Traced(load_config(CONFIGS["llama"], options), options)
    trace = model.record_generation({"B": 2, "S": 40, "C": 42}, "decode", padded=False)
    keys = [e for e in trace.events if e.kind == CARRY and e.label == ("state:cache.*.keys",)]
    born = {e.storage: e.num_bytes for e in trace.events if e.kind == ALLOC}
    # Two layers, two texts, two heads of 24, 42 keys, 16 bits.
    assert [born[e.storage] for e in keys] == [2 * 2 * 24 * 42 * 2] * 2
