"""What a cache of texts depends on: every byte of the file, or every row of a hub's data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rigsize.errors import SpecError
from rigsize.texts.readers import Table
from rigsize.texts.source import DataSource

__all__ = ["content_digest", "files_digest"]

_BLOCK_BYTES = 1024**2


def content_digest(source: DataSource, table: Table, columns: Iterable[str]) -> str:
    """sha256 of the data; a hub's is read once for it, since its name says nothing of its rows.

    Args:
        source: what was named.
        table: the same, opened.
        columns: those that are read of a hub's rows; of files every byte counts.
    """
    kind = source.kind()
    if kind == "hub":
        return _rows_digest(table, tuple(columns))
    if kind == "saved":
        files = sorted(p for p in source.file.rglob("*") if p.suffix in {".arrow", ".json"})
        return f"{files_digest(files)}-{source.split}-{source.max_rows}"
    try:
        return f"{kind}-{files_digest([source.file])}-{source.max_rows}"
    except OSError as error:
        raise SpecError("data", source.path, f"cannot be read ({error.strerror})") from None


def files_digest(files: Iterable[Path]) -> str:
    """sha256 of some files, one after the other, names left out."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _rows_digest(table: Table, columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for row in table.rows():
        cells = [row.values.get(column) for column in columns]
        digest.update(json.dumps(cells, default=repr).encode())
    return digest.hexdigest()
