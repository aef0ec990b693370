"""Where profiles come from: shipped with the package, cached, or traced now. No torch here.

Tracing runs in a child process with limits on time and memory (`trace.child`): one architecture
in transformers aborts the interpreter, and an abort must be an answer, not a crash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.errors import TraceFailed
from rigsize.trace.profile import Profile, TraceKey, unpack

if TYPE_CHECKING:
    from rigsize.models import ModelSource

PACKAGED = Path(__file__).parent / "profiles"


def find_profile(source: ModelSource, key: TraceKey, point: Mapping[str, int]) -> Profile:
    """A profile of `key` proved for a size: shipped, cached, else traced and cached."""
    for folder in (PACKAGED, cache_folder()):
        profile = read_profile(folder / file_name(key))
        if profile is not None and profile.body_at(point) is not None:
            return profile
    from rigsize.trace.child import trace_in_child

    data = trace_in_child(source, key, point)
    path = cache_folder() / file_name(key)
    _write(path, data)
    return unpack(data)


def file_name(key: TraceKey) -> str:
    """One file a key."""
    return f"{key.text()}.profile"


def read_profile(path: Path) -> Profile | None:
    """The profile in a file; None if it is not there or of another schema."""
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except Exception:  # a truncated cache file is traced anew, whatever broke in it
        return None


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/rigsize/profiles/<torch>-<transformers>`, the versions being installed ones."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    installed = "-".join(_minor(name) for name in ("torch", "transformers"))
    return Path(base) / "rigsize" / "profiles" / f"v1-{installed}"


def _minor(package: str) -> str:
    try:
        return ".".join(metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return "none"


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        return  # a cache that cannot be written costs the next call its time, nothing else


__all__ = ["PACKAGED", "TraceFailed", "cache_folder", "file_name", "find_profile", "read_profile"]
