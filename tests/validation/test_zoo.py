"""The zoo's own parts: children that die, small variants, the verdicts that are counted."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from rigsize.trace.model import BuildOptions, build, load_config

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the zoo forks")

from validation.zoo.cases import Case, cases  # noqa: E402
from validation.zoo.children import start  # noqa: E402
from validation.zoo.page import judge, page, summary  # noqa: E402
from validation.zoo.shrink import small_configs  # noqa: E402

BERT = Case("bert", "masked-lm", "BertForMaskedLM")
PLENTY = 64 * 2**30


def answer(work: Any, limit_s: float = 20.0) -> dict[str, Any]:
    child = start(work, limit_s=limit_s, address_bytes=PLENTY)
    while (told := child.finished()) is None:
        time.sleep(0.01)
    return told


def test_a_child_answers() -> None:
    told = answer(lambda: {"ok": True, "layers": 3})
    assert (told["ok"], told["layers"]) == (True, 3)


def test_a_childs_error_and_its_death_are_answers() -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("why")

    def die() -> dict[str, Any]:
        os._exit(7)

    assert answer(fail)["error"] == "ValueError: why"
    assert "exit 7" in answer(die)["error"]


def test_a_child_that_takes_too_long() -> None:
    def sleep() -> dict[str, Any]:
        time.sleep(60)
        return {}

    assert answer(sleep, 0.2)["error"] == "took longer than its limit"


def test_the_mapping_tables_are_all_there() -> None:
    found = cases()
    assert BERT in found
    assert len(found) == len(set(found)) > 450
    assert {case.task for case in found} == {
        "masked-lm", "causal-lm", "seq2seq-lm", "sequence-classification", "token-classification"
    }  # fmt: skip


def test_the_smallest_variant_is_narrow_and_keeps_the_width_of_a_head() -> None:
    name, values = next(small_configs("bert"))
    config = load_config(values, BuildOptions(task="masked-lm", compute="fp32"))
    assert name == "1/8 of the widths"
    # 768 / 8 = 96 in 12 // 8 = 1 head; 12 layers shortened as the trace shortens them
    assert (config.hidden_size, config.num_attention_heads, config.vocab_size) == (96, 1, 2048)
    assert config.num_hidden_layers == 4
    options = BuildOptions(task="masked-lm", compute="fp32")
    assert sum(p.numel() for p in build(config, options).parameters()) < 2_000_000


def test_experts_become_few() -> None:
    _, values = next(small_configs("mixtral"))
    assert (values["num_local_experts"], values["num_experts_per_tok"]) == (8, 2)


@pytest.mark.parametrize(
    ("ran", "runs", "counts"),
    [
        ({"ok": True}, "yes", True),
        ({"ok": False, "error": "MemoryError: too many"}, "undecided", True),
        ({"ok": False, "error": "took longer than its limit"}, "undecided", True),
        ({"ok": False, "error": "KeyError: 'x'"}, "no", False),
        ({}, "undecided", True),
    ],
)
def test_what_is_counted(ran: dict[str, Any], runs: str, counts: bool) -> None:
    verdict = judge(BERT, {}, {}, {BERT.key: ran})
    assert (verdict.runs, verdict.counts, verdict.traced) == (runs, counts, False)


def test_the_excluded_are_not_counted_and_the_page_says_why() -> None:
    sound = Case("voxtral", "seq2seq-lm", "VoxtralForConditionalGeneration")
    ok = {case.key: {"ok": True} for case in (BERT, sound)}
    verdicts = [judge(case, ok, ok, ok) for case in (BERT, sound)]
    assert "traced 1 of 1 classes" in summary(verdicts)
    assert "100.0 %" in summary(verdicts)
    text = page(verdicts, {"torch": "2.13"})
    assert "turns sound into text" in text
    assert "| bert | masked-lm | BertForMaskedLM | yes | a domain |" in text
