"""Texts: read from plain formats, tokenised once, kept on disk, counted."""

from rigsize.texts.source import DataSource
from rigsize.texts.stats import LengthHistogram, read_histogram

__all__ = ["DataSource", "LengthHistogram", "read_histogram"]
