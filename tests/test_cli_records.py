"""`rigsize records`: list, show, export; a broken file is told and hides no other."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rigsize.cli import run
from rigsize.run.record import Texts, Throughput, WorldRun, to_json, write_record
from rigsize.run.record_store import read_folder
from tests.run.test_record import a_record

Ran = Callable[..., tuple[int, str, str]]
OLD, NEW = a_record(), a_record(created="2026-11-24T12:00:00Z", seed=1)


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["records", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two Records, a suite's lines with a refused job, and a file that is none."""
    place = tmp_path / "records"
    write_record(place, OLD)
    write_record(place, NEW)
    third = to_json(replace(OLD, seed=2, created="2026-11-22T12:00:00Z"))
    lines = [{"id": "a", "record": third}, {"id": "b", "record": None}]
    (place / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "broken.json").write_text("{")
    return place


def test_the_newest_come_first_and_broken_files_are_listed(folder: Path, ran: Ran) -> None:
    code, out, err = ran("ls", str(folder), "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    ids = [record["record_id"] for record in document["records"]]
    assert ids[:2] == [NEW.record_id, OLD.record_id]
    assert len(ids) == 3
    assert document["records"][2]["file"] == "suite.jsonl:1"
    (broken,) = document["broken"]
    assert broken["file"] == "broken.json"
    assert "not JSON" in broken["reason"]
    text = ran("ls", str(folder))[1]
    assert NEW.record_id[:8] in text
    assert "3 Records in" in text
    assert "left out: broken.json" in text


def test_nothing_measured_yet_is_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    code, out, _ = ran()
    assert code == 0
    assert "0 Records" in out


def test_a_record_by_id_by_its_beginning_and_by_file(folder: Path, ran: Ran) -> None:
    whole = json.loads(ran("show", NEW.record_id, str(folder), "--json")[1])
    assert whole["record"] == to_json(NEW)
    short = json.loads(ran("show", NEW.record_id[:10], str(folder), "--json")[1])
    assert short == whole
    file = folder / f"{NEW.record_id}.json"
    assert json.loads(ran("show", str(file), "--json")[1]) == whole


def test_what_schema_1_1_brought_is_shown(tmp_path: Path, ran: Ran) -> None:
    record = a_record(
        world=WorldRun(size=4, parallel="fsdp", offload="cpu", fake=True),
        texts=Texts(kind="histogram", source="h.json", micro_batches=3, worst="4 x 16"),
        throughput=Throughput(
            step_times_s=(1.0,) * 7,
            steady_steps=5,
            step_s=1.0,
            real_tokens_per_s=1234.0,
            examples_per_s=8.0,
            spread=0.2,
            warning="noisy",
        ),
    )
    write_record(tmp_path, record)
    out = ran("show", record.record_id, str(tmp_path))[1]
    for words in ("FSDP over 4", "h.json", "1,234 real tokens/s", "warning: noisy"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frob",), "allowed: ls, show, export"),
        (("exprt",), "did you mean export"),
        (("show",), "record: missing"),
        (("show", "0000"), "no such Record"),
        (("show", "0000", "/no/such/folder"), "record: no such Record: there is no folder /no/"),
        (("show", "/nowhere.json"), "record: no such file"),
        (("export",), "out: missing"),
        (("ls", "/no/such/folder"), "no such folder"),
        (("ls", "a", "b"), "takes one folder"),
        (("ls", "--out", "x.csv"), "writes nothing"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran: Ran,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "rigsize" / "records").mkdir(parents=True)
    code, out, err = ran(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_a_mistyped_id_gets_the_nearest(folder: Path, ran: Ran) -> None:
    wrong = NEW.record_id[:6] + "zz" + NEW.record_id[8:]
    code, _, err = ran("show", wrong, str(folder))
    assert code == 2
    assert f"did you mean {NEW.record_id}" in err


def test_export_as_a_table(folder: Path, ran: Ran) -> None:
    out = folder.parent / "table.csv"
    code, answer, err = ran("export", str(folder), "--out", str(out))
    assert (code, answer) == (0, f"3 Records written to {out}\n")
    assert "left out: broken.json" in err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["record_id"] for row in rows[:2]] == [NEW.record_id, OLD.record_id]
    assert rows[0]["allocated_peak_bytes"] == "100"
    assert rows[0]["device_peak_bytes"] == ""
    assert rows[0]["world_size"] == "1"


def test_export_as_records_that_are_read_again(folder: Path, ran: Ran) -> None:
    out = folder.parent / "again" / "all.jsonl"
    assert "cannot be written" in ran("export", str(folder), "--out", str(out))[2]
    out.parent.mkdir()
    assert ran("export", str(folder), "--out", str(out))[0] == 0
    ids = {entry.record.record_id for entry in read_folder(out.parent).entries}
    assert ids == {entry.record.record_id for entry in read_folder(folder).entries}
    code, _, err = ran("export", str(folder), "--out", "x.parquet")
    assert code == 2
    assert "allowed: .csv, .jsonl" in err


def test_a_cell_is_no_formula(tmp_path: Path, ran: Ran) -> None:
    model = replace(OLD.model, name="=1+1")
    write_record(tmp_path, replace(OLD, model=model))
    out = tmp_path / "t.csv"
    ran("export", str(tmp_path), "--out", str(out))
    with out.open(newline="") as file:
        assert next(csv.DictReader(file))["model"] == "'=1+1"
