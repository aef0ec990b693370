"""Rows of a user's CSV file, cell by cell; every mistake names the row and the column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from rigsize.errors import SpecError, nearest

__all__ = ["Row", "read_rows"]

T = TypeVar("T")
LARGEST_FILE_BYTES = 64 * 1024**2


def read_rows(
    path: Path, field: str, columns: Sequence[str], required: Sequence[str]
) -> Iterator[Row]:
    """The rows of a file with a header, UTF-8 with or without a byte order mark.

    Args:
        path: the file.
        field: the option that names it.
        columns: what may stand in the header.
        required: what has to.

    Raises:
        SpecError: unreadable, empty or malformed; the row is counted as a spreadsheet counts.
    """
    reader = csv.DictReader(io.StringIO(_text(path, field), newline=""), strict=True)
    empty = True
    try:
        _check_header(path, field, reader.fieldnames, columns, required)
        for cells in reader:
            empty = False
            yield Row(path, field, reader.line_num, cells)
    except csv.Error as error:
        place = f"{path.name} row {reader.line_num}"
        raise SpecError(field, str(path), f"{place}: no CSV ({error})") from None
    if empty:
        raise SpecError(field, str(path), "the file has a header and no row")


def _text(path: Path, field: str) -> str:
    try:
        with path.open("rb") as file:  # perhaps a pipe, or a device without an end
            read = file.read(LARGEST_FILE_BYTES + 1)
        text = read.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(field, str(path), "no UTF-8 text", hint="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SpecError(field, str(path), f"cannot be read ({why})") from None
    if len(read) > LARGEST_FILE_BYTES:
        raise SpecError(field, str(path), "too large", allowed=("up to 64 MiB",))
    return text


def _check_header(
    path: Path,
    field: str,
    header: Iterable[str] | None,
    columns: Sequence[str],
    required: Sequence[str],
) -> None:
    names = list(header or ())
    if not names:
        raise SpecError(field, str(path), "the file is empty", allowed=columns)
    for name in names:
        if name not in columns:
            problem = f"{path.name}: no such column"
            raise SpecError(field, name, problem, allowed=columns, nearest=nearest(name, columns))
        if names.count(name) > 1:
            raise SpecError(field, name, f"{path.name}: the column is there twice")
    for name in required:
        if name not in names:
            raise SpecError(field, name, f"{path.name}: the column is missing", allowed=columns)


class Row:
    """One row of a file."""

    def __init__(
        self, path: Path, field: str, number: int, cells: Mapping[str | None, str | None]
    ) -> None:
        self.place = f"{path.name} row {number}"
        self.file, self.field = path.name, field
        if None in cells or None in cells.values():
            raise SpecError(field, self.place, "more or fewer cells than the header has")
        self.cells = {str(name): str(cell).strip() for name, cell in cells.items()}

    def text(self, column: str) -> str:
        """The cell; empty where there is none."""
        return self.cells.get(column, "")

    def required(self, column: str) -> str:
        """The cell, which may not be empty."""
        return self.text(column) or self.refuse(column, "empty")

    def number(self, column: str, most: float, *, above_zero: bool = False) -> float | None:
        """From 0, or above it, to `most`; None where the cell is empty."""
        value = self.parsed(column, float, "not a number")
        if value is None:
            return None
        if value < 0:
            self.refuse(column, "negative")
        if not math.isfinite(value) or value > most:
            self.refuse(column, f"not a number up to {most:g}")
        if above_zero and not value:
            self.refuse(column, "0; empty where it is not known")
        return value + 0.0  # no -0

    def whole(self, column: str, most: float) -> int | None:
        """From 1 to `most`; None where the cell is empty."""
        value = self.parsed(column, int, "not a whole number")
        if value is not None and not 1 <= value <= most:
            self.refuse(column, f"not a whole number from 1 to {most:g}")
        return value

    def parsed(self, column: str, parse: Callable[[str], T], problem: str) -> T | None:
        """What `parse` makes of the cell; None where it is empty."""
        cell = self.text(column)
        if not cell:
            return None
        try:
            return parse(cell)
        except ValueError:
            return self.refuse(column, problem)

    def refuse(self, column: str, problem: str) -> NoReturn:
        """SpecError of this row and column."""
        raise SpecError(self.field, self.text(column), f"{self.place}, column {column}: {problem}")
