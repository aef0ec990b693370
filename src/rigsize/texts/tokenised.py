"""Texts as token ids: tokenised once, cached by content, read without loading them into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rigsize.errors import SpecError
from rigsize.texts.columns import Columns, choose_columns
from rigsize.texts.content import content_digest
from rigsize.texts.limits import LABELLED, Limits
from rigsize.texts.readers import open_table
from rigsize.texts.source import DataSource
from rigsize.texts.store import Writer, cache_folder, new_folder, open_array, read_meta
from rigsize.texts.tokenizer import TokenizerLike, tokenizer_digest

if TYPE_CHECKING:
    from rigsize.texts.readers import Table

__all__ = ["Example", "Limits", "ReadReport", "TokenisedTexts", "open_texts", "prepare", "split"]

_FORMAT = 1
"""Of the folder; another one is tokenised anew."""
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Example:
    """One text."""

    input_ids: Ids
    """Special tokens included, not padded."""
    label: int | None = None
    """Of sequence-classification."""
    second: Ids | None = None
    """The target's ids (seq2seq-lm), the positive's (embedding) or a label a token, -100 where
    it does not count (token-classification)."""


_PROBLEMS = {
    "empty": "empty, left out",
    "truncated": "longer than the limit, cut",
    "second_truncated": "targets longer than the limit, cut",
    "broken_utf8": "with bytes that are not UTF-8, replaced",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """What reading found; row numbers are the first few of each."""

    rows: int
    kept: int
    empty: int
    """Left out: no text, no target, or nothing that makes a token."""
    truncated: int
    """Longer than the limit; cut to it."""
    second_truncated: int
    """The target or positive was."""
    broken_utf8: int
    """Kept, with U+FFFD in place of each byte that is not UTF-8."""
    first_rows: Mapping[str, tuple[int, ...]]
    """By the names above."""
    columns: str
    """Which columns were read, and which of them nobody named."""

    def problems(self) -> tuple[str, ...]:
        """`12 empty, left out (row 4, 19 ...)`, one each; empty where all was well."""
        return tuple(
            f"{count:,} {words} (row {self._shown(name, count)})"
            for name, words in _PROBLEMS.items()
            if (count := getattr(self, name))
        )

    def _shown(self, name: str, count: int) -> str:
        first = self.first_rows[name]
        more = " ..." if count > len(first) else ""
        return ", ".join(f"{number:,}" for number in first) + more


class TokenisedTexts:
    """A set of tokenised texts on disk; nothing but the pages in use is in memory."""

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self._meta = meta
        self._ids = open_array(folder, "ids", meta)
        self._offsets = open_array(folder, "offsets", meta)
        self._second_ids = open_array(folder, "second_ids", meta)
        self._second_offsets = open_array(folder, "second_offsets", meta)
        self.labels: npt.NDArray[np.int64] | None = open_array(folder, "labels", meta)
        """A class a text, of sequence-classification."""

    def __reduce__(self) -> tuple[Callable[[Path], TokenisedTexts], tuple[Path]]:
        # A loader's worker maps the files again; a pickled memmap would be a copy of all ids.
        return _reopened, (self.folder,)

    def __len__(self) -> int:
        return int(self._meta["report"]["kept"])

    def example(self, index: int) -> Example:
        """The text at `index`, from 0; IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        label = None if self.labels is None else int(self.labels[index])
        return Example(
            _piece(self._ids, self._offsets, index),
            label,
            None
            if self._second_ids is None
            else _piece(self._second_ids, self._second_offsets, index),
        )

    @cached_property
    def lengths(self) -> Ids:
        """Tokens of each text as kept, special ones included."""
        assert self._offsets is not None
        return np.diff(self._offsets).astype(np.int32)

    @cached_property
    def second_lengths(self) -> Ids | None:
        """Tokens of each target or positive as kept; None where the task has none."""
        if self._second_offsets is None or self.task == "token-classification":
            return None
        return np.diff(self._second_offsets).astype(np.int32)

    @property
    def token_labels(self) -> Ids | None:
        """Every token's label one after the other (token-classification), -100 for none."""
        return self._second_ids if self.task == "token-classification" else None

    @property
    def full_lengths(self) -> Ids:
        """Tokens of each text before any was cut."""
        return open_array(self.folder, "full_lengths", self._meta)  # type: ignore[return-value]

    @property
    def second_full_lengths(self) -> Ids | None:
        """Tokens of each target or positive before any was cut."""
        return open_array(self.folder, "second_full_lengths", self._meta)

    @property
    def task(self) -> str:
        """One of `rigsize.spec.TASKS`."""
        return str(self._meta["task"])

    @property
    def label_names(self) -> tuple[str, ...]:
        """By id; empty where the task has no labels."""
        return tuple(self._meta["label_names"])

    @property
    def largest_id(self) -> int:
        """The highest token id that occurs: the model's vocabulary must be larger."""
        return int(self._meta["largest_id"])

    @property
    def special_ids(self) -> dict[str, int]:
        """`{"pad": 1, "mask": 250001, ...}`, those the tokenizer has."""
        return dict(self._meta["special_ids"])

    @property
    def fingerprint(self) -> str:
        """Of content, columns, tokenizer, task and limits, in 32 characters."""
        return str(self._meta["fingerprint"])

    @property
    def report(self) -> ReadReport:
        """What reading found."""
        report = dict(self._meta["report"])
        report["first_rows"] = {k: tuple(v) for k, v in report["first_rows"].items()}
        return ReadReport(**report)


