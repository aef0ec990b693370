"""Which folders are checkpoints, which of them are whole, and whether all ranks see the same."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rigsize.errors import SpecError
from rigsize.train import manifest
from rigsize.train.checkpoint_files import TEMPORARY
from rigsize.train.manifest import Manifest

__all__ = [
    "Found",
    "Order",
    "View",
    "common",
    "folders",
    "leftovers",
    "problem_of",
    "share",
    "unused",
]

Order = tuple[int, int]
"""Step and attempt: the second checkpoint of one step, its first being damaged, is step-N-1."""

_FOLDER = re.compile(r"step-(\d{1,18})(?:-(\d{1,6}))?")
_LEFTOVER = re.compile(_FOLDER.pattern + r"(?:\.[a-z]+)*" + re.escape(TEMPORARY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A whole checkpoint that all ranks agreed on."""

    step: int
    """Optimizer steps done when it was written."""
    path: Path
    """Its folder, as this rank sees it."""
    manifest: Manifest
    """Verified, and so are the files it names."""
    skipped: tuple[str, ...] = ()
    """Newer folders that did not verify, and why; worth a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one rank sees in its folder, hashes of large files not yet checked."""

    place: tuple[str, int, int]
    """Host, device and inode of the folder: ranks of one place read the same files."""
    digests: dict[Order, str]
    """The manifest's digest of each checkpoint whose files have their sizes."""
    problems: dict[Order, str]
    """Why the others are not whole."""

    @classmethod
    def of(cls, folder: Path) -> View:
        """Looks at every checkpoint in the folder."""
        digests: dict[Order, str] = {}
        problems: dict[Order, str] = {}
        for order, path in folders(folder):
            try:
                found = manifest.read(path)
                found.check_sizes(path)
                digests[order] = found.digest
            except SpecError as error:
                problems[order] = error.problem
        status = folder.stat()
        place = (socket.gethostname(), status.st_dev, status.st_ino)
        return cls(place=place, digests=digests, problems=problems)


def common(views: Sequence[View]) -> list[tuple[Order, str]]:
    """Every checkpoint any rank sees, newest first, with what is wrong with it or ""."""
    orders = {order for view in views for order in (*view.digests, *view.problems)}
    return [(order, _disagreement(order, views)) for order in sorted(orders, reverse=True)]


def _disagreement(order: Order, views: Sequence[View]) -> str:
    for view in views:
        if order in view.problems:
            return view.problems[order]
    if not all(order in view.digests for view in views):
        return "not every rank sees it"
    if len({view.digests[order] for view in views}) > 1:
        return "the ranks see different ones"
    return ""


def share(names: Sequence[str], rank: int, views: Sequence[View]) -> list[str]:
    """The files that this rank hashes: each file once in each place."""
    here = [other for other, view in enumerate(views) if view.place == views[rank].place]
    return list(names[here.index(rank) :: len(here)])


def problem_of(path: Path, found: Manifest, names: Sequence[str]) -> str:
    """What is wrong with the content of the named files, or ""."""
    try:
        found.check_hashes(path, names)
    except SpecError as error:
        return error.problem
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def folders(folder: Path) -> list[tuple[Order, Path]]:
    """Everything named as a checkpoint, whole or not, oldest first."""
    found = []
    for path in folder.iterdir():
        name = _FOLDER.fullmatch(path.name)
        if name and path.is_dir() and not path.is_symlink():
            found.append(((int(name[1]), int(name[2] or 0)), path))
    return sorted(found)


def leftovers(folder: Path) -> list[Path]:
    """What runs that were killed left half-written or half-removed."""
    return sorted(path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))


def unused(folder: Path, step: int) -> Path:
    """A name for a checkpoint of this step that no folder has; none is ever written over."""
    attempts = [attempt for (taken, attempt), _ in folders(folder) if taken == step]
    return folder / (f"step-{step}-{max(attempts) + 1}" if attempts else f"step-{step}")
