"""Parquet, folders that `datasets` saved, and hub ids. Importing this imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.texts.reach import hub_answers
from rigsize.texts.readers import Row, Table
from rigsize.texts.source import DataSource

__all__ = ["hub_table", "parquet_table", "saved_table"]

_BATCH_ROWS = 1000
_HINT = "give a file, or download it where there is a network"
_PLAIN = ("parquet", "json", "csv", "text", "arrow")
"""The builders of `datasets` that read plain formats."""


def parquet_table(source: DataSource) -> Table:
    """A Parquet file, by row groups; pyarrow reads it as it lies, `datasets` would copy it."""
    with _told(source):
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        schema = pq.read_schema(source.file)

    def read() -> Iterator[Row]:
        with _told(source), pq.ParquetFile(source.file) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)

    return Table(columns=tuple(schema.names), rows=read, class_names=_schema_names(schema))


def _schema_names(schema: Any) -> dict[str, tuple[str, ...]]:
    try:
        from datasets import Features

        return _class_names(Features.from_arrow_schema(schema))
    except Exception:  # names are an extra: numbers without them are labels too
        return {}


def saved_table(source: DataSource) -> Table:
    """A folder of `save_to_disk`, memory-mapped."""
    with _told(source):
        datasets = _quiet_datasets()
        found = datasets.load_from_disk(str(source.file))
        if isinstance(found, datasets.DatasetDict):
            if source.split not in found:
                raise SpecError("split", source.split, "no such split", allowed=list(found))
            found = found[source.split]
    return _table(source, found)


def hub_table(source: DataSource) -> Table:
    """A data set of the hub: downloaded into its own cache, or streamed for the first rows."""
    with _told(source):
        datasets = _quiet_datasets()
        _refuse_scripts(datasets.__version__)
        _refuse_unreachable(source, Path(datasets.config.HF_DATASETS_CACHE))
        builder = datasets.load_dataset_builder(source.path, source.subset)
        module = type(builder).__module__.rpartition(".")[2]
        if module not in _PLAIN:
            problem = f"its files are read by {module!r}, not as plain text columns"
            raise SpecError("data", source.path, problem, allowed=_PLAIN)
        streamed = source.max_rows is not None
        found = datasets.load_dataset(
            source.path, source.subset, split=source.split, streaming=streamed
        )
    return _table(source, found)


def _quiet_datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()  # they would stand in the middle of ours
    return datasets


def _refuse_unreachable(source: DataSource, cache: Path) -> None:
    if not hub_answers(cache / source.path.replace("/", "___")):
        problem = "no such file here, and the hub does not answer"
        raise MeasurementFailed("data", source.path, problem, hint=_HINT)


def _refuse_scripts(version: str) -> None:
    # From 4.0 on loading scripts do not exist; before, a data set could run its own code.
    if int(version.split(".")[0]) < 4:
        hint = "pip install -U datasets"
        raise MeasurementFailed("datasets", version, "4.0 or later is needed", hint=hint)


def _table(source: DataSource, found: Any) -> Table:
    def read() -> Iterator[Row]:
        with _told(source):
            for number, values in enumerate(found, start=1):
                yield Row(number, values)

    features = found.features or {}
    columns = tuple(found.column_names or features)
    return Table(columns=columns, rows=read, class_names=_class_names(features))


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    names = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)  # a list of tags
        if getattr(inner, "names", None):
            names[column] = tuple(inner.names)
    return names


@contextmanager
def _told(source: DataSource) -> Iterator[None]:
    """Whatever the libraries raise becomes one line."""
    try:
        yield
    except (SpecError, MeasurementFailed):
        raise
    except ImportError:
        hint = "pip install 'rigsize[train]'"
        raise MeasurementFailed(
            "data", source.path, "reading it needs datasets", hint=hint
        ) from None
    except Exception as error:
        raise _refused(source, error) from None


def _refused(source: DataSource, error: Exception) -> SpecError | MeasurementFailed:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if source.kind() == "hub":
        problem = f"no such file here, and the hub did not give it ({reason[:200]})"
        return MeasurementFailed("data", source.path, problem, hint=_HINT)
    return SpecError("data", source.path, f"cannot be read ({reason[:200]})")
