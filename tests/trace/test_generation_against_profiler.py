"""Prefill and decoding steps are what the CPU's allocator did, operator by operator.

As in `test_against_profiler`: no tolerance after the exemptions of `exemptions.py`.
"""

from __future__ import annotations

import itertools

import pytest
from tests.trace.generating import Case, verdict

PASSES = ("prefill", "decode")
QUICK = [
    Case(family="llama"),
    Case(family="llama", compute="half", padded=True),
    Case(family="gemma3_text", padded=True),
    Case(family="t5", compute="half"),
]
FAMILIES = (
    "llama qwen2 qwen3 gemma2 gemma3_text gpt2 gpt_neox bloom falcon mamba t5 bart m2m_100".split()
)
ALL = [
    Case(family=family, compute=compute, padded=padded)
    for family, compute, padded in itertools.product(FAMILIES, ("fp32", "half"), (False, True))
]
SLOW = [
    *(case for case in ALL if case not in QUICK and (case.compute == "fp32" or not case.padded)),
    Case(family="llama", attention="eager"),
    Case(family="llama", compute="amp"),
    Case(family="mixtral", compute="half"),
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
