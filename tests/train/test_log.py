"""The log across a kill and a resume."""

from __future__ import annotations

from pathlib import Path

from rigsize.train.log import Log, read_log
from rigsize.train.progress import StepReport


def report(step: int) -> StepReport:
    return StepReport(
        step=step,
        steps=9,
        epoch=0.5,
        loss=1.25,
        learning_rate=0.1,
        step_s=0.5,
        real_tokens_per_s=100.0,
        examples_per_s=4.0,
        padding_share=0.25,
        memory_bytes=3 * 2**30,
        left_s=3725.0,
    )


def test_a_resumed_log_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = Log(file, resumed_step=0, tensorboard=False)
    for step in (1, 2, 3):
        log.step(report(step))
    log.evaluation(3, {"loss": 1.0})
    log.close()
    with file.open("a") as cut:
        cut.write('{"event": "step", "st')  # a kill in the middle of a line
    log = Log(file, resumed_step=2, tensorboard=False)
    log.step(report(3))
    log.close()
    assert [entry["step"] for entry in read_log(file)] == [1, 2, 3]


def test_a_line_says_loss_pace_memory_and_time_left() -> None:
    text = report(3).text()
    assert text == "step 3/9: loss 1.2500, 100 tokens/s, 3.00 GiB, 1:02:05 left"
