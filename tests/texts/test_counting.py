"""Counting texts without reading what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigsize.errors import SpecError
from rigsize.texts.counting import count_texts
from rigsize.texts.source import DataSource


def test_blank_texts_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\nhello,1\n"  ",0\nyou,\n')
    # No label is asked of what is only counted.
    assert count_texts(DataSource(path=str(path)), "sequence-classification") == 2


def test_a_file_without_texts_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n,1\n")
    with pytest.raises(SpecError, match="no text in the column"):
        count_texts(DataSource(path=str(path)), "masked-lm")
