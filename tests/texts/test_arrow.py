from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.texts import arrow
from rigsize.texts.readers import open_table, rows
from rigsize.texts.source import DataSource
from rigsize.texts.tokenised import prepare

datasets = pytest.importorskip("datasets")


@pytest.fixture
def tweets() -> Any:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
    )
    return datasets.Dataset.from_dict({"text": ["the", "bus"], "label": [1, 0]}, features=features)


def test_parquet_knows_its_class_names(tmp_path: Path, tweets: Any) -> None:
    tweets.to_parquet(str(tmp_path / "a.parquet"))
    source = DataSource(path=str(tmp_path / "a.parquet"))
    table = open_table(source)
    assert table.columns == ("text", "label")
    assert table.class_names == {"label": ("neg", "pos")}
    found = list(table.rows())
    assert [(row.number, row.values["text"]) for row in found] == [(1, "the"), (2, "bus")]


def test_a_broken_parquet_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SpecError, match="cannot be read"):
        open_table(DataSource(path=str(tmp_path / "a.parquet")))


def test_a_saved_folder_and_its_splits(tmp_path: Path, tweets: Any, tokenizer: Path) -> None:
    datasets.DatasetDict(train=tweets, test=tweets.select([0])).save_to_disk(str(tmp_path / "s"))
    source = DataSource(path=str(tmp_path / "s"), split="test")
    assert len(list(rows(source))) == 1
    options: dict[str, Any] = {"task": "sequence-classification", "cache": tmp_path / "cache"}
    texts = prepare(source, tokenizer, max_length=8, **options)
    assert (texts.label_names, texts.example(0).label) == (("neg", "pos"), 1)
    with pytest.raises(SpecError, match="no such split, got 'dev'; allowed: train, test"):
        open_table(DataSource(path=str(tmp_path / "s"), split="dev"))


def test_a_folder_without_splits_is_read_whatever_the_split(tmp_path: Path, tweets: Any) -> None:
    tweets.save_to_disk(str(tmp_path / "s"))
    assert len(list(rows(DataSource(path=str(tmp_path / "s"))))) == 2


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "hub_answers", lambda _: False)
    with pytest.raises(MeasurementFailed, match="the hub does not answer"):
        open_table(DataSource(path="organisation/tweets"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tweets: Any) -> dict[str, Any]:
    """A hub with one data set; the builder's class comes from the module `reads`."""
    asked: dict[str, Any] = {"reads": "parquet"}

    def builder(path: str, subset: str | None) -> Any:
        made = type("Builder", (), {"__module__": f"datasets.packaged_modules.{asked['reads']}"})
        return made()

    def load(path: str, subset: str | None, **options: Any) -> Any:
        asked.update(options)
        return tweets.to_iterable_dataset() if options["streaming"] else tweets

    monkeypatch.setattr(arrow, "hub_answers", lambda _: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_hub_id_is_read(hub: dict[str, Any]) -> None:
    assert len(list(rows(DataSource(path="organisation/tweets")))) == 2
    assert (hub["split"], hub["streaming"]) == ("train", False)


def test_the_first_rows_of_a_hub_id_are_streamed(hub: dict[str, Any]) -> None:
    assert len(list(rows(DataSource(path="organisation/tweets", max_rows=1)))) == 1
    assert hub["streaming"] is True


@pytest.mark.parametrize("reads", ["pandas", "webdataset", "my_script"])
def test_other_than_plain_formats_are_refused(hub: dict[str, Any], reads: str) -> None:
    hub["reads"] = reads
    with pytest.raises(SpecError, match="not as plain text columns"):
        open_table(DataSource(path="organisation/tweets"))


def test_a_version_that_runs_scripts_is_refused(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(__version__="3.6.0", disable_progress_bars=lambda: None)
    monkeypatch.setattr(arrow, "_quiet_datasets", lambda: old)
    with pytest.raises(MeasurementFailed, match=r"4\.0 or later"):
        open_table(DataSource(path="organisation/tweets"))
