"""For device `cpu` the trace is what the CPU's allocator really did in the same step.

Each case runs one real step under torch.profiler and compares births per operator, the order of
births, the deaths between them, and peak and end. No tolerance: after the exemptions of
`exemptions.py` the two sequences are the same.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tests.tiers import thinned
from tests.trace.exemptions import EXEMPTIONS, RANDOM_STATE_BYTES, Event, exemption_of
from tests.trace.referee import Verdict, compare, profile_once, profiled, traced
from tests.trace.tiny import CONFIGS, Case

from rigsize.trace.recorder import ALLOC, FREE, RawTrace

ENCODERS = (
    "xlm-roberta xlm-roberta-xl bert distilbert albert deberta-v2 modernbert electra mpnet".split()
)
DECODERS = "gpt2 gpt_neox llama qwen2 qwen3 gemma2 gemma3_text bloom falcon mamba mixtral".split()
SEQ2SEQ = "t5 mt5 bart m2m_100".split()
TASKS = {
    **dict.fromkeys(ENCODERS, "masked-lm"),
    **dict.fromkeys(DECODERS, "causal-lm"),
    **dict.fromkeys(SEQ2SEQ, "seq2seq-lm"),
}
CANNOT_RECOMPUTE = ("albert", "mpnet")
"""transformers 5.23 has no activation checkpointing for these."""
OTHER_TASKS = {
    "sequence-classification": [*ENCODERS, "gpt2", "llama", "gpt_neox"],
    "token-classification": [*ENCODERS, "gpt2"],
    "embedding": [*ENCODERS, "llama", "qwen3"],
}

QUICK = [
    Case(family="xlm-roberta", task="masked-lm"),
    Case(family="xlm-roberta", task="masked-lm", compute="amp", recompute="block"),
    Case(family="xlm-roberta", task="masked-lm", compute="amp", recompute="selective"),
    Case(family="llama", task="causal-lm", recompute="selective"),
    Case(family="llama", task="causal-lm", compute="half", recompute="every-2"),
    Case(family="xlm-roberta", task="sequence-classification", hold_output=False),
    Case(family="bert", task="token-classification", compute="amp", attention="eager"),
    Case(family="bert", task="embedding", padded=False),
    Case(family="albert", task="masked-lm"),
    Case(family="deberta-v2", task="sequence-classification", compute="half"),
    Case(family="modernbert", task="masked-lm", training=False),
    Case(family="gpt2", task="causal-lm", compute="amp"),
    Case(family="llama", task="causal-lm", compute="half"),
    Case(family="llama", task="causal-lm", padded=False),
    Case(family="qwen2", task="causal-lm", training=False, padded=False),
    Case(family="falcon", task="causal-lm"),
    Case(family="mixtral", task="causal-lm", compute="half"),
    Case(family="t5", task="seq2seq-lm"),
    Case(family="bart", task="seq2seq-lm", padded=False),
    # Values that are only looked at (`trace.values`): the end of each text, the longest of them.
    Case(family="bart", task="sequence-classification", compute="amp"),
    Case(family="t5", task="sequence-classification"),
    Case(family="xlm", task="masked-lm"),
    Case(family="xlm-roberta", task="masked-lm", compute="amp", loss="masked", unpadded=True),
    Case(family="xlm-roberta", task="masked-lm", loss="chunked"),
    Case(family="bert", task="sequence-classification", unpadded=True),
    Case(family="llama", task="causal-lm", compute="amp", loss="chunked", unpadded=True),
]
LEAN = ("xlm-roberta", "xlm-roberta-xl", "bert", "llama", "qwen3")
"""Families that are refereed with selected rows and with unpadded texts."""


def families() -> list[Case]:
    """Every family in every precision trained, run and recomputed; the rest at least once."""
    cases = []
    for family, compute in itertools.product(TASKS, ("fp32", "amp", "half")):
        if family == "mixtral" and compute != "half":
            continue  # torch's fake grouped product takes bf16 only
        plain = Case(family=family, task=TASKS[family], compute=compute)
        cases += [plain, replace(plain, training=False)]
        if family not in CANNOT_RECOMPUTE:
            cases.append(replace(plain, recompute="block"))
            if compute == "fp32":
                cases.append(replace(plain, recompute="selective"))
        if compute == "fp32" or family == "mixtral":
            cases.append(replace(plain, padded=False))
        if compute == "half":
            cases.append(replace(plain, padded=False, training=False))
        if compute == "amp" and family != "mamba":  # which has no attention
            cases.append(replace(plain, attention="eager"))
    return cases


def lean() -> list[Case]:
    """Selected rows, pieces of them, unpadded texts, in every task and both precisions."""
    cases = []
    for family, compute in itertools.product(LEAN, ("fp32", "amp")):
        lm = Case(family=family, task=TASKS[family], compute=compute)
        row = replace(lm, unpadded=True)
        cases += [replace(lm, loss="masked"), replace(lm, loss="chunked")]
        cases += [row, replace(row, loss="masked"), replace(row, loss="chunked")]
        cases += [replace(row, training=False), replace(row, loss="masked", recompute="block")]
        for task in ("sequence-classification", "token-classification", "embedding"):
            if family in OTHER_TASKS[task]:
                cases += [replace(row, task=task), replace(row, task=task, training=False)]
    return cases


def other_tasks() -> list[Case]:
    return [
        Case(family=family, task=task, compute=compute, training=training)
        for task, members in OTHER_TASKS.items()
        for family in members
        for compute, training in (("fp32", True), ("amp", True), ("half", False))
    ]


def verdict(case: Case) -> Verdict:
    return compare(traced(case), profiled(case))


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_trace_is_what_the_allocator_did(case: Case) -> None:
    found = verdict(case)
    assert not str(found), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned([c for c in families() if c not in QUICK]), ids=str)
def test_every_family_precision_and_attention(case: Case) -> None:
    found = verdict(case)
    assert not str(found), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned([c for c in other_tasks() if c not in QUICK]), ids=str)
def test_every_other_task(case: Case) -> None:
    found = verdict(case)
    assert not str(found), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned([c for c in lean() if c not in QUICK]), ids=str)
def test_selected_rows_and_unpadded_texts(case: Case) -> None:
    found = verdict(case)
    assert not str(found), str(found)


def test_the_families_are_all_there() -> None:
    assert {*TASKS, "xlm"} == set(CONFIGS)


# The referee must be able to say no.


@pytest.fixture(scope="module")
def pair() -> tuple[RawTrace, object]:
    case = Case(family="gpt2", task="causal-lm")
    return traced(case), profiled(case)


def tampered(trace: RawTrace) -> RawTrace:
    return RawTrace(events=copy.deepcopy(trace.events))


def test_it_sees_a_birth_that_is_missing(pair: tuple[RawTrace, object]) -> None:
    trace = tampered(pair[0])
    index = next(i for i, e in enumerate(trace.events) if e.kind == ALLOC and e.num_bytes > 8)
    gone = trace.events.pop(index)
    found = compare(trace, pair[1])
    assert found.operators
    assert gone.op.partition(".")[0] in found.operators[0]


def test_it_sees_a_byte_too_many(pair: tuple[RawTrace, object]) -> None:
    trace = tampered(pair[0])
    next(e for e in trace.events if e.kind == ALLOC and e.num_bytes > 8).num_bytes += 1
    assert compare(trace, pair[1]).operators


def test_it_sees_two_births_in_the_wrong_order(pair: tuple[RawTrace, object]) -> None:
    trace = tampered(pair[0])
    events = trace.events
    index = next(
        i
        for i, (a, b) in enumerate(itertools.pairwise(events))
        if a.kind == b.kind == ALLOC and a.op != b.op and min(a.num_bytes, b.num_bytes) > 8
    )
    events[index], events[index + 1] = events[index + 1], events[index]
    found = compare(trace, pair[1])
    assert found.births
    assert not found.operators


def test_it_sees_a_death_that_comes_late(pair: tuple[RawTrace, object]) -> None:
    trace = tampered(pair[0])
    events = trace.events
    sizes = {e.storage: e.num_bytes for e in events if e.kind == ALLOC}
    index = next(i for i, e in enumerate(events) if e.kind == FREE and sizes.get(e.storage, 0) > 8)
    event = events.pop(index)
    later = next(
        i for i in range(index, len(events)) if events[i].kind == ALLOC and events[i].num_bytes > 8
    )
    events.insert(later + 1, event)
    found = compare(trace, pair[1])
    assert found.deaths
    assert not found.births


# An exemption must not be able to hide what lives on.


@pytest.mark.parametrize("rule", EXEMPTIONS, ids=lambda rule: rule.name)
def test_no_exemption_hides_a_tensor_that_outlives_its_operator(rule: object) -> None:
    paths = [(), ("aten::empty",), ("aten::to", "aten::_to_copy"), ("aten::clone",)]
    operators = ["aten::mm", "aten::add_", "aten::native_layer_norm", "aten::_safe_softmax", ""]
    for op, path, size in itertools.product(operators, paths, (768, 1536, 30720)):
        assert exemption_of(Event(op, size, path=path, scratch=False)) is None


def test_the_random_state_is_the_one_that_lives_on_and_has_one_size() -> None:
    assert [rule.name for rule in EXEMPTIONS if rule.outlives] == ["random state"]
    assert exemption_of(Event("", RANDOM_STATE_BYTES)) == "random state"
    assert exemption_of(Event("", RANDOM_STATE_BYTES + 64)) is None


def test_every_exemption_gives_a_reason_with_a_source() -> None:
    for rule in EXEMPTIONS:
        assert "`" in rule.reason, rule.name


def test_the_profiler_sees_births_and_deaths_of_a_known_function() -> None:
    def step() -> None:
        first = torch.ones(1000)
        second = first + first
        del first
        second.sum()

    from tests.trace.referee import live_bytes, profiler_events

    step()
    events = profiler_events(
        profile_once(step), frozenset({"aten::ones", "aten::add", "aten::sum"})
    )
    sizes = [(e.op, e.num_bytes, e.born is None) for e in events]
    assert sizes == [
        ("aten::ones", 4000, True),
        ("aten::add", 4000, True),
        ("aten::ones", 4000, False),
        ("aten::sum", 4, True),
        ("aten::sum", 4, False),
        ("aten::add", 4000, False),
    ]
    assert live_bytes(events) == (8000, 0)
