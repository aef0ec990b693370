import os
import subprocess
import sys
from pathlib import Path

import pytest

from rigsize.errors import SpecError
from rigsize.texts.source import DataSource


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSONL.gz", "jsonl"),
        ("a.csv", "csv"),
        ("a.tab", "tsv"),
        ("a.txt.gz", "text"),
        ("a.parquet", "parquet"),
    ],
)
def test_a_file_is_known_by_its_end(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    assert DataSource(path=str(tmp_path / name)).kind() == kind


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.pkl", "never one that can run code"),
        ("a.py", "never one that can run code"),
        ("a.docx", "not read"),
        ("a", "ending in nothing"),
        ("a.parquet.gz", "not read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(SpecError, match=problem):
        DataSource(path=str(tmp_path / name)).kind()


@pytest.mark.parametrize(
    "path", ["gone.csv", "./gone", "/no/such", "a/b/c", "x" * 5000, "gone.pkl"]
)
def test_what_is_missing_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(SpecError, match="no such file or folder"):
        DataSource(path=path).kind()


def test_a_hub_id_is_one() -> None:
    assert DataSource(path="organisation/tweets").kind() == "hub"


def test_a_folder_must_be_a_saved_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no saved data set"):
        DataSource(path=str(tmp_path)).kind()


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_no_path_is_refused(path: str) -> None:
    with pytest.raises(SpecError, match="not a path"):
        DataSource(path=path)


def test_no_rows_are_no_limit() -> None:
    with pytest.raises(SpecError, match="max-rows"):
        DataSource(path="a.csv", max_rows=0)


def test_a_stored_histogram_costs_no_heavy_import() -> None:
    code = (
        "import sys, rigsize.texts, rigsize.cli_data; print({'numpy', 'torch'} & set(sys.modules))"
    )
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    assert done.stdout.strip() == "set()"
