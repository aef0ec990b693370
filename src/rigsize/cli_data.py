"""`rigsize data`: statistics of a file of texts, and the demonstration's data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_settings import Settings
from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination, nearest
from rigsize.report.document import SCHEMA_VERSION, render

if TYPE_CHECKING:
    from rigsize.texts import DataSource
    from rigsize.texts.file_stats import FileStats
    from rigsize.texts.stats import LengthHistogram

__all__ = ["ACTIONS", "data_verb", "lengths_of", "source_of"]

Given = Mapping[str, str | bool]
DEFAULT_LENGTH = 512
DEFAULT_BATCH_SIZE = 8
_TOLD_ROWS = 50_000


def data_verb(given: Given) -> int:
    """`rigsize data stats FILE` and `rigsize data demo`."""
    action = str(given.get("action") or "")
    if action not in ACTIONS:
        raise SpecError(
            "data", action, "unknown action", allowed=ACTIONS, nearest=nearest(action, ACTIONS)
        )
    return ACTIONS[action](Settings(given))


def _say(text: str) -> None:
    print(f"rigsize: {text}", file=sys.stderr, flush=True)


def _print(settings: Settings, document: Mapping[str, Any], lines: list[str]) -> None:
    if settings.switch("json"):
        print(render(document))
        return
    from rigsize.report.console import write  # late: it imports rich

    write(lines)


# -- demo ---------------------------------------------------------------------------------------


def _demo(settings: Settings) -> int:
    from rigsize.texts.demo import PACKAGES, obtain

    if settings.text("file"):
        raise UnsupportedCombination("data", settings.text("file"), "demo takes no file")
    demo = obtain(_say)
    labels = ", ".join(f"{name} {count:,}" for name, count in demo.label_counts.items())
    document = {
        "texts": str(demo.texts),
        "model_folder": str(demo.model_folder),
        "rows": demo.num_texts,
        "labels": demo.label_counts,
        "sources": [
            {"package": f"{p.name}=={p.version}", "sha256": p.sha256, "licence": p.licence}
            for p in PACKAGES
        ],
    }
    lines = [
        f"{demo.num_texts:,} tweets ({labels}): {demo.texts}",
        f"multilingual-e5-small with the XLM-R vocabulary: {demo.model_folder}",
        *(f"  {p.name} {p.version}: {p.content}; licence: {p.licence}" for p in PACKAGES),
    ]
    _print(settings, document, lines)
    return 0


# -- stats --------------------------------------------------------------------------------------


def _stats(settings: Settings) -> int:
    _check_packages()
    from rigsize.texts.file_stats import stats_document, stats_text

    stats = _counted(settings)
    document = stats_document(stats)
    out = settings.text("out")
    if out is not None:
        _write(Path(out), document)
        _say(f"histogram written to {out}")
    _print(settings, document, stats_text(stats))
    return 0


def _check_packages() -> None:
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in ("numpy", "transformers")):
        hint = "pip install 'rigsize[train]'"
        raise MeasurementFailed("data", "stats", "counting tokens needs transformers", hint=hint)


def _counted(settings: Settings) -> FileStats:
    from rigsize.texts.file_stats import file_stats
    from rigsize.texts.tokenised import prepare

    source = source_of(settings)
    task = _task(settings, source)
    named = _tokenizer(settings)
    max_length = settings.integer("max-length")
    if max_length is None:
        max_length = _own_length(named, settings)
    batch_size = settings.integer("batch-size")
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if batch_size < 1:
        raise SpecError("batch-size", batch_size, "not a number of texts", allowed=("1 ...",))
    for line in settings.assumed:
        _say(f"assumed: {line}")
    texts = prepare(source, named, task=task, max_length=max_length, progress=_progress())
    return file_stats(
        texts, path=source.path, tokenizer=named, max_length=max_length, batch_size=batch_size
    )


def lengths_of(settings: Settings, task: str, model: str, max_length: int) -> LengthHistogram:
    """Lengths of the texts of `--data`, by the model's own tokenizer unless another is named."""
    source = source_of(settings, "data")
    source.kind()  # a file that is not there is told before a package that is not
    _check_packages()
    from rigsize.texts.file_stats import histogram_of
    from rigsize.texts.tokenised import prepare

    named = settings.text("tokenizer") or model
    texts = prepare(source, named, task=task, max_length=max_length, progress=_progress())
    return histogram_of(texts.full_lengths)


def source_of(settings: Settings, flag: str = "file") -> DataSource:
    """The file of a flag with the columns that were named; SpecError without one."""
    from rigsize.texts import DataSource

    path = settings.text(flag)
    if path is None:
        raise SpecError("data", "", "no file given", hint="rigsize data stats FILE")
    return DataSource(
        path=path,
        text_column=settings.text("text-column"),
        label_column=settings.text("label-column"),
        target_column=settings.text("target-column"),
    )


def _task(settings: Settings, source: DataSource) -> str:
    """As given; else classification where there is a label, and bare text where there is none."""
    from rigsize.spec import TASKS
    from rigsize.spec.checks import one_of
    from rigsize.texts.columns import choose_columns
    from rigsize.texts.readers import open_table

    named = settings.text("task")
    if named is not None:
        one_of("task", named, TASKS)
        return named
    columns = open_table(source).columns
    if source.target_column is not None:
        return settings.or_assumed("task", "seq2seq-lm", "a target column was named")
    try:
        choose_columns(source, columns, "sequence-classification")
    except SpecError as error:
        if error.field != "label-column" or source.label_column is not None:
            raise
        return settings.or_assumed("task", "masked-lm", "there is no label column")
    return settings.or_assumed("task", "sequence-classification", "there is a label column")


def _tokenizer(settings: Settings) -> str:
    from rigsize.texts.demo import find_demo
    from rigsize.texts.tokenizer import tokenizer_place

    named, demo = settings.text("tokenizer"), find_demo()
    if named is not None:
        place = tokenizer_place(named)
        if demo and place == demo.model_folder and Path(named).expanduser() != place:
            settings.assumed.append(f"{named} by the XLM-R vocabulary of rigsize data demo")
        return named
    if demo is None:
        hint = "name one with --tokenizer; `rigsize data demo` obtains that of XLM-R"
        raise SpecError("tokenizer", "", "without one no token can be counted", hint=hint)
    settings.assumed.append("tokenizer of XLM-R, which rigsize data demo obtained")
    return str(demo.model_folder)


def _own_length(named: str, settings: Settings) -> int:
    from rigsize.texts.tokenizer import own_length

    own = own_length(named)
    if own is not None:
        return int(settings.or_assumed("max-length", str(own), "the tokenizer's own limit"))
    return int(settings.or_assumed("max-length", str(DEFAULT_LENGTH)))


def _progress() -> Callable[[int], None]:
    told = 0

    def tell(rows: int) -> None:
        nonlocal told
        if rows - told >= _TOLD_ROWS:
            told = rows
            _say(f"{rows:,} rows tokenised")

    return tell


def _write(file: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **document}, allow_nan=False)
    try:
        file.expanduser().write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError("out", str(file), f"cannot be written ({error.strerror})") from None


ACTIONS: dict[str, Callable[[Settings], int]] = {"stats": _stats, "demo": _demo}
