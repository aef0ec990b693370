"""`rigsize compare` as it is typed: exit codes, the document, a Record beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rigsize.cli import run
from rigsize.peers import ask
from rigsize.peers.answer import PeerAnswer
from tests.report import hand_made

RECORDS = Path(__file__).parents[1] / "validation" / "records"
BASE = ("compare", "xlm-roberta-base", "--offline", "--max-length", "64")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a trace nor another package."""
    says = PeerAnswer(name="peer", version="9", total_bytes=10**9, terms={"weights": 10**9})
    silent = PeerAnswer(name="absent", total_bytes=None, unknown_reason="pip install absent")
    monkeypatch.setattr(ask, "PEERS", (lambda _: says, lambda _: silent))
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_column_an_estimator(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BASE) == 0
    out = capsys.readouterr().out
    assert "peer 9" in out
    assert "absent: no figure: pip install absent" in out
    assert "leaves out" in out


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = document(capsys, *BASE)
    ours, peer, absent = told["answers"]
    assert code == 0
    assert ours["total_bytes"] == sum(term["bytes"] for term in ours["terms"])
    assert ours["share_of_ours"] == 1.0
    assert peer["terms"] == [{"name": "weights", "bytes": 10**9}]
    assert "optimizer_states" in peer["left_out"]
    assert absent["total_bytes"] is None
    assert absent["total_bytes_unknown_reason"] == "pip install absent"
    assert told["command"].startswith("rigsize compare xlm-roberta-base")


def test_a_run_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = document(capsys, *BASE, "--gpus", "T4", "--batch-size", "900000")
    assert (code, told["fit"]["verdict"]) == (3, "does_not_fit")


def test_a_record_says_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(RECORDS / "08539840e905c30f.json")
    code, told = document(capsys, "compare", "--record", file, "--batch-size", "4")
    assert (code, told["error"]["field"]) == (2, "batch-size")
    code, told = document(capsys, "compare", "bert-base-uncased", "--record", file)
    assert (code, told["error"]["field"]) == (2, "model")


def test_no_such_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "rigsize" / "records").mkdir(parents=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    code, told = document(capsys, "compare", "--record", "/no/such.json")
    assert (code, told["error"]["field"]) == (2, "record")


def test_an_automatic_batch_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = document(capsys, *BASE, "--batch-size", "auto")
    assert (code, told["error"]["field"]) == (2, "batch-size")


@pytest.mark.slow
def test_a_record_beside_the_prediction_of_its_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ask, "PEERS", ())
    file = RECORDS / "08539840e905c30f.json"
    code, told = document(capsys, "compare", "--record", str(file))
    ours, measured = told["answers"]
    memory = json.loads(file.read_text())
    memory = memory.get("memory") or memory["record"]["memory"]
    assert measured["total_bytes"] == memory["allocated_peak_bytes"]
    assert ours["total_bytes"] == pytest.approx(measured["total_bytes"], rel=0.001)
    assert (code, told["record"]["inside_band"]) == (0, True)
