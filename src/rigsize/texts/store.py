"""Tokenised texts on disk: flat arrays, written once as a whole folder, read memory-mapped.

A folder holds `meta.json` and raw little-endian arrays; there is no pickle in it. It is written
under another name and renamed when whole: a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rigsize.errors import MeasurementFailed, SpecError

__all__ = ["ARRAYS", "Writer", "cache_folder", "new_folder", "open_array", "read_meta"]

ARRAYS: dict[str, str] = {
    "ids": "<i4",
    "offsets": "<i8",
    "full_lengths": "<i4",
    "labels": "<i8",
    "second_ids": "<i4",
    "second_offsets": "<i8",
    "second_full_lengths": "<i4",
}
"""Every array a folder may hold, and the type of its elements."""
_STALE_S = 24 * 3600.0
_PREFIX = "partial-"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/rigsize/texts`, by default below `~/.cache`."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "rigsize" / "texts"


class Writer:
    """Appends to the arrays of a new folder; a context manager that closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()
        self._counts: dict[str, int] = {}
        self._ends: dict[str, int] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        # A full disk fails the close of one file; the others are closed all the same.
        self._open.close()

    def append(self, name: str, values: Iterable[int]) -> None:
        """Numbers at the end of one array."""
        data = np.fromiter(values, dtype=ARRAYS[name])
        if name not in self._files:
            file = (self.folder / f"{name}.bin").open("wb")
            self._files[name] = self._open.enter_context(file)
        self._files[name].write(data.tobytes())
        self._counts[name] = self._counts.get(name, 0) + len(data)

    def append_lists(self, name: str, lists: Iterable[list[int]]) -> None:
        """Each list at the end of `name`, and where it ends in the array of offsets."""
        offsets = name.replace("ids", "offsets")
        end = self._ends.get(name)
        ends = [] if end is not None else [0]
        end = end or 0
        for values in lists:
            self.append(name, values)
            end += len(values)
            ends.append(end)
        self.append(offsets, ends)
        self._ends[name] = end

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Everything to the disk, the description last."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        with (self.folder / "meta.json").open("wb") as file:
            file.write(json.dumps({**meta, "arrays": self._counts}).encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def new_folder(folder: Path, whole: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to fill, that becomes `folder` when the block ends well and vanishes otherwise.

    Args:
        folder: where it is to be.
        whole: whether a folder that is there by then can be used: it stays, others may read it.

    Raises:
        MeasurementFailed: no space left.
        SpecError: it cannot be written.
    """
    with _told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder.parent))
    try:
        with _told(folder):
            yield partial
            _settle(partial, folder, whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(partial: Path, folder: Path, whole: Callable[[Path], bool]) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if whole(folder):
            return  # another process was first
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            partial.rename(folder)


def _clear_stale(parent: Path) -> None:
    """What a killed process left behind a day ago or more."""
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # someone else's: the terminal that progress is told to went away
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(folder)
            hint = "free some, or set XDG_CACHE_HOME to a folder on another disk"
            problem = f"no space left for the cache ({free} free)"
            raise MeasurementFailed("cache", str(folder.parent), problem, hint=hint) from None
        problem = f"the cache cannot be written ({error.strerror})"
        hint = "set XDG_CACHE_HOME to a folder that can be written"
        raise SpecError("cache", str(folder.parent), problem, hint=hint) from None


def _free_bytes(folder: Path) -> str:
    from rigsize.units import format_bytes

    existing = next((p for p in folder.parents if p.exists()), Path("/"))
    return format_bytes(shutil.disk_usage(existing).free)


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The description of a whole folder; None where there is none or an array is cut."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {
            name: (folder / f"{name}.bin").stat().st_size == count * np.dtype(ARRAYS[name]).itemsize
            for name, count in meta["arrays"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if all(sizes.values()) else None


def open_array(folder: Path, name: str, meta: Mapping[str, Any]) -> npt.NDArray[Any] | None:
    """One array, mapped and read-only; None where the folder has none of that name."""
    count = meta["arrays"].get(name)
    if count is None:
        return None
    if count == 0:
        return np.empty(0, dtype=ARRAYS[name])
    return np.memmap(folder / f"{name}.bin", dtype=ARRAYS[name], mode="r", shape=(count,))
