"""What `rigsize data stats` answers: a file's rows, labels, lengths and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rigsize.texts.stats import COVERED, PERCENTILES, LengthHistogram, PaddingShares
from rigsize.texts.tokenised import ReadReport, TokenisedTexts

__all__ = ["FileStats", "file_stats", "histogram_of", "stats_document", "stats_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStats:
    """What is to be known of a file before a run."""

    path: str
    task: str
    tokenizer: str
    max_length: int
    batch_size: int
    report: ReadReport
    labels: Mapping[str, int]
    """Texts a class (tokens a tag), by name; empty where the task has none."""
    lengths: LengthHistogram
    targets: LengthHistogram | None
    """Of targets or positives."""
    max_target_length: int
    fingerprint: str

    @property
    def padding(self) -> PaddingShares:
        """Of the texts, cut to the limit."""
        return self.lengths.padding(self.max_length, self.batch_size)


def file_stats(
    texts: TokenisedTexts,
    *,
    path: str,
    tokenizer: str,
    max_length: int,
    batch_size: int,
    max_target_length: int | None = None,
) -> FileStats:
    """The statistics of tokenised texts."""
    second = texts.second_full_lengths
    return FileStats(
        path=path,
        task=texts.task,
        tokenizer=tokenizer,
        max_length=max_length,
        batch_size=batch_size,
        report=texts.report,
        labels=_label_counts(texts),
        lengths=histogram_of(texts.full_lengths),
        targets=None if second is None else histogram_of(second),
        max_target_length=max_target_length or max_length,
        fingerprint=texts.fingerprint,
    )


def histogram_of(lengths: Any) -> LengthHistogram:
    """How many of an array of lengths are which."""
    values, counts = np.unique(lengths, return_counts=True)
    return LengthHistogram(tuple(zip(values.tolist(), counts.tolist(), strict=True)))


def _label_counts(texts: TokenisedTexts) -> dict[str, int]:
    names = texts.label_names
    labels = texts.labels if texts.labels is not None else texts.token_labels
    if labels is None or not names:
        return {}
    counts = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def stats_document(stats: FileStats) -> dict[str, Any]:
    """As JSON; `histogram` is what `read_histogram` takes."""
    report = asdict(stats.report)
    document = {
        "data": stats.path,
        "task": stats.task,
        "tokenizer": stats.tokenizer,
        "fingerprint": stats.fingerprint,
        **report,
        "labels": dict(stats.labels),
        "max_length": stats.max_length,
        **_lengths(stats.lengths, stats.max_length),
        "padding": {"batch_size": stats.batch_size, **asdict(stats.padding)},
        "histogram": stats.lengths.to_json(),
        "targets": None,
    }
    if stats.targets is None:
        return document | {"targets_unknown_reason": f"{stats.task} has no targets"}
    targets = _lengths(stats.targets, stats.max_target_length)
    limit = {"max_length": stats.max_target_length, "histogram": stats.targets.to_json()}
    return document | {"targets": limit | targets}


def _lengths(lengths: LengthHistogram, limit: int) -> dict[str, Any]:
    return {
        "tokens": lengths.tokens,
        "lengths": {
            "mean": lengths.mean,
            **{f"p{p.replace('.', '_')}": lengths.percentile(p) for p in PERCENTILES},
            "longest": lengths.longest,
        },
        "covering": {"share": float(COVERED), "length": lengths.covering()},
        "share_cut": lengths.share_cut(limit),
    }


def stats_text(stats: FileStats) -> list[str]:
    """As lines; the console wraps them."""
    report = stats.report
    parts = [
        f"{stats.path}: {report.rows:,} rows, {report.kept:,} of them used",
        f"  read: {report.columns}",
        *(f"  {problem}" for problem in report.problems()),
    ]
    if stats.labels:
        shown = ", ".join(f"{name} {count:,}" for name, count in _some(stats.labels))
        parts.append(f"  labels: {shown}")
    parts += _length_lines("tokens a text", stats.lengths, stats.max_length)
    if stats.targets is not None:
        parts += _length_lines("tokens a target", stats.targets, stats.max_target_length)
    return [*parts, *_padding_lines(stats), f"  tokenizer: {stats.tokenizer}"]


_LABELS_SHOWN = 20


def _some(labels: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(labels.items(), key=lambda item: -item[1])[:_LABELS_SHOWN]


def _length_lines(title: str, lengths: LengthHistogram, limit: int) -> list[str]:
    percentiles = ", ".join(f"p{p} {lengths.percentile(p):,}" for p in PERCENTILES)
    return [
        f"  {title}: mean {lengths.mean:.1f}, {percentiles}, longest {lengths.longest:,}",
        f"  {float(COVERED):.2%} fit in {lengths.covering():,} tokens;"
        f" the limit of {limit:,} cuts {lengths.share_cut(limit):.2%}",
    ]


def _padding_lines(stats: FileStats) -> list[str]:
    shares = stats.padding
    return [
        f"  padding, batches of {stats.batch_size}: fixed {shares.fixed:.1%},"
        f" dynamic {shares.dynamic:.1%}, dynamic sorted by length {shares.dynamic_sorted:.1%},"
        " unpadded 0%",
    ]
