import os
import time
from pathlib import Path

import pytest

from rigsize.errors import SpecError
from rigsize.texts.store import Writer, cache_folder, new_folder, open_array, read_meta


def written(folder: Path, numbers: list[int], *, whole: bool = True) -> None:
    with new_folder(folder, lambda _: whole) as partial, Writer(partial) as writer:
        writer.append("full_lengths", numbers)
        writer.finish({"format": 1})


def numbers_in(folder: Path) -> list[int]:
    meta = read_meta(folder)
    assert meta is not None
    array = open_array(folder, "full_lengths", meta)
    assert array is not None
    numbers: list[int] = array.tolist()
    return numbers


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written(tmp_path / "a", [1, 2, 3])
    assert numbers_in(tmp_path / "a") == [1, 2, 3]
    meta = read_meta(tmp_path / "a") or {}
    assert open_array(tmp_path / "a", "labels", meta) is None


def test_lists_keep_their_ends(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.append_lists("ids", [[5, 6], []])
        writer.append_lists("ids", [[7]])
        writer.finish({})
    meta = read_meta(tmp_path) or {}
    arrays = [open_array(tmp_path, name, meta) for name in ("ids", "offsets")]
    assert [array.tolist() for array in arrays if array is not None] == [[5, 6, 7], [0, 2, 2, 3]]


def test_the_one_that_was_first_stays_if_it_is_whole(tmp_path: Path) -> None:
    written(tmp_path / "a", [1])
    written(tmp_path / "a", [2])
    assert numbers_in(tmp_path / "a") == [1]
    written(tmp_path / "a", [3], whole=False)
    assert numbers_in(tmp_path / "a") == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_cleared_a_day_later(tmp_path: Path) -> None:
    old, new = tmp_path / "partial-old", tmp_path / "partial-new"
    for folder in (old, new):
        folder.mkdir()
    day_ago = time.time() - 90_000
    os.utime(old, (day_ago, day_ago))
    written(tmp_path / "a", [1])
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"arrays": {"what": 1}}'])
def test_a_broken_description_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    assert read_meta(tmp_path) is None


def test_every_file_is_closed_when_the_disk_is_full(tmp_path: Path) -> None:
    # /dev/full takes what is buffered and refuses it when it is flushed, as a full disk does.
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "labels.bin").symlink_to("/dev/full")
    writer = Writer(tmp_path)
    for name in ("ids", "labels", "offsets"):
        writer.append(name, [1])
    with pytest.raises(OSError, match="No space left"):
        writer.__exit__()
    assert (tmp_path / "ids.bin").stat().st_size == 4
    assert (tmp_path / "offsets.bin").stat().st_size == 8


def test_a_lost_terminal_is_not_the_cache_s_fault(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), new_folder(tmp_path / "a", lambda _: True):
        raise BrokenPipeError(32, "Broken pipe")
    with (
        pytest.raises(SpecError, match="cannot be written"),
        new_folder(tmp_path / "a", lambda _: True),
    ):
        raise PermissionError(13, "Permission denied")


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rigsize" / "texts"
