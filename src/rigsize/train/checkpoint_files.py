"""Files that are on the disk when the function returns, and folders that vanish in one step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["TEMPORARY", "digest_of", "discard", "make_folder", "sync_folder", "write_json"]

TEMPORARY = ".tmp"
"""What ends the name of a folder that is not whole."""
_ASIDE = ".old" + TEMPORARY


def write_json(path: Path, document: Any) -> None:
    """Writes and fsyncs a new JSON file; infinities and NaN pass, as Python's json has them."""
    with path.open("x", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())


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
