"""The loop as a whole: learning, resuming, stopping, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import make_data, make_job, run_ranks, start_ranks

from rigsize.errors import SizingError, SpecError
from rigsize.train.checkpoint import PHASES
from rigsize.train.log import read_log
from rigsize.train.loop import train

DROPOUT = {"config": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    make_data(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_learns_logs_evaluates_and_exports(folder: Path) -> None:
    job = make_job(folder, "learn/run", max_steps=60, learning_rate=5e-3, export=True, log_every=20)
    outcome, record = train(job)
    assert outcome.losses[-1] < 0.7 * outcome.losses[0]
    assert outcome.state.metrics["accuracy"] > 0.6
    assert record is not None
    assert record.kind == "train"
    assert record.memory.allocated_peak_bytes
    assert record.sizes["S"] == 32
    entries = read_log(folder / "learn/run/log.jsonl")
    assert [e["step"] for e in entries if e["event"] == "step"] == [1, 20, 40, 60]
    import transformers

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "learn/run/model"
    )
    assert loaded.config.id2label[0] in ("negative", "neutral", "positive")


@pytest.mark.parametrize("precision", ["fp32", "amp-bf16", "bf16"])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(folder: Path, precision: str) -> None:
    common: dict[str, Any] = {**DROPOUT, "precision": precision, "padding": "unpadded"}
    whole, _ = train(make_job(folder, f"whole-{precision}/run", max_steps=6, **common))
    name = f"broken-{precision}/run"
    more: dict[str, Any] = {"checkpoint": True, "save_every": 2, "max_steps": 6}
    job = make_job(folder, name, **common, **more)
    with pytest.raises(_Stopped):
        _train_and_break(job, at_step=5)
    outcome, _ = train(make_job(folder, name, resume="must", **common, **more))
    assert outcome.resumed_step == 4
    assert outcome.losses == whole.losses[4:]


class _Stopped(Exception):
    """The run is broken off here."""


def _train_and_break(job: Any, at_step: int) -> None:
    from rigsize.train import loop

    def broken(self: Any, step: Any, labelled: float) -> None:
        if self.state.step == at_step:
            raise _Stopped
        original(self, step, labelled)

    original = loop._Trainer._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Trainer, "_step", broken)
        train(job)


def test_a_signal_saves_and_says_so(folder: Path) -> None:
    from rigsize.train import loop

    def interrupting(self: Any, step: Any, labelled: float) -> None:
        original(self, step, labelled)
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    original = loop._Trainer._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Trainer, "_step", interrupting)
        outcome, _ = train(make_job(folder, "signal/run", checkpoint=True))
    assert (outcome.ended, outcome.exit_code, outcome.state.step) == ("interrupted", 130, 2)
    again, _ = train(make_job(folder, "signal/run", checkpoint=True, resume="must"))
    assert again.resumed_step == 2
    assert again.state.step == 5


def test_it_stops_early_where_nothing_improves(folder: Path) -> None:
    job = make_job(folder, "early/run", max_steps=40, learning_rate=0.0, eval_every=2, patience=2)
    outcome, _ = train(job)
    assert (outcome.ended, outcome.state.step) == ("stopped early", 6)


def test_embedding_pairs_and_tagged_tokens_are_trained_too(tmp_path: Path) -> None:
    make_data(tmp_path, rows=24)
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    pairs = [{"anchor": row["text"], "positive": row["text"] + " x"} for row in rows]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    for padding in ("dynamic", "unpadded"):
        job = make_job(
            tmp_path, f"pairs-{padding}/run", task="embedding", padding=padding, micro_batch=4
        )
        outcome, _ = train(job)
        assert outcome.losses[0] > 0
        assert outcome.watch.largest is not None
        assert outcome.watch.largest.B == 8
    tagged = [
        {
            "tokens": row["text"].split(),
            "tags": ["A" if "a" in w else "B" for w in row["text"].split()],
        }
        for row in rows
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tagged))
    job = make_job(tmp_path, "tags/run", task="token-classification", padding="unpadded")
    outcome, _ = train(job)
    assert {"accuracy", "macro_f1"} <= outcome.state.metrics.keys()


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "adalora", "qlora", "int8-lora"])
def test_adapters_train_a_fraction(folder: Path, method: str) -> None:
    given: dict[str, Any] = {"method": method, "lora_rank": 2}
    if method == "ia3":
        given = {"method": "ia3", "lora_targets": "key,value"}
    elif method == "adalora":  # ranks are given up until the last step, dropout before them
        given |= {"lora_rank": 6, "lora_targets": "query,value", "lora_dropout": 0.1}
    outcome, record = train(make_job(folder, f"{method}/run", **given))
    assert outcome.state.step == 5
    full, _ = train(make_job(folder, f"{method}-full/run"))
    assert outcome.watch.peak_bytes is not None
    assert full.watch.peak_bytes is not None
    assert outcome.watch.peak_bytes < full.watch.peak_bytes
    assert record is not None
    assert record.strategy["method"] == method


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"use": "inference"}, "nothing is trained"),
        ({"max_length": 400}, "has positions for"),
        ({"init": "pretrained"}, "config.json without weights"),
        (
            {
                "micro_batch": 1,
                "global_batch": 8,
                "tokens_per_batch": 3,
                "padding": "unpadded",
            },
            "longest text",
        ),
        ({"resume": "must"}, "no checkpoint"),
    ],
)
def test_what_cannot_be_run_is_refused_before(
    folder: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SizingError, match=words):
        train(make_job(folder, "refused/run", **given))


def test_a_folder_that_holds_a_run_is_not_written_over(folder: Path) -> None:
    train(make_job(folder, "twice/run", max_steps=1))
    with pytest.raises(SpecError, match="holds a run already"):
        train(make_job(folder, "twice/run", max_steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forward", "optimizer", *PHASES])
def test_a_kill_in_any_phase_of_either_rank_loses_nothing(folder: Path, phase: str) -> None:
    common: dict[str, Any] = {**DROPOUT, "parallel": "fsdp", "micro_batch": 4, "max_steps": 5}
    whole = folder / "kill/whole"
    if not (whole / "answer.json").exists():
        run_ranks(2, folder, "kill/whole", **common)
    expected = json.loads((whole / "answer.json").read_text())
    rank = PHASES.index(phase) % 2 if phase in PHASES else 0
    name = f"kill/{phase}"
    more: dict[str, Any] = {"checkpoint": True, "save_every": 2}
    kill = {"RIGSIZE_KILL_AT": f"{phase}:4:{rank}"}
    exits = start_ranks(2, folder, name, environment=kill, **common, **more)
    assert exits[rank] == -signal.SIGKILL
    found = run_ranks(2, folder, name, resume="auto", **common, **more)
    assert found["resumed_step"] in (2, 4)
    assert found["losses"] == pytest.approx(expected["losses"][found["resumed_step"] :], abs=1e-6)
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
