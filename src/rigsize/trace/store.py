"""Where profiles come from: shipped with the package, cached, or traced now. No torch here.

Tracing runs in a child process with limits on time and memory (`trace.child`): one architecture
in transformers aborts the interpreter, and an abort must be an answer, not a crash.

What ships is one file a config, `<digest>.profiles`: a line of JSON, {key: [offset, length]} with
offsets from the end of that line, then the packed profiles one after another. What a step computes
(`trace.fold_work`) is a profile of its own beside that of births and deaths, under `KEY-work`: who
asks for memory alone reads nothing of it. One trace makes both.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize import __version__
from rigsize.errors import TraceFailed
from rigsize.spec.quantization import library_of, read_text
from rigsize.trace.domains import possible_labels
from rigsize.trace.profile import Profile, TraceKey, unpack

if TYPE_CHECKING:
    from rigsize.models import ModelSource

PACKAGED = Path(__file__).parent / "profiles"


WORK = "-work"
"""Ends the name of a profile of work."""


def find_profile(source: ModelSource, key: TraceKey, point: Mapping[str, int]) -> Profile:
    """A profile of `key` proved for a size: shipped, cached, else traced and cached."""
    stored = stored_profile(key, point)
    if stored is not None:
        return stored
    from rigsize.trace.child import trace_in_child

    traces = trace_in_child(source, key, point)
    if traces.work:
        _keep(key, traces.work, WORK)
    return _keep(key, traces.profile)


def find_work(source: ModelSource, key: TraceKey, point: Mapping[str, int]) -> Profile:
    """What a step of `key` computes at a size: shipped, cached, else traced and cached.

    TraceFailed says why there is none.
    """
    stored = stored_work(key, point)
    if stored is not None:
        return stored
    from rigsize.trace.child import trace_in_child

    traces = trace_in_child(source, key, point, work=True)
    _keep(key, traces.profile)
    assert traces.work, "asked for, it is there or refused"
    return _keep(key, traces.work, WORK)


def stored_profile(key: TraceKey, point: Mapping[str, int]) -> Profile | None:
    """The shipped or cached profile of `key` proved for a size; None where a trace is needed."""
    return _stored(key, point, "")


def stored_work(key: TraceKey, point: Mapping[str, int]) -> Profile | None:
    """The same of what a step computes."""
    return _stored(key, point, WORK)


def _stored(key: TraceKey, point: Mapping[str, int], what: str) -> Profile | None:
    profile = read_packaged(key, what)
    if profile is not None and profile.body_at(point) is not None:
        return profile
    # Only now: asking for the installed versions costs more than reading a shipped profile.
    folder = cache_folder()
    for domain in possible_labels(key.point(point)):
        cached = read_profile(folder / file_name(key, domain, what))
        if cached is not None and cached.body_at(point) is not None:
            return cached
    return None


def _keep(key: TraceKey, data: bytes, what: str = "") -> Profile:
    """The profile that was traced, cached for the next time."""
    profile = unpack(data)
    _write(cache_folder() / file_name(key, next(iter(profile.domains)), what), data)
    return profile


def pack_file(config_digest: str) -> Path:
    """The shipped profiles of one config."""
    return PACKAGED / f"{config_digest}.profiles"


def read_packaged(key: TraceKey, what: str = "") -> Profile | None:
    """The shipped profile of a key, or of its WORK; None if there is none."""
    try:
        with pack_file(key.config_digest).open("rb") as file:
            index = json.loads(file.readline())
            offset, length = index[key.text() + what]
            file.seek(offset, os.SEEK_CUR)
            return unpack(file.read(length))
    except (OSError, KeyError, ValueError, zlib.error):
        return None  # not there, or a file that was cut: traced anew


def read_pack(path: Path) -> dict[str, bytes]:
    """Every packed profile in a shipped file by its key; empty if there is no such file."""
    if not path.exists():
        return {}
    line, _, blobs = path.read_bytes().partition(b"\n")
    return {name: blobs[start : start + size] for name, (start, size) in json.loads(line).items()}


def write_pack(path: Path, profiles: Mapping[str, bytes]) -> None:
    """Writes a shipped file whole; a reader sees the old one or the new one."""
    index, offset = {}, 0
    for name, data in sorted(profiles.items()):
        index[name] = (offset, len(data))
        offset += len(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    head = json.dumps(index, separators=(",", ":")).encode() + b"\n"
    partial.write_bytes(head + b"".join(profiles[name] for name in index))
    partial.replace(path)


def file_name(key: TraceKey, domain: str, what: str = "") -> str:
    """One cached file a key and domain: a child traces the domain that was asked for.

    The folder says which torch and transformers; this, which libraries this key's trace uses.
    """
    used = [f"{package}-{_minor(package)}" for package in _libraries(key)]
    return "-".join((key.text() + what, domain, *used)) + ".profile"


def _libraries(key: TraceKey) -> Iterator[str]:
    """What else than torch and transformers makes this key's modules."""
    if key.adapter:
        yield "peft"
    if key.quantization:
        yield library_of(read_text(key.quantization)[0])


def read_profile(path: Path) -> Profile | None:
    """The profile in a file; None if it is not there or of another schema."""
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except Exception:  # a truncated cache file is traced anew, whatever broke in it
        return None


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/rigsize/profiles/RIGSIZE-TORCH-TRANSFORMERS`, by installed versions."""
    given = os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else Path.home() / ".cache"
    installed = "-".join(_minor(name) for name in ("torch", "transformers"))
    return base / "rigsize" / "profiles" / f"{__version__}-{installed}"


@lru_cache
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


__all__ = [
    "PACKAGED",
    "WORK",
    "TraceFailed",
    "cache_folder",
    "file_name",
    "find_profile",
    "find_work",
    "pack_file",
    "read_pack",
    "read_packaged",
    "read_profile",
    "stored_profile",
    "stored_work",
    "write_pack",
]
