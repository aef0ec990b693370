"""Slices of published runs: read, moved to another length, solved for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigsize.errors import SpecError
from rigsize.evidence.cases import Case
from rigsize.evidence.published import Solved, at, load_slice, solve

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "validation" / "published").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_slice_is_read(file: Path) -> None:
    found = load_slice(file)
    assert found.cases
    assert len({case.id for case in found.cases}) == len(found.cases)
    assert all(case.workload or case.not_answerable for case in found.cases)
    assert all(out.rows and out.why for out in found.left_out)
    if found.solved:
        (row,) = (case for case in found.cases if case.id == found.solved.row)
        assert row.fitted, "a row that a length is solved from proves nothing"


def metamath() -> dict[str, Case]:
    found = load_slice(ROOT / "validation" / "published" / "peft_metamath.toml")
    return {case.id: case for case in found.cases}


def test_defaults_reach_every_row_and_a_row_can_say_otherwise() -> None:
    cases = metamath()
    dora = cases["lora-rank32-dora"].strategy
    assert dora is not None
    assert (dora.method, dora.lora_rank, dora.precision, dora.micro_batch) == (
        "dora",
        32,
        "bf16",
        4,
    )
    assert [case.fitted for case in cases.values()].count(True) == 1


def test_a_length_is_found_where_the_prediction_meets_the_measurement() -> None:
    case = metamath()["lora-rank64-rslora"]
    asked: list[int] = []

    def predicted(moved: Case) -> int:
        assert moved.workload is not None
        asked.append(moved.workload.max_length)
        return case.measured_bytes + 1000 * (moved.workload.max_length - 643)

    solved = Solved(row=case.id, low=512, high=768, why="")
    assert solve(solved, case, predicted) == 643
    assert len(asked) < 60
    assert solve(Solved(row=case.id, low=512, high=600, why=""), case, predicted) == 600


def test_moving_a_case_moves_its_length_alone() -> None:
    case = metamath()["full-finetuning"]
    moved = at(case, 600)
    assert moved.workload is not None
    assert moved.workload.max_length == 600
    assert at(moved, 768) == case


@pytest.mark.parametrize("text", ["", "[slice]\nname = 1\n", "not toml ["])
def test_a_bad_file_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(SpecError):
        load_slice(file)
