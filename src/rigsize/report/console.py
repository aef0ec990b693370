"""The console every text report is written to. Importing this imports rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["make_console", "table", "write"]

PLAIN_WIDTH = 110
"""Columns where stdout is no terminal."""


def make_console() -> Console:
    """Colours on a terminal only; elsewhere plain text of a fixed width."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(
        file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def write(parts: Iterable[RenderableType]) -> None:
    """Each part on stdout, text wrapped with its own indent."""
    console = make_console()
    with console.capture() as captured:
        for part in parts:
            console.print(_wrapped(part, console.width) if isinstance(part, str) else part)
    text = captured.get()
    if not console.is_terminal:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    sys.stdout.write(text)


def table(title: str | None, *columns: str, right: Iterable[str] = ()) -> Table:
    """A table without a frame; columns named in `right` hold numbers."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    numbers = set(right)
    for name in columns:
        number = name in numbers
        made.add_column(
            name, justify="right" if number else "left", overflow="fold", no_wrap=number
        )
    return made


def _wrapped(text: str, width: int) -> Text:
    """Lines broken at words, continued two columns further in."""
    import textwrap

    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True
        ) or [""]
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")
