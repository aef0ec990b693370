"""A manifest verifies what it names, and nothing that was changed passes."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.train import manifest
from rigsize.train.manifest import FileEntry, Manifest, differences


def whole(folder: Path) -> Manifest:
    (folder / "shards").mkdir()
    (folder / "shards" / "a.safetensors").write_bytes(b"abc")
    (folder / "state.json").write_bytes(b"{}")
    files = manifest.describe(folder, ["shards/a.safetensors", "state.json"])
    made = Manifest(step=3, world_size=2, identity={"model": "tiny"}, files=files)
    manifest.write(folder, made)
    return made


def test_entries_are_sizes_and_hashes(tmp_path: Path) -> None:
    made = whole(tmp_path)
    assert made.files["state.json"] == FileEntry(size_bytes=2, sha256=sha256(b"{}").hexdigest())
    read = manifest.read(tmp_path)
    assert read == made
    assert read.digest == made.digest
    read.check_sizes(tmp_path)
    read.check_hashes(tmp_path, read.files)


def test_a_file_that_differs(tmp_path: Path) -> None:
    made = whole(tmp_path)
    shard = tmp_path / "shards" / "a.safetensors"
    shard.write_bytes(b"abd")
    made.check_sizes(tmp_path)
    with pytest.raises(SpecError, match=r"a.safetensors has other content than was written"):
        made.check_hashes(tmp_path, made.files)
    shard.write_bytes(b"ab")
    with pytest.raises(SpecError, match=r"a.safetensors has 2 bytes of 3"):
        made.check_sizes(tmp_path)
    shard.unlink()
    shard.symlink_to(tmp_path / "state.json")
    with pytest.raises(SpecError, match="missing or not a plain file"):
        made.check_sizes(tmp_path)


def rewrite(folder: Path, *, sign: bool = True, **changes: Any) -> None:
    """Changes the manifest, its digest too where a forger would."""
    path = folder / manifest.NAME
    document = json.loads(path.read_text()) | changes
    if sign:
        content = {key: value for key, value in document.items() if key != "digest"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        document["digest"] = sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": 4, "sign": False}, "changed after it was written"),
        ({"version": 2}, "another format or version"),
        ({"files": {"../x": {"size_bytes": 1, "sha256": ""}}}, "a file outside"),
        ({"files": {"/etc/passwd": {"size_bytes": 1, "sha256": ""}}}, "a file outside"),
        ({"files": {".hidden": {"size_bytes": 1, "sha256": ""}}}, "a file outside"),
        ({"files": {"a": {"size_bytes": 1}}}, "cannot be read"),
        ({"files": {"a": {"size_bytes": "1", "sha256": ""}}}, "is no number"),
        ({"files": []}, "cannot be read"),
        ({"step": "newest"}, "is no number"),
        ({"step": -1}, "is no number"),
    ],
)
def test_a_manifest_that_is_not_ours(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    whole(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(SpecError, match=problem):
        manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"format": 1', "[" * 100_000, "\0"])
def test_what_is_no_manifest(content: str, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(SpecError, match=r"manifest.json cannot be read"):
        manifest.read(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"manifest.json is missing"):
        manifest.read(tmp_path)


def test_differences_are_named_with_both_values() -> None:
    saved = {"model": {"layers": 2, "hidden": 16}, "seed": 0, "old": 1}
    now = {"model": {"layers": 2, "hidden": 32}, "seed": 0}
    assert differences(saved, now) == ["model.hidden: 16 saved, 32 now", "old: 1 saved, None now"]
    assert differences(saved, saved) == []
