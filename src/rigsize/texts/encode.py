"""Rows to token ids, a thousand at a time, straight to disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rigsize.errors import SpecError
from rigsize.texts.columns import Columns
from rigsize.texts.labels import IGNORED, LabelCounts, LabelScheme, label_scheme
from rigsize.texts.limits import LABELLED, PAIRED, Limits
from rigsize.texts.readers import Row, Table
from rigsize.texts.store import Writer

__all__ = ["write_texts"]

_CHUNK = 1000
_ROWS_SHOWN = 5
_HALVES = re.compile("[\ud800-\udfff]")
_SPECIAL = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")


@dataclass(slots=True)
class _Clean:
    """A row that has all its task needs."""

    number: int
    text: Any
    """A string, or the list of its tokens."""
    target: str | None
    label: Any


@dataclass(slots=True)
class _Tally:
    """Counts for the ReadReport, with the first rows of each."""

    rows: int = 0
    kept: int = 0
    largest_id: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first_rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, number: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        rows = self.first_rows.setdefault(name, [])
        if len(rows) < _ROWS_SHOWN:
            rows.append(number)

    def report(self, columns: Columns) -> dict[str, Any]:
        names = ("empty", "truncated", "second_truncated", "broken_utf8")
        return {
            "rows": self.rows,
            "kept": self.kept,
            **{name: self.counts.get(name, 0) for name in names},
            "first_rows": {name: self.first_rows.get(name, []) for name in names},
            "columns": columns.told(),
        }


def write_texts(
    writer: Writer,
    table: Table,
    columns: Columns,
    tokenizer: Any,
    limits: Limits,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Fills the writer's arrays and gives the rest of what `TokenisedTexts` reads.

    Raises:
        SpecError: no text at all, no row that is UTF-8, a label out of range, tags that do not
            match their tokens, or a limit without room for a text's special tokens.
    """
    _check_room(tokenizer, limits)
    scheme = _scheme(table, columns, limits)
    tally = _Tally()
    for chunk in _chunks(_clean_rows(table, columns, limits.task, tally)):
        _write_chunk(writer, chunk, tokenizer, limits, scheme, tally)
        if progress:
            progress(tally.rows)
    _check_kept(tally, columns)
    return {
        "report": tally.report(columns),
        "label_names": list(scheme.names) if scheme else [],
        "largest_id": tally.largest_id,
        "special_ids": _special_ids(tokenizer),
    }


def _check_room(tokenizer: Any, limits: Limits) -> None:
    special = int(tokenizer.num_special_tokens_to_add())
    shortest = min(limits.max_length, limits.second_length)
    if shortest <= special:
        problem = f"no room for a text: the tokenizer adds {special} special tokens"
        raise SpecError("max-length", shortest, problem, allowed=(f"{special + 1} or more",))


def _check_kept(tally: _Tally, columns: Columns) -> None:
    if tally.rows == 0:
        raise SpecError("data", columns.text, "no rows in it")
    if tally.counts.get("broken_utf8", 0) == tally.rows:
        hint = "convert the file to UTF-8, as with iconv -f latin1 -t utf-8"
        raise SpecError("data", columns.text, "not one of its rows is UTF-8", hint=hint)
    if tally.kept == 0:
        raise SpecError("data", columns.text, f"none of its {tally.rows:,} rows has a text")


def _special_ids(tokenizer: Any) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    return {name: number for name, number in ids.items() if number is not None}


# -- rows ---------------------------------------------------------------------------------------


def _scheme(table: Table, columns: Columns, limits: Limits) -> LabelScheme | None:
    """Reads every label once, before the long work begins."""
    if columns.label is None or limits.task not in LABELLED:
        return None
    counts = LabelCounts(columns.label)
    for row in _clean_rows(table, columns, limits.task, _Tally()):
        counts.add(row.number, row.label)
    names = limits.label_names or table.class_names.get(columns.label)
    return label_scheme(counts, names=names, num_labels=limits.num_labels)


def _clean_rows(table: Table, columns: Columns, task: str, tally: _Tally) -> Iterator[_Clean]:
    for row in table.rows():
        tally.rows += 1
        if task == "token-classification":
            clean, broken = _clean_tokens(row, columns)
        else:
            clean, broken = _clean_texts(row, columns, paired=task in PAIRED)
        if row.broken or broken:
            tally.add("broken_utf8", row.number)
        if clean is None:
            tally.add("empty", row.number)
        else:
            yield clean


def _clean_texts(row: Row, columns: Columns, *, paired: bool) -> tuple[_Clean | None, bool]:
    text, broken = _text(row, columns.text)
    target, target_broken = _text(row, columns.target or "") if paired else (None, False)
    broken = broken or target_broken
    if not text or (paired and not target):
        return None, broken
    label = row.values.get(columns.label) if columns.label else None
    if isinstance(label, list | dict):
        problem = f"row {row.number:,} holds several labels; one a text is read"
        raise SpecError("label-column", columns.label or "", problem)
    return _Clean(row.number, text, target, label), broken


