"""`rigsize train` as it is typed: its answers, bad input, several ranks, several nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rigsize.cli import run
from rigsize.errors import UnsupportedCombination
from rigsize.train.log import read_log
from tests.train.runs import CONFIG, NO_DROPOUT, make_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_data(folder)
    values = {"model_type": "xlm-roberta"} | CONFIG | NO_DROPOUT
    (folder / "model.json").write_text(json.dumps(values))
    return folder


def typed(folder: Path, out: str, *more: str, **changed: str) -> list[str]:
    flags = {
        "data": str(folder / "texts.jsonl"),
        "tokenizer": str(folder / "tokenizer"),
        "task": "sequence-classification",
        "init": "random",
        "max-length": "32",
        "max-steps": "4",
        "batch-size": "8",
        "learning-rate": "1e-3",
        "progress": "quiet",
        "device": "cpu",
        "out": str(folder / out),
    } | {key.replace("_", "-"): value for key, value in changed.items()}
    pairs = [word for key, value in flags.items() for word in (f"--{key}", value)]
    return ["train", str(folder / "model.json"), *pairs, *more]


def test_the_answer_has_prediction_and_measurement(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(typed(folder, "answer", "--json", "--eval-share", "0.2", "--no-checkpoint"))
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["inside_band"] is True
    (allocated,) = (r for r in document["rows"] if r["statistic"] == "allocated_peak_bytes")
    assert abs(allocated["error_percent"]) < 1
    assert document["ended"] == "finished"
    assert {"loss", "accuracy", "macro_f1"} == document["metrics"].keys()
    assert document["record"]["kind"] == "train"


def test_adapters_are_trained_and_predicted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(typed(folder, "lora", "--no-checkpoint", "--method", "lora")) == 0
    assert "inside the predicted band" in capsys.readouterr().out


def test_what_estimate_does_not_answer_is_said_and_no_failure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnsupportedCombination("method", "full", "not answered yet")

    monkeypatch.setattr("rigsize.estimate.estimate", refuse)
    assert run(typed(folder, "unanswered", "--no-checkpoint")) == 0
    assert "not predicted yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": "nowhere.jsonl"}, "no such file"),
        ({"task": "masked"}, "task"),
        ({"label_column": "sentiment"}, "text, label"),
        ({"batch_size": "auto"}, "only estimate looks for it"),
        ({"learning_rate": "fast"}, "not a number"),
        ({"learning_rate": "-1"}, "not in range"),
        ({"schedule": "linera"}, "did you mean linear"),
        ({"num_labels": "2"}, "row"),
        ({"offload": "cpu"}, "--parallel fsdp"),
        ({"loss": "masked"}, "only masked-lm and causal-lm"),
        ({"ranks": "2"}, "parallel single is one rank"),
        ({"recipe": "leaner"}, "did you mean lean"),
        ({"max_length": "4000"}, "has positions for"),
        ({"init": "pretrained"}, "config.json without weights"),
        ({"eval_data": "{folder}/wrong.jsonl"}, "wrong.jsonl: unknown in row 1"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], words: str
) -> None:
    (folder / "wrong.jsonl").write_text('{"text": "a", "label": "weird"}\n')
    changed = {key: value.format(folder=folder) for key, value in changed.items()}
    assert run(typed(folder, "bad", "--no-checkpoint", **changed)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said
    assert not (folder / "bad" / "checkpoints").exists()


def test_json_progress_is_json_to_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = typed(folder, "events", "--eval-share", "0.2", "--no-predict", progress="json")
    assert run(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"note", "step", "evaluation", "end"} == {event["event"] for event in events}
    assert (events[-1]["event"], events[-1]["ended"]) == ("end", "finished")

    assert run([*command, "--resume"]) == 0  # nothing is left to do, and no Record says otherwise
    assert len(list((folder / "events" / "records").iterdir())) == 1
    capsys.readouterr()
    assert run(["records", "ls", str(folder / "events"), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["records"]
    record = json.loads((folder / "events" / "records" / listed["file"]).read_text())
    assert record["metrics"].keys() == {"loss", "accuracy", "macro_f1"}
    assert record["steps"] == 4
    assert record["spec"]["workload"]["epochs"] == 1


def test_a_refused_start_leaves_no_folder(folder: Path) -> None:
    assert run(typed(folder, "refused", label_column="nope")) == 2
    assert not (folder / "refused").exists()


def test_no_data_is_said(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run(["train", str(folder / "model.json"), "--device", "cpu"]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_a_vocabulary_of_another_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = folder / "small.json"
    small.write_text(json.dumps({"model_type": "xlm-roberta"} | CONFIG | {"vocab_size": 40}))
    command = typed(folder, "vocabulary", "--no-checkpoint")
    command[1] = str(small)
    assert run(command) == 2
    assert "the model has 40 embeddings" in capsys.readouterr().err


def test_a_spec_file_says_it_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = folder / "job.toml"
    spec.write_text(
        f'model = "{folder}/model.json"\ndata = "{folder}/texts.jsonl"\n'
        f'tokenizer = "{folder}/tokenizer"\ntask = "masked-lm"\nrecipe = "lean"\ninit = "random"\n'
        f'max_length = 32\nmax_steps = 3\nbatch_size = 8\nout = "{folder}/spec"\n'
        'device = "cpu"\nprogress = "quiet"\ncheckpoint = false\n'
    )
    assert run(["train", "--spec", str(spec)]) == 0
    assert "inside the predicted band" in capsys.readouterr().out


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_and_nothing_is_lost(folder: Path) -> None:
    common = ("--parallel", "ddp", "--log-every", "1", "--save-every", "2", "--no-predict")
    whole = start(["-m", "rigsize", *typed(folder, "whole", *common, ranks="2", batch_size="4")])
    broken = typed(folder, "broken", *common, ranks="2", batch_size="4")
    died = start(["-m", "rigsize", *broken], RIGSIZE_KILL_AT="optimizer:3:1")
    for process in (whole, died):
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    losses = [_losses(folder / name) for name in ("whole", "broken")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_on_all_ranks(folder: Path, number: int) -> None:
    out = folder / f"signal-{number}"
    more = ("--parallel", "ddp", "--log-every", "1", "--no-predict", "--no-export")
    command = typed(folder, out.name, *more, ranks="2", batch_size="4", max_steps="100000")
    launcher = start(["-m", "rigsize", *command])
    ends = time.monotonic() + 90
    while len(read_log(out / "log.jsonl")) < 3 and time.monotonic() < ends:
        time.sleep(0.2)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + number, said
    assert "--resume" in said.strip().splitlines()[-1]
    saved = max(int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*"))
    assert saved == read_log(out / "log.jsonl")[-1]["step"]  # nobody went on


@pytest.mark.slow
def test_bad_input_of_several_ranks_is_told_once_and_not_tried_again(folder: Path) -> None:
    command = typed(folder, "column", "--parallel", "ddp", "--json", ranks="2", batch_size="4")
    launcher = start(["-m", "rigsize", *command, "--label-column", "nope"])
    answer, said = launcher.communicate(timeout=90)
    assert launcher.returncode == 2, said
    assert json.loads(answer)["error"]["kind"] == "spec_error"
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        command = typed(folder, "port", "--parallel", "ddp", "--no-checkpoint", batch_size="4")
        process = start(["-m", "rigsize", *command], **meeting, **ranks)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "a port in use?" in said.strip().splitlines()[-1]
    assert not (folder / "port").exists()


@pytest.mark.slow
def test_two_nodes_are_the_same_command_under_torchrun(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command = typed(folder, "nodes", "--parallel", "fsdp", "--no-checkpoint", batch_size="4")
    command += ["--log-every", "1", "--no-predict", "--no-export"]
    nodes = [start([*launcher, "-m", "rigsize", *command]) for _ in range(2)]
    try:
        for node in nodes:
            _, said = node.communicate(timeout=300)
            assert node.returncode == 0, said
    finally:  # one that waits for the other would outlive the test
        for node in nodes:
            node.kill()
            node.wait()
    one = typed(folder, "node", "--no-checkpoint", "--log-every", "1", "--no-predict")
    assert run([*one, "--no-export"]) == 0
    assert _losses(folder / "nodes") == pytest.approx(_losses(folder / "node"), abs=1e-5)


def _losses(out: Path) -> list[float]:
    entries: list[dict[str, Any]] = read_log(out / "log.jsonl")
    return [entry["loss"] for entry in entries if entry["event"] == "step"]
