"""Files that are on the disk when the function returns, and folders that vanish in one step."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError

__all__ = [
    "TEMPORARY",
    "digest_of",
    "discard",
    "lock_folder",
    "make_folder",
    "read_json",
    "sync_folder",
    "write_json",
]

TEMPORARY = ".tmp"
"""What ends the name of a folder that is not whole."""
_ASIDE = ".old" + TEMPORARY
_LOCK = ".lock"
_held: dict[tuple[int, Path], int] = {}
"""Open lock files by process and folder: closing one would release the lock."""


def lock_folder(folder: Path) -> None:
    """Makes this process the only one that writes here, until it ends, however it ends.

    Raises:
        SpecError: another process is.
    """
    key = (os.getpid(), folder.resolve())
    if key in _held:
        return
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # POSIX's, not flock: a data loader's fork that outlives a killed run must not hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(handle)
            hint = "wait until it has ended, or take another folder"
            problem = "another run is writing into it"
            raise SpecError("checkpoint folder", str(folder), problem, hint=hint) from error
        # A file system without locks: two runs in one folder are then the user's care.
    _held[key] = handle


def write_json(path: Path, document: Any) -> None:
    """Writes and fsyncs a new JSON file; infinities and NaN pass, as Python's json has them."""
    with path.open("x", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file does not cover its name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """A new, empty folder, whatever a dead run left under the name."""
    if path.exists():
        discard(path)
    path.mkdir(parents=True)


def discard(path: Path) -> None:
    """Removes a folder; a kill in between leaves a name that nobody takes for whole."""
    aside = path if path.name.endswith(_ASIDE) else path.with_name(path.name + _ASIDE)
    if aside != path:
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    shutil.rmtree(aside)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