def _text(row: Row, column: str) -> tuple[str, bool]:
    """The stripped text of a cell, "" where there is none; True where it was not Unicode."""
    value = row.values.get(column)
    if value is None or (isinstance(value, float) and value != value):
        return "", False
    if isinstance(value, list | dict):
        problem = f"row {row.number:,} holds no text in this column"
        raise SpecError("text-column", column, problem)
    return _unicode(str(value).strip())


def _unicode(text: str) -> tuple[str, bool]:
    # JSON can spell half of a surrogate pair, which is no character; tokenizers refuse it.
    if text.isascii() or not _HALVES.search(text):
        return text, False
    return _HALVES.sub("\ufffd", text), True


def _clean_tokens(row: Row, columns: Columns) -> tuple[_Clean | None, bool]:
    tokens = row.values.get(columns.text) or []
    tags = row.values.get(columns.label or "") or []
    if not all(isinstance(value, list | tuple) for value in (tokens, tags)):
        problem = f"row {row.number:,} holds no lists of tokens and of tags"
        hint = "write JSON lines: the tokens of a text in one list, their tags in another"
        raise SpecError("text-column", columns.text, problem, hint=hint)
    if len(tokens) != len(tags):
        problem = f"row {row.number:,} has {len(tokens)} tokens and {len(tags)} tags"
        raise SpecError("label-column", columns.label, problem)
    cleaned = [_unicode(str(token)) for token in tokens]
    broken = any(one_broken for _, one_broken in cleaned)
    if not any(text.strip() for text, _ in cleaned):
        return None, broken
    return _Clean(row.number, [text for text, _ in cleaned], None, list(tags)), broken


def _chunks(rows: Iterable[_Clean]) -> Iterator[list[_Clean]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


# -- ids ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ids:
    """The ids of some texts, cut to a limit, and how long each was before."""

    ids: list[list[int]]
    full_lengths: list[int]
    word_ids: list[list[int | None]]
    """Of each token, which word it is a part of; only where the text came as words."""


def _write_chunk(
    writer: Writer,
    chunk: list[_Clean],
    tokenizer: Any,
    limits: Limits,
    scheme: LabelScheme | None,
    tally: _Tally,
) -> None:
    words = limits.task == "token-classification"
    first = _encode(tokenizer, [row.text for row in chunk], limits.max_length, words=words)
    second = None
    if limits.task in PAIRED:
        targets = [row.target for row in chunk]
        as_target = limits.task == "seq2seq-lm"
        second = _encode(tokenizer, targets, limits.second_length, target=as_target)
    kept = [n for n in range(len(chunk)) if first.ids[n] and (second is None or second.ids[n])]
    _count(chunk, set(kept), first, second, tally)
    writer.append_lists("ids", (first.ids[n] for n in kept))
    writer.append("full_lengths", (first.full_lengths[n] for n in kept))
    if second is not None:
        writer.append_lists("second_ids", (second.ids[n] for n in kept))
        writer.append("second_full_lengths", (second.full_lengths[n] for n in kept))
    if scheme is not None and words:
        tags = (_token_labels(first.word_ids[n], chunk[n].label, scheme) for n in kept)
        writer.append_lists("second_ids", tags)
    elif scheme is not None:
        writer.append("labels", (scheme.id_of(chunk[n].label) for n in kept))


def _count(
    chunk: list[_Clean], kept: set[int], first: _Ids, second: _Ids | None, tally: _Tally
) -> None:
    tally.kept += len(kept)
    for n, row in enumerate(chunk):
        if n not in kept:
            tally.add("empty", row.number)  # spaces to Python or not, it made no token
            continue
        for name, ids in (("truncated", first), ("second_truncated", second)):
            if ids is None:
                continue
            tally.largest_id = max(tally.largest_id, *ids.ids[n])
            if ids.full_lengths[n] > len(ids.ids[n]):
                tally.add(name, row.number)


def _encode(
    tokenizer: Any, texts: list[Any], limit: int, *, words: bool = False, target: bool = False
) -> _Ids:
    """Whole first, for the true length; only the long ones a second time, cut by the tokenizer."""
    options = {
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "is_split_into_words": words,
        "verbose": False,
    }
    name = "text_target" if target else "text"
    whole = tokenizer(**{name: texts}, **options)
    ids = list(whole["input_ids"])
    word_ids = [whole.word_ids(n) for n in range(len(texts))] if words else []
    lengths = [len(one) for one in ids]
    long = [n for n, length in enumerate(lengths) if length > limit]
    if long:
        again = [texts[n] for n in long]
        cut = tokenizer(**{name: again}, truncation=True, max_length=limit, **options)
        for place, n in enumerate(long):
            ids[n] = cut["input_ids"][place]
            if words:
                word_ids[n] = cut.word_ids(place)
    return _Ids(ids, lengths, word_ids)


def _token_labels(word_ids: list[int | None], tags: list[Any], scheme: LabelScheme) -> list[int]:
    """A word's tag on its first token; the others and special tokens do not count."""
    labels, before = [], None
    for word in word_ids:
        new = word is not None and word != before
        labels.append(scheme.id_of(tags[word]) if new else IGNORED)  # type: ignore[index]
        before = word
    return labels
