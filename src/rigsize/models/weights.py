"""How many parameters a checkpoint holds, from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["count_checkpoint_parameters"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 32 * 1024**2
_MAX_SHARDS = 2_000
_PLAIN_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def count_checkpoint_parameters(folder: Path) -> tuple[int | None, str]:
    """Elements of all tensors, and a note that says what was counted or why nothing was."""
    try:
        names = _files(folder)
        if not names:
            return None, "no safetensors file beside the config"
        counts = [_count(folder / name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return None, f"the safetensors files cannot be read ({type(error).__name__})"
    total = sum(count for count, _ in counts)
    note = f"safetensors headers of {len(names)} file{'s' * (len(names) > 1)}"
    if not all(plain for _, plain in counts):
        note += "; some tensors are quantised, so packed elements were counted"
    return total, note


def _files(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file():
        return [SINGLE] if (folder / SINGLE).is_file() else []
    if index.stat().st_size > _MAX_HEADER_BYTES:
        raise ValueError("index too large")
    names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    # A name with a path in it would read files outside the folder.
    if len(names) > _MAX_SHARDS or any(Path(name).name != name for name in names):
        raise ValueError("unusable file names")
    return names


def _count(path: Path) -> tuple[int, bool]:
    header = _header(path)
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    shapes = [entry["shape"] for entry in tensors]
    if not all(type(size) is int and size >= 0 for shape in shapes for size in shape):
        raise ValueError("a shape that is none")
    plain = all(entry["dtype"] in _PLAIN_FLOATS for entry in tensors)
    return sum(math.prod(shape) for shape in shapes), plain


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes > _MAX_HEADER_BYTES:
            raise ValueError("header too large")
        header: dict[str, Any] = json.loads(file.read(num_bytes))
    return header
