"""From a DataSource to rows, streamed: no format is ever read into memory whole.

JSONL, CSV, TSV and text by the standard library, Parquet by pyarrow, saved folders and hub ids by
`datasets`. No reader unpickles, runs a loading script or trusts code that lies beside the data.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rigsize.errors import SpecError
from rigsize.texts.lines import LONGEST_LINE_BYTES, Line, lines
from rigsize.texts.source import DataSource

__all__ = ["Row", "Table", "open_table", "rows"]

_ROWS_FOR_COLUMNS = 100
_Rows = Callable[[], "Iterator[Row]"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read."""

    number: int
    """From 1: the line in JSONL and text files, else the row below the header."""
    values: Mapping[str, Any]
    broken: bool = False
    """It held bytes that are not UTF-8, now U+FFFD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that can be read again and again, and what is known before reading them."""

    columns: tuple[str, ...]
    """Of JSON lines: those of the first hundred rows."""
    rows: _Rows
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of columns whose file says what its numbers stand for (`datasets.ClassLabel`)."""


def rows(source: DataSource) -> Iterator[Row]:
    """The rows of a source, one at a time; SpecError with the row's number on a malformed one."""
    return open_table(source).rows()


def open_table(source: DataSource) -> Table:
    """The columns of a source and a way to its rows; SpecError where it has none."""
    table = _TABLES[source.kind()](source)
    if source.max_rows is None:
        return table
    return Table(
        columns=table.columns,
        class_names=table.class_names,
        rows=lambda: islice(table.rows(), source.max_rows),
    )


# -- lines --------------------------------------------------------------------------------------


def _text_table(source: DataSource) -> Table:
    def read() -> Iterator[Row]:
        return (Row(line.number, {"text": line.text}, line.broken) for line in lines(source))

    return Table(columns=("text",), rows=read)


def _jsonl_table(source: DataSource) -> Table:
    return _without_header(source, lambda: _jsonl_rows(source))


def _jsonl_rows(source: DataSource) -> Iterator[Row]:
    for line in lines(source):
        if line.text.strip():
            yield Row(line.number, _object(_parsed(source, line), source, line.number), line.broken)


def _parsed(source: DataSource, line: Line) -> Any:
    try:
        return json.loads(line.text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "") or "nested too deep or a number too long"
        raise SpecError(
            "data", source.path, f"row {line.number:,} is not JSON ({reason})"
        ) from None


def _object(value: Any, source: DataSource, number: int) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        problem = f"row {number:,} is neither a JSON object nor a string"
        raise SpecError("data", source.path, problem)
    return value


def _json_table(source: DataSource) -> Table:
    """A .json file: one array, or JSON lines under another name."""
    first = next((line.text.lstrip() for line in lines(source) if line.text.strip()), "")
    if not first.startswith("["):
        return _jsonl_table(source)
    values = _json_array(source)
    return _without_header(
        source,
        lambda: (Row(n, _object(value, source, n)) for n, value in enumerate(values, start=1)),
    )


def _json_array(source: DataSource) -> list[Any]:
    text, size = [], 0
    for line in lines(source):
        text.append(line.text)
        size += len(line.text)
        if size > LONGEST_LINE_BYTES:
            hint = "one object a line (.jsonl) is streamed, an array is not"
            raise SpecError("data", source.path, "too long for one JSON array", hint=hint)
    try:
        values = json.loads("\n".join(text))
    except (ValueError, RecursionError) as error:
        raise SpecError("data", source.path, f"not JSON ({_reason(error)})") from None
    assert isinstance(values, list)  # it starts with a bracket
    return values


def _reason(error: Exception) -> str:
    at = f" in line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
    return getattr(error, "msg", "nested too deep or a number too long") + at


def _without_header(source: DataSource, read: _Rows) -> Table:
    names: dict[str, None] = {}
    for row in islice(read(), _ROWS_FOR_COLUMNS):
        names |= dict.fromkeys(row.values)
    return Table(columns=_some(tuple(names), source), rows=read)


def _some(columns: tuple[str, ...], source: DataSource) -> tuple[str, ...]:
    if not columns:
        raise SpecError("data", source.path, "no rows in it")
    return columns


# -- comma or tab separated ---------------------------------------------------------------------


def _separated_table(source: DataSource) -> Table:
    delimiter = "\t" if source.kind() == "tsv" else ","
    header = next(_records(source, delimiter), None)
    names = _some(tuple(header[0]) if header else (), source)
    if delimiter == "," and len(names) == 1 and ";" in names[0]:
        hint = "write it with commas, or with tabs and the ending .tsv"
        raise SpecError("data", source.path, "a CSV separated by semicolons", hint=hint)
    if len(set(names)) != len(names):
        raise SpecError("data", source.path, "two columns of its header have one name")

    def read() -> Iterator[Row]:
        records = islice(_records(source, delimiter), 1, None)
        for number, (cells, broken) in enumerate(records, start=1):
            yield Row(number, _named(names, cells, source, number), broken)

    return Table(columns=names, rows=read)


def _records(source: DataSource, delimiter: str) -> Iterator[tuple[list[str], bool]]:
    """Each record, and whether one of its lines was broken; empty lines are none."""
    # Process-wide, but only ever raised; the default of 128 KiB is less than a book.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE_BYTES))
    broken = False

    def feed() -> Iterator[str]:
        nonlocal broken
        for line in lines(source):
            broken = broken or line.broken
            yield line.text + "\n"

    reader = csv.reader(feed(), delimiter=delimiter)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = f"line {reader.line_num:,} is not separated text ({error})"
            raise SpecError("data", source.path, problem) from None
        if cells is None:
            return
        if cells:
            yield cells, broken
        broken = False


def _named(
    names: tuple[str, ...], cells: list[str], source: DataSource, number: int
) -> dict[str, str]:
    if len(cells) > len(names):
        problem = f"row {number:,} has {len(cells)} fields, the header {len(names)}"
        hint = "quote fields that hold the separator, or write JSON lines"
        raise SpecError("data", source.path, problem, hint=hint)
    return dict(zip(names, cells, strict=False))


# -- Parquet, saved folders, the hub ------------------------------------------------------------


def _parquet_table(source: DataSource) -> Table:
    from rigsize.texts.arrow import parquet_table

    return parquet_table(source)


def _saved_table(source: DataSource) -> Table:
    from rigsize.texts.arrow import saved_table

    return saved_table(source)


def _hub_table(source: DataSource) -> Table:
    from rigsize.texts.arrow import hub_table

    return hub_table(source)


_TABLES: dict[str, Callable[[DataSource], Table]] = {
    "text": _text_table,
    "jsonl": _jsonl_table,
    "json": _json_table,
    "csv": _separated_table,
    "tsv": _separated_table,
    "parquet": _parquet_table,
    "saved": _saved_table,
    "hub": _hub_table,
}
