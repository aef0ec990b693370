from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from tests.report.conftest import Estimated

from rigsize.edit_times import EditTime
from rigsize.report.answer import Answer, command_of
from rigsize.report.console import PLAIN_WIDTH, write
from rigsize.report.document import edit_document
from rigsize.report.explain import explain, explain_text
from rigsize.report.text import estimate_text, headline
from rigsize.search import Edit


def printed(parts: Iterable[Any], capsys: pytest.CaptureFixture[str]) -> str:
    write(parts)
    return capsys.readouterr().out


def test_the_verdict_comes_first(estimated: Estimated) -> None:
    lines = headline(Answer(estimate=estimated())).split("\n")
    assert lines[0].startswith("fits: FacebookAI/xlm-roberta-base, sequence-classification")
    assert lines[1].startswith("  device peak ")
    assert " free" in lines[1]
    assert lines[-1].startswith("  peak at the ")


def test_plain_where_stdout_is_no_terminal(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate = estimated()
    parts = [*estimate_text(Answer(estimate=estimate)), *explain_text(explain(estimate))]
    text = printed(parts, capsys)
    assert "\x1b" not in text
    assert max(map(len, text.split("\n"))) <= PLAIN_WIDTH
    assert not any(line.endswith(" ") for line in text.split("\n"))


def test_everything_a_reader_needs(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(estimate_text(Answer(estimate=estimated(), assumed=("precision fp32",))), capsys)
    assert "fp32: 4 weight + 4 gradient + 8 adamw-foreach states = 16 bytes a parameter" in text
    assert "parameters: 72,384 (72.4 k), of them head 192, trainable 72,384" in text
    assert "checkpoint: 278,885,778" in text
    assert "assumed: precision fp32" in text
    assert "optimizer_states" in text
    assert "100.0 %" in text


def test_several_ranks_are_told_of_one_each(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate = estimated(per_node=8, parallel="hsdp", shard_size=4, accumulation=2)
    text = " ".join(printed(estimate_text(Answer(estimate=estimate)), capsys).split())
    assert "on each of 8 A100-40GB-SXM (hsdp: 2 copies of 4 shards)" in text
    assert "2 a step on each of 8 ranks: global batch 256" in text
    assert "= 16 bytes a parameter, over 4 shards" in text
    assert "+ context 0.50 GiB + NCCL 1.40 GiB" in text  # two communicators of 0.7 GiB
    assert "--parallel hsdp --shard-size 4" in command_of("estimate", estimate)


def test_inference_has_no_step(estimated: Estimated, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(estimate_text(Answer(estimate=estimated(use="inference"))), capsys)
    assert "global batch" not in text
    assert "fp32: 4 weight bytes a parameter" in text


def misfit(estimated: Estimated, edits: tuple[Edit, ...] = (), capacity_bytes: int = 1) -> Answer:
    estimate = estimated()
    fit = dataclasses.replace(
        estimate.fit,
        verdict="does_not_fit",
        capacity_bytes=capacity_bytes,
        headroom_bytes=-(3 << 30),
    )
    return Answer(estimate=dataclasses.replace(estimate, fit=fit), edits=edits)


def an_edit(answer: Answer, verdict: str) -> Edit:
    return Edit(
        name="fused AdamW",
        flags="--optim adamw-fused",
        workload=answer.estimate.workload,
        strategy=answer.estimate.strategy,
        saved_bytes=4 << 30,
        device_peak_bytes=7 << 30,
        host_peak_bytes=9 << 30,
        verdict=verdict,
    )


def test_over_by_how_much_and_what_would_fit(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = an_edit(misfit(estimated), "fits")
    text = printed(estimate_text(misfit(estimated, (edit,))), capsys)
    assert text.startswith("does not fit: ")
    assert "over by 3.00 GiB" in text
    assert "It would fit with" in text
    assert "--optim adamw-fused" in text
    assert "4.00 GiB" in text
    assert "9.00 GiB" not in text  # nothing goes to the host
    moved = dataclasses.replace(edit, flags="--offload optimizer")
    assert "9.00 GiB" in printed(estimate_text(misfit(estimated, (moved,))), capsys)


def test_an_edit_says_what_it_costs_in_time(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = an_edit(misfit(estimated), "fits")
    time = EditTime(before_s=2.0, after_s=2.6, times_as_long=1.3, reason="")
    costly = dataclasses.replace(edit, time=time)
    text = " ".join(printed(estimate_text(misfit(estimated, (costly,))), capsys).split())
    assert "1.30 x" in text
    assert "a step now takes 2.0 s" in text
    assert edit_document(costly)["time"] == {
        "step_before_s": 2.0,
        "step_after_s": 2.6,
        "times_as_long": 1.3,
    }
    unknown = EditTime(before_s=2.0, after_s=None, times_as_long=None, reason="not stored")
    silent = dataclasses.replace(edit, time=unknown)
    text = printed(estimate_text(misfit(estimated, (silent,))), capsys)
    assert "step unknown: not stored" in text
    assert edit_document(silent)["time"]["step_after_s_unknown_reason"] == "not stored"


def test_edits_that_are_not_enough_say_so(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = an_edit(misfit(estimated), "does_not_fit")
    text = printed(estimate_text(misfit(estimated, (edit,), capacity_bytes=1 << 40)), capsys)
    assert "Nothing tried makes it fit; these save most" in text


def test_no_setting_can_be_enough(
    estimated: Estimated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = misfit(estimated)
    text = " ".join(printed(estimate_text(answer), capsys).split())
    assert "Nothing kept on one such card makes it fit" in text
    assert "more than 50 times the card, so no change was tried" in text  # of one byte
    need = answer.estimate.memory.device_peak_bytes or 0
    monkeypatch.setattr("rigsize.search.HOPELESS", 10**12)
    assert "no offload is enough" in " ".join(printed(estimate_text(answer), capsys).split())
    batch = " ".join(printed(estimate_text(misfit(estimated, (), need - 1)), capsys).split())
    assert "No change of batch, optimizer, recompute, precision, offload saves memory" in batch


def test_small_rows_are_added_up(estimated: Estimated, capsys: pytest.CaptureFixture[str]) -> None:
    assert "smaller" in printed(estimate_text(Answer(estimate=estimated())), capsys)


def test_the_command_names_every_setting(estimated: Estimated) -> None:
    command = command_of("estimate", estimated(accumulation=4), headroom_bytes=5)
    assert command == (
        "rigsize estimate xlm-roberta-base --task sequence-classification --use fine-tuning"
        " --max-length 128 --num-labels 3 --precision fp32 --attention sdpa --batch-size 16"
        " --grad-accum 4 --optim adamw-foreach --recompute none --max-grad-norm 1"
        " --gpus A100-40GB-SXM --headroom 5B"
    )
