"""Texts: read from plain formats, tokenised once, kept on disk, counted."""

from rigsize.texts.source import DataSource

__all__ = ["DataSource"]
