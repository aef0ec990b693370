"""The manifest: which files a whole checkpoint has, with sizes and SHA-256. No torch here.

It proves that a checkpoint is complete and unchanged since it was written. It does not prove who
wrote it: whoever can write the folder can write a manifest too. Nothing in a checkpoint can run
code, so that nothing more is needed (docs/checkpoints.md).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError
from rigsize.train.checkpoint_files import digest_of, write_json

__all__ = ["NAME", "SHARDS", "FileEntry", "Manifest", "describe", "differences", "read", "write"]

NAME = "manifest.json"
SHARDS = "shards"
"""The subfolder with the tensors; a reader takes every file in it, so it is checked for more."""
_FORMAT = "rigsize-checkpoint"
_VERSION = 1
# At most one folder deep, nothing hidden, hence neither ".." nor an absolute path.
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LARGEST_MANIFEST_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file as it was written."""

    size_bytes: int
    sha256: str
    """Hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one checkpoint is, and the files that make it whole."""

    step: int
    world_size: int
    """Ranks that wrote it; another number may read it."""
    identity: Mapping[str, Any]
    """The run it belongs to, JSON values only."""
    files: Mapping[str, FileEntry]
    """By name relative to the checkpoint."""

    @property
    def digest(self) -> str:
        """SHA-256 over the content, equal on all ranks that see the same checkpoint."""
        return _digest(self._content())

    def _content(self) -> dict[str, Any]:
        files = {
            name: {"size_bytes": entry.size_bytes, "sha256": entry.sha256}
            for name, entry in self.files.items()
        }
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "step": self.step,
            "world_size": self.world_size,
            "identity": dict(self.identity),
            "files": files,
        }

    def to_json(self) -> dict[str, Any]:
        """The document on disk; `digest` covers the rest of it."""
        return self._content() | {"digest": self.digest}

    def check_sizes(self, folder: Path) -> None:
        """Every file is there with its size, and the shards are no others.

        Raises:
            SpecError: the first file that is missing, cut short or not listed.
        """
        for name, entry in self.files.items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise _broken(folder, f"{name} is missing or not a plain file")
            if (size_bytes := path.stat().st_size) != entry.size_bytes:
                raise _broken(folder, f"{name} has {size_bytes} bytes of {entry.size_bytes}")
        for path in sorted((folder / SHARDS).iterdir()):
            if f"{SHARDS}/{path.name}" not in self.files:
                raise _broken(folder, f"{SHARDS}/{path.name} is not in the manifest")

    def check_hashes(self, folder: Path, names: Iterable[str]) -> None:
        """The named files have the content that was written.

        Raises:
            SpecError: the first file that has not.
        """
        for name in names:
            if digest_of(folder / name) != self.files[name].sha256:
                raise _broken(folder, f"{name} has other content than was written")


def describe(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """The entries of files that are complete now."""
    return {
        name: FileEntry(size_bytes=(folder / name).stat().st_size, sha256=digest_of(folder / name))
        for name in names
    }


def write(folder: Path, manifest: Manifest) -> None:
    """Writes and fsyncs the manifest, the last file of a checkpoint."""
    write_json(folder / NAME, manifest.to_json())


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint; its own content verified, the files not yet.

    Raises:
        SpecError: there is none, it is cut short, changed, or of another format.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise _broken(folder, f"{NAME} is too large")
        document = json.loads(path.read_text(encoding="utf-8"))
        return _parse(folder, document)
    except FileNotFoundError as error:
        raise _broken(folder, f"{NAME} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise _broken(folder, f"{NAME} cannot be read") from error


def _parse(folder: Path, document: Any) -> Manifest:
    if document["format"] != _FORMAT or document["version"] != _VERSION:
        raise _broken(folder, f"{NAME} is of another format or version")
    content = {key: value for key, value in document.items() if key != "digest"}
    if _digest(content) != document["digest"]:
        raise _broken(folder, f"{NAME} was changed after it was written")
    files = {name: FileEntry(**entry) for name, entry in document["files"].items()}
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise _broken(folder, f"{NAME} names a file outside the checkpoint")
    numbers = [document["step"], document["world_size"], *(e.size_bytes for e in files.values())]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _broken(folder, f"{NAME} has a step, rank count or size that is no number")
    return Manifest(
        step=document["step"],
        world_size=document["world_size"],
        identity=document["identity"],
        files=files,
    )


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, as "model.hidden_size: 16 saved, 32 now"."""
    found: list[str] = []
    for key in sorted(saved.keys() | wanted.keys()):
        before, now = saved.get(key), wanted.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key}: {before!r} saved, {now!r} now")
    return found


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(folder: Path, problem: str) -> SpecError:
    return SpecError("checkpoint", str(folder), problem)
