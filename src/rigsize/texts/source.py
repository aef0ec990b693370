"""What a person names as data: a file, a saved folder or a hub id, and which format that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rigsize.errors import SpecError
from rigsize.models.hub import is_hub_id

__all__ = ["SUFFIXES", "DataSource", "Kind"]

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "saved", "hub"]

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
}
"""Formats by the end of the file's name; `.gz` may follow all but .parquet."""
_UNPACKABLE = frozenset({".pkl", ".pickle", ".pt", ".pth", ".npy", ".bin", ".py"})
_HINT = "give a .jsonl, .csv, .tsv, .parquet or .txt file, a folder of save_to_disk or a hub id"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where texts are, and which of their columns to read; columns not named are guessed."""

    path: str
    """A file, a folder that `datasets` saved, or a hub id (`organisation/name`)."""
    text_column: str | None = None
    """The text, the tokens (token-classification) or the anchor (embedding)."""
    label_column: str | None = None
    """Class names or numbers, or one tag a token."""
    target_column: str | None = None
    """The target (seq2seq-lm) or the positive (embedding)."""
    split: str = "train"
    """Of a saved folder or a hub id with several."""
    subset: str | None = None
    """The hub's configuration of the data set, such as a language."""
    max_rows: int | None = None
    """Only the first rows; a hub id is then streamed and not downloaded whole."""

    def __post_init__(self) -> None:
        if not self.path.strip() or "\0" in self.path:
            raise SpecError("data", self.path, "not a path or a hub id", hint=_HINT)
        if self.max_rows is not None and self.max_rows < 1:
            raise SpecError("max-rows", self.max_rows, "not a number in range", allowed=("1 ...",))

    @property
    def file(self) -> Path:
        """The path with `~` written out."""
        return Path(self.path).expanduser()

    @property
    def compressed(self) -> bool:
        """Whether the file is gzip by its name."""
        return self.file.suffix.lower() == ".gz"

    def kind(self) -> Kind:
        """The format; SpecError where there is no such file or no such format."""
        try:
            is_folder, is_file = self.file.is_dir(), self.file.is_file()
            exists = self.file.exists()
        except (OSError, RuntimeError):  # a name too long, no home folder
            is_folder = is_file = exists = False
        if is_folder:
            return self._saved()
        if exists and not is_file:
            raise SpecError("data", self.path, "not a regular file")
        return self._by_suffix() if is_file else self._hub()

    def _saved(self) -> Kind:
        marks = ("state.json", "dataset_dict.json")
        if not any((self.file / mark).is_file() for mark in marks):
            hint = "a folder must be one that datasets.save_to_disk wrote; else name a file in it"
            raise SpecError("data", self.path, "no saved data set in this folder", hint=hint)
        return "saved"

    def _suffix(self) -> str:
        name = self.file.with_suffix("") if self.compressed else self.file
        return name.suffix.lower()

    def _by_suffix(self) -> Kind:
        kind = SUFFIXES.get(self._suffix())
        if kind is None or (kind == "parquet" and self.compressed):
            problem = f"files ending in {self.file.suffix or 'nothing'} are not read"
            if self._suffix() in _UNPACKABLE:
                problem += ": only plain formats, never one that can run code"
            raise SpecError("data", self.path, problem, allowed=SUFFIXES, hint=_HINT)
        return kind

    def _hub(self) -> Kind:
        missing = self._suffix() in SUFFIXES or self._suffix() in _UNPACKABLE
        if missing or not is_hub_id(self.path) or self.path.startswith((".", "/", "~")):
            raise SpecError("data", self.path, "no such file or folder", hint=_HINT)
        return "hub"
