"""How many texts a file has, where nothing else of it is asked: no tokenizer, no numpy."""

from __future__ import annotations

from rigsize.errors import SpecError
from rigsize.texts.columns import choose_columns
from rigsize.texts.readers import open_table
from rigsize.texts.source import DataSource

__all__ = ["count_texts"]


def count_texts(source: DataSource, task: str) -> int:
    """Rows whose text is there and not blank; SpecError where there is none or no such column."""
    table = open_table(source)
    column = choose_columns(source, table.columns, task, labelled=False).text
    count = sum(1 for row in table.rows() if _has_text(row.values.get(column)))
    if not count:
        raise SpecError("data", source.path, f'no text in the column "{column}"')
    return count


def _has_text(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)