def _piece(ids: Ids | None, offsets: npt.NDArray[np.int64] | None, index: int) -> Ids:
    assert ids is not None
    assert offsets is not None
    return np.asarray(ids[offsets[index] : offsets[index + 1]])


def _reopened(folder: Path) -> TokenisedTexts:
    texts = open_texts(folder)
    if texts is None:
        raise SpecError("cache", str(folder), "the tokenised texts are no longer there")
    return texts


def open_texts(folder: Path) -> TokenisedTexts | None:
    """The tokenised texts of a cache folder; None where there are none, or not whole."""
    meta = read_meta(folder)
    if meta is None or meta.get("format") != _FORMAT:
        return None
    return TokenisedTexts(folder, meta)


def _is_whole(folder: Path) -> bool:
    return open_texts(folder) is not None


def prepare(
    source: DataSource,
    tokenizer: TokenizerLike,
    *,
    task: str,
    max_length: int,
    max_target_length: int | None = None,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenisedTexts:
    """The texts of a source as token ids, tokenised now or found in the cache.

    Args:
        source: where they are, and which columns to read.
        tokenizer: a loaded fast tokenizer, or its folder or hub id: then it is only loaded where
            the cache does not answer.
        task: one of `rigsize.spec.TASKS`.
        max_length: tokens a text, special ones included; longer ones are cut and counted.
        max_target_length: tokens a target or positive; `max_length` where None.
        num_labels: classes of the head; a label beyond them is an error with its rows.
        label_names: by id; give those of the training set for an evaluation file.
        cache: the folder to keep them in; the user's cache folder where None.
        progress: called with the number of rows read so far.

    Raises:
        SpecError: the data cannot be used: which column, which rows, and why.
        MeasurementFailed: no space for the cache, or a hub that does not answer.
    """
    limits = Limits(
        task=task,
        max_length=max_length,
        max_target_length=max_target_length,
        num_labels=num_labels,
        label_names=None if label_names is None else tuple(label_names),
    )
    table = open_table(source)
    columns = choose_columns(source, table.columns, task, labelled=task in LABELLED)
    key = _fingerprint(source, table, columns, tokenizer, limits)
    folder = (cache or cache_folder()) / key
    found = open_texts(folder)
    if found is None:
        _write(folder, key, table, columns, tokenizer, limits, progress)
        found = _reopened(folder)
    return found


def _write(
    folder: Path,
    key: str,
    table: Table,
    columns: Columns,
    tokenizer: TokenizerLike,
    limits: Limits,
    progress: Callable[[int], None] | None,
) -> None:
    from rigsize.texts.encode import write_texts  # late: what is cached needs no tokenizer
    from rigsize.texts.tokenizer import loaded

    with new_folder(folder, _is_whole) as partial, Writer(partial) as writer:
        meta = write_texts(writer, table, columns, loaded(tokenizer), limits, progress)
        writer.finish({"format": _FORMAT, "fingerprint": key, "task": limits.task, **meta})


def _fingerprint(
    source: DataSource,
    table: Table,
    columns: Columns,
    tokenizer: TokenizerLike,
    limits: Limits,
) -> str:
    parts = {
        "format": _FORMAT,
        "content": content_digest(source, table, columns.names),
        "columns": asdict(columns),
        "tokenizer": tokenizer_digest(tokenizer),
        "limits": asdict(limits),
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def split(
    texts: TokenisedTexts | int, eval_share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices to train on and indices held out, the same for the same seed.

    Each is sorted. A share above 0 holds out one text at least and leaves one at least.
    """
    count = texts if isinstance(texts, int) else len(texts)
    if not 0 <= eval_share < 1:
        raise SpecError("eval-share", eval_share, "not a share", allowed=("0 up to below 1",))
    if eval_share and count < 2:
        raise SpecError("eval-share", eval_share, "a single text cannot be split")
    held = min(max(round(count * eval_share), 1), count - 1) if eval_share else 0
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
