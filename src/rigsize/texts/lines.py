"""Lines of a file as text, one at a time, broken UTF-8 marked and replaced."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple, cast

from rigsize.errors import SpecError
from rigsize.texts.source import DataSource

__all__ = ["LONGEST_LINE_BYTES", "Line", "lines"]

LONGEST_LINE_BYTES = 64 * 1024**2
"""A file without line ends must not be read into memory whole."""
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """One line without its end."""

    number: int
    """From 1."""
    text: str
    broken: bool
    """It held bytes that are not UTF-8; each is now U+FFFD."""


def lines(source: DataSource) -> Iterator[Line]:
    """Every line; SpecError where the file cannot be read or is UTF-16."""
    with _opened(source) as stream:
        number = 0
        while data := stream.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if number == 1:
                data = _without_bom(data, source)
            if len(data) > LONGEST_LINE_BYTES:
                limit = f"more than {LONGEST_LINE_BYTES // 1024**2} MiB without a line end"
                raise SpecError("data", source.path, f"line {number:,}: {limit}")
            yield _line(number, data)


def _line(number: int, data: bytes) -> Line:
    data = data.rstrip(b"\r\n")
    try:
        return Line(number, data.decode(), broken=False)
    except UnicodeDecodeError:
        return Line(number, data.decode(errors="replace"), broken=True)


def _without_bom(data: bytes, source: DataSource) -> bytes:
    if data.startswith(_OTHER_BOMS):
        raise SpecError("data", source.path, "UTF-16, not UTF-8", hint="save it as UTF-8")
    return data.removeprefix(_BOM)


@contextmanager
def _opened(source: DataSource) -> Iterator[IO[bytes]]:
    try:
        with source.file.open("rb") as file:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if source.compressed else file
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise SpecError("data", source.path, "a gzip file that is cut or broken") from None
    except OSError as error:
        raise SpecError("data", source.path, f"cannot be read ({error.strerror})") from None
