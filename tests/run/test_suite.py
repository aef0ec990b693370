from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.run import suite as suites
from rigsize.run import worker
from rigsize.run.children import fork_child
from rigsize.run.record import from_json
from rigsize.run.suite import read_lines, run_suite
from rigsize.trace.fake_accelerator import is_registered

CONFIG = {
    "model_type": "xlm-roberta",
    "vocab_size": 503,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
FRESH = "RIGSIZE_TEST_FRESH"
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _a_process_that_can_fork(request: pytest.FixtureRequest) -> None:
    """Other tests of this session may have traced; a fork then leaves autograd's thread behind."""
    if is_registered() and request.node.name != "test_all_of_this_in_a_fresh_process":
        pytest.skip("run by test_all_of_this_in_a_fresh_process")


def test_all_of_this_in_a_fresh_process() -> None:
    if FRESH in os.environ or not is_registered():
        return  # this is the fresh process, or the session itself can fork
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", __file__],
        env={**os.environ, FRESH: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three jobs; the last one is longer than the model's positions."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    file = tmp_path / "suite.toml"
    file.write_text(
        f"""
        [defaults]
        model = "{tmp_path / "config.json"}"
        task = "masked-lm"
        max_length = 16
        [[spec]]
        id = "training"
        [[spec]]
        id = "inference"
        use = "inference"
        [[spec]]
        id = "too long"
        max_length = 500
        """
    )
    return file


def run(suite: Path, **options: Any) -> suites.SuiteReport:
    options = {"max_minutes": 5.0, "predict": False, "fork": True, "case_timeout_s": 60} | options
    return run_suite(suite, out=suite.parent / "out.jsonl", device="cpu", **options)


@forks
def test_each_job_is_a_line_in_order(suite: Path) -> None:
    seen: list[str] = []
    report = run(suite, progress=lambda line: seen.append(line["id"]), command="the command")
    assert seen == ["training", "inference", "too long"]
    assert report.outcomes == {"ok": 2, "refused": 1}
    assert report.left == report.already == ()
    lines = list(read_lines(report.out))
    assert [line["id"] for line in lines] == seen
    records = [from_json(line["record"]) for line in lines[:2]]
    assert [record.workload["use"] for record in records] == ["fine-tuning", "inference"]
    assert records[0].command == "the command"
    assert "has positions for" in lines[2]["record_unknown_reason"]
    assert lines[0]["prediction"] is None
    assert lines[0]["prediction_unknown_reason"] == "not asked for"


@forks
def test_it_resumes_where_it_was_killed(suite: Path) -> None:
    report = run(suite)
    whole = report.out.read_text().splitlines(keepends=True)
    # Killed in the middle of the second line.
    report.out.write_text(whole[0] + whole[1][:50])
    again = run(suite)
    assert again.already == ("training",)
    assert [line["id"] for line in again.lines] == ["inference", "too long"]
    assert report.out.read_text().startswith(whole[0])
    assert [line["id"] for line in read_lines(report.out)] == ["training", "inference", "too long"]
    assert run(suite).lines == ()


@forks
def test_a_crash_is_a_recorded_result(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker._measure

    def crash(job: Mapping[str, Any]) -> dict[str, Any]:
        if job["spec"]["id"] == "training":
            os.write(2, b"the last words\n")
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when the host is full
        return real(job)

    monkeypatch.setattr(worker, "_measure", crash)
    report = run(suite)
    assert report.outcomes == {"failed": 1, "ok": 1, "refused": 1}
    record = from_json(report.lines[0]["record"])
    assert record.message == "crashed (SIGKILL): the last words"
    assert record.workload["task"] == "masked-lm"


@forks
def test_an_exception_of_ours_is_a_recorded_result(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Mapping[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(worker, "_measure", fail)
    record = from_json(run(suite).lines[0]["record"])
    assert record.message == "crashed (exit status 1): ZeroDivisionError: a defect"


@forks
def test_a_job_that_takes_too_long_is_ended(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_measure", lambda job: time.sleep(600))
    report = run(suite, case_timeout_s=0.2)
    assert report.outcomes == {"failed": 2, "refused": 1}
    assert from_json(report.lines[0]["record"]).message == "timed out after 0 s"


@forks
def test_what_the_time_does_not_suffice_for_is_named(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(suite, max_minutes=0.001)
    assert report.lines == ()
    assert report.left == ("training", "inference", "too long")
    assert not report.out.exists()


@forks
def test_predictions_come_back_with_the_records(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(job: Mapping[str, Any]) -> dict[str, Any]:
        if job["spec"]["id"] == "inference":
            os._exit(3)
        return {"prediction": {"allocated_peak_bytes": 7}, "prediction_unknown_reason": None}

    monkeypatch.setattr(worker, "_predict", predicted)
    first, second, _ = run(suite, predict=True).lines
    assert first["prediction"] == {"allocated_peak_bytes": 7}
    assert second["prediction"] is None
    assert second["prediction_unknown_reason"] == "the estimate crashed (exit status 3)"
    assert from_json(second["record"]).outcome == "ok"


@pytest.mark.slow
def test_a_new_interpreter_for_each_job(suite: Path) -> None:
    report = run(suite, fork=False)
    assert report.outcomes == {"ok": 2, "refused": 1}
    peaks = [from_json(line["record"]).memory.allocated_peak_bytes for line in report.lines[:2]]
    report.out.unlink()
    forked = [from_json(line["record"]) for line in run(suite, fork=True).lines[:2]]
    assert [record.memory.allocated_peak_bytes for record in forked] == peaks


@forks
def test_a_child_ends_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_another(role: str, job: Mapping[str, Any], result: Path) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        (tmp_path / "pid").write_text(str(pid))
        time.sleep(600)

    monkeypatch.setattr(worker, "work", start_another)
    child = fork_child("measure", {}, tmp_path)
    ends = time.monotonic() + 10
    while not (tmp_path / "pid").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    assert child.answer(time.monotonic() + 0.1) is None
    assert "timed out" in child.how_it_ended(0.1)
    pid = int((tmp_path / "pid").read_text() or 0)
    assert _gone(pid)


def _gone(pid: int) -> bool:
    """Killed: no such process, or a dead one that nobody has waited for."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(suite: Path, minutes: float) -> None:
    with pytest.raises(SpecError, match="max-minutes"):
        run(suite, max_minutes=minutes)


def test_a_folder_as_output_is_refused(suite: Path) -> None:
    with pytest.raises(SpecError, match="a folder"):
        run_suite(suite, 1.0, suite.parent, "cpu")


def test_a_file_with_an_error_runs_nothing(suite: Path) -> None:
    suite.write_text(suite.read_text() + '[[spec]]\nid = "x"\nprecision = "fp7"\n')
    with pytest.raises(SpecError, match="x: precision"):
        run(suite)
    assert not (suite.parent / "out.jsonl").exists()
