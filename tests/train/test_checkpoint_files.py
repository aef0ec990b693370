"""Files are new or not written, folders go in one step."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rigsize.train.checkpoint_files import digest_of, discard, make_folder, read_json, write_json


def test_json_comes_back_and_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"best": float("inf"), "lr": 0.1 + 0.2})
    assert read_json(path) == {"best": float("inf"), "lr": 0.30000000000000004}
    with pytest.raises(FileExistsError):
        write_json(path, {})


def test_a_kill_while_removing_leaves_no_name_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-1"
    (folder / "shards").mkdir(parents=True)

    def killed(path: Path, *args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            discard(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.old.tmp"]
    folder.mkdir()
    discard(folder)  # also where such a rest is in the way
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "step-1.tmp"
    make_folder(folder)
    (folder / "rest").write_text("of a dead run")
    make_folder(folder)
    assert list(folder.iterdir()) == []
    assert [path.name for path in folder.parent.iterdir()] == ["step-1.tmp"]


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_of(tmp_path / "file") == sha256(b"abc").hexdigest()
