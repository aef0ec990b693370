from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rigsize.texts.file_stats import FileStats, file_stats, stats_document, stats_text
from rigsize.texts.source import DataSource
from rigsize.texts.tokenised import prepare

Write = Callable[..., str]


def counted(path: str, tokenizer: Path, cache: Path, task: str, **more: Any) -> FileStats:
    texts = prepare(DataSource(path=path), tokenizer, task=task, max_length=5, cache=cache, **more)
    return file_stats(texts, path=path, tokenizer="words", max_length=5, batch_size=2, **more)


def test_a_file_by_hand(tmp_path: Path, tokenizer: Path, jsonl: Write) -> None:
    # Lengths with <s> and </s>: 3, 4, 9. Cut to 5: 3 + 4 + 5 of 15 positions.
    rows = [("the", "x"), ("the bus", "y"), ("the the the the the the the", "x"), ("", "x")]
    path = jsonl(*({"text": text, "label": label} for text, label in rows))
    stats = counted(path, tokenizer, tmp_path / "cache", "sequence-classification")
    assert stats.labels == {"x": 2, "y": 1}
    document = stats_document(stats)
    assert document["histogram"] == [[3, 1], [4, 1], [9, 1]]
    assert document["share_cut"] == pytest.approx(1 / 3)
    assert document["covering"] == {"share": 0.9999, "length": 9}
    assert document["padding"]["fixed"] == pytest.approx(1 - 12 / 15)
    assert (document["rows"], document["kept"], document["empty"]) == (4, 3, 1)
    assert (document["truncated"], document["first_rows"]["truncated"]) == (1, (3,))
    assert document["lengths"]["p50"] == 4
    assert (document["targets"], "targets_unknown_reason" in document) == (None, True)
    text = "\n".join(stats_text(stats))
    assert "4 rows, 3 of them used" in text
    assert "1 longer than the limit, cut (row 3)" in text
    assert "labels: x 2, y 1" in text


def test_targets_have_their_own_lengths(tmp_path: Path, tokenizer: Path, jsonl: Write) -> None:
    path = jsonl({"text": "the", "summary": "the bus"})
    stats = counted(path, tokenizer, tmp_path / "cache", "seq2seq-lm", max_target_length=3)
    document = stats_document(stats)
    assert document["targets"]["histogram"] == [[4, 1]]
    assert (document["targets"]["max_length"], document["targets"]["share_cut"]) == (3, 1.0)
    assert "tokens a target" in "\n".join(stats_text(stats))


def test_tags_are_counted_a_word_once(tmp_path: Path, tokenizer: Path, jsonl: Write) -> None:
    path = jsonl({"tokens": ["bus-bus", "the"], "tags": ["B", "O"]})
    stats = counted(path, tokenizer, tmp_path / "cache", "token-classification")
    assert stats.labels == {"B": 1, "O": 0}  # <s> bus - bus </s>: "the" was cut
