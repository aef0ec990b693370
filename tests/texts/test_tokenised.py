"""Token ids are those of the 71-word tokenizer: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.texts import store
from rigsize.texts.generated import generated_corpus
from rigsize.texts.source import DataSource
from rigsize.texts.tokenised import TokenisedTexts, open_texts, prepare, split
from rigsize.texts.tokenizer import load_tokenizer

Write = Callable[..., str]


@pytest.fixture
def made(tmp_path: Path, tokenizer: Path) -> Callable[..., TokenisedTexts]:
    def prepared(path: str, task: str = "masked-lm", max_length: int = 8, **more: Any) -> Any:
        columns = {key: more.pop(key) for key in list(more) if key.endswith("_column")}
        source = DataSource(path=path, **columns)
        options = {"cache": tmp_path / "cache", **more}
        return prepare(source, tokenizer, task=task, max_length=max_length, **options)

    return prepared


Made = Callable[..., TokenisedTexts]


def test_classification(made: Made, jsonl: Write, tokenizer: Path) -> None:
    path = jsonl({"text": "the bus", "label": "good"}, {"text": "a b c d e f g", "label": "bad"})
    texts = made(path, "sequence-classification", 5)
    the, bus = load_tokenizer(tokenizer).convert_tokens_to_ids(["the", "bus"])
    first = texts.example(0)
    assert first.input_ids.tolist() == [0, the, bus, 2]
    assert (first.label, first.second) == (1, None)
    assert texts.example(1).input_ids[[0, -1]].tolist() == [0, 2]  # cut, still whole for the model
    assert texts.lengths.tolist() == [4, 5]
    assert texts.full_lengths.tolist() == [4, 9]
    assert texts.label_names == ("bad", "good")
    assert (texts.report.rows, texts.report.kept, texts.report.truncated) == (2, 2, 1)
    assert texts.report.first_rows["truncated"] == (2,)
    assert texts.special_ids["mask"] == 4
    assert texts.largest_id == max(the, bus, 3)


def test_language_modelling_needs_no_label(made: Made, jsonl: Write) -> None:
    texts = made(jsonl({"text": "the bus", "label": None}), "causal-lm")
    assert (texts.labels, texts.label_names, texts.second_lengths) == (None, (), None)


def test_pairs(made: Made, jsonl: Write, tokenizer: Path) -> None:
    path = jsonl({"text": "the bus", "summary": "a b c"}, {"text": "the", "summary": ""})
    texts = made(path, "seq2seq-lm", max_target_length=4)
    assert texts.second_lengths is not None
    assert texts.second_lengths.tolist() == [4]
    assert texts.second_full_lengths is not None
    assert texts.second_full_lengths.tolist() == [5]
    second = texts.example(0).second
    assert second is not None
    a = load_tokenizer(tokenizer).convert_tokens_to_ids("a")
    assert second.tolist() == [0, a, 3, 2]  # b is unknown, c was cut
    assert (texts.report.empty, texts.report.second_truncated) == (1, 1)
    pair = jsonl({"anchor": "the bus", "positive": "a phone"}, name="pair.jsonl")
    assert made(pair, "embedding").second_lengths.tolist() == [4]  # type: ignore[union-attr]


def test_tags_stand_on_the_first_token_of_a_word(made: Made, jsonl: Write) -> None:
    # "bus-phone" is three tokens to this tokenizer: bus, -, phone.
    path = jsonl({"tokens": ["the", "bus-phone", "bus"], "tags": ["O", "B", "I"]})
    texts = made(path, "token-classification")
    example = texts.example(0)
    assert texts.label_names == ("B", "I", "O")
    assert example.second is not None
    assert example.second.tolist() == [-100, 2, 0, -100, -100, 1, -100]
    assert len(example.input_ids) == 7
    cut = made(path, "token-classification", 4).example(0)
    assert cut.second is not None
    assert cut.second.tolist() == [-100, 2, 0, -100]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tokens": "the bus", "tags": ["O", "O"]}, "row 1 holds no lists"),
        ({"tokens": ["the", "bus"], "tags": ["O"]}, "row 1 has 2 tokens and 1 tags"),
    ],
)
def test_tags_that_do_not_match_are_told(
    made: Made, jsonl: Write, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SpecError, match=problem):
        made(jsonl(row), "token-classification")


def test_missing_texts_are_counted_with_their_rows(made: Made, jsonl: Write) -> None:
    rows = [{"text": text} for text in ("the", "", None, "  ", "bus")]
    report = made(jsonl(*rows, {"other": 1})).report
    assert (report.rows, report.kept, report.empty) == (6, 2, 4)
    assert report.problems() == ("4 empty, left out (row 2, 3, 4, 6)",)


def test_a_cell_that_is_no_text_is_told(made: Made, jsonl: Write) -> None:
    with pytest.raises(SpecError, match="row 2 holds no text"):
        made(jsonl({"text": "a"}, {"text": ["b"]}))


def test_several_labels_a_text_are_told(made: Made, jsonl: Write) -> None:
    rows = [{"text": "the", "label": 0}, {"text": "the", "label": [0, 1]}]
    with pytest.raises(SpecError, match="row 2 holds several labels"):
        made(jsonl(*rows), "sequence-classification")


@pytest.mark.parametrize("rows", [[{"text": ""}], [{"text": None}, {"text": " "}]])
def test_a_set_without_a_text_is_told(made: Made, jsonl: Write, rows: list[Any]) -> None:
    with pytest.raises(SpecError, match="none of its"):
        made(jsonl(*rows))


def test_an_empty_text_file_is_told(made: Made, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(SpecError, match="no rows"):
        made(str(tmp_path / "a.txt"))


def test_broken_utf8_is_counted_and_only_all_of_it_fatal(made: Made, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\nthe bus\n")
    assert made(str(tmp_path / "a.txt")).report.first_rows["broken_utf8"] == (1,)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\ncaf\xe9\n")
    with pytest.raises(SpecError, match="not one of its rows is UTF-8"):
        made(str(tmp_path / "b.txt"))


def test_half_a_character_is_replaced(made: Made, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "the \\ud83d bus"}\n{"text": "bus"}\n')
    texts = made(str(tmp_path / "a.jsonl"))
    assert texts.report.broken_utf8 == 1
    assert texts.example(0).input_ids[2] == 3


def test_labels_out_of_range_are_told_before_anything_is_tokenised(
    made: Made, jsonl: Write
) -> None:
    rows = [{"text": "the", "label": label} for label in (0, 1, 7)]
    told: list[int] = []
    with pytest.raises(SpecError, match="out of range in row 3"):
        made(jsonl(*rows), "sequence-classification", num_labels=3, progress=told.append)
    assert told == []


def test_an_evaluation_file_takes_the_names_of_the_training_set(made: Made, jsonl: Write) -> None:
    path = jsonl({"text": "the", "label": "pos"})
    texts = made(path, "sequence-classification", label_names=("neg", "pos"))
    assert texts.example(0).label == 1
    with pytest.raises(SpecError, match="unknown in row 1"):
        made(path, "sequence-classification", label_names=("neg", "neutral"))


def test_a_limit_without_room_is_told(made: Made, jsonl: Write) -> None:
    with pytest.raises(SpecError, match="2 special tokens"):
        made(jsonl({"text": "the"}), max_length=2)


def test_a_second_call_reads_the_cache(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = generated_corpus(tmp_path / "c.jsonl", 2500, 0)
    told: list[int] = []
    first = made(str(path), "sequence-classification", progress=told.append)
    assert told == [1000, 2000, 2500]
    monkeypatch.setattr("rigsize.texts.tokenizer.load_tokenizer", _never)
    again = made(str(path), "sequence-classification")
    assert again.fingerprint == first.fingerprint
    assert (again.example(2499).input_ids == first.example(2499).input_ids).all()


def _never(*_: object) -> Any:
    raise AssertionError("the tokenizer was loaded")


def test_the_fingerprint_depends_on_all_that_matters(
    made: Made, jsonl: Write, tokenizer: Path
) -> None:
    path = jsonl({"text": "the", "content": "bus"})
    other = jsonl({"text": "bus"}, name="other.jsonl")
    prints = {
        made(path).fingerprint,
        made(other).fingerprint,
        made(path, max_length=9).fingerprint,
        made(path, "causal-lm").fingerprint,
        made(path, text_column="content").fingerprint,
    }
    assert len(prints) == 5


def test_a_loaded_tokenizer_has_one_fingerprint_whatever_it_did_last(
    tmp_path: Path, jsonl: Write, tokenizer: Path
) -> None:
    loaded = load_tokenizer(tokenizer)
    options: dict[str, Any] = {"task": "masked-lm", "max_length": 3, "cache": tmp_path / "cache"}
    source = DataSource(path=jsonl({"text": "the bus phone"}))
    first = prepare(source, loaded, **options)  # cuts, which sets the backend's truncation
    assert prepare(source, loaded, **options).fingerprint == first.fingerprint


def test_a_cut_cache_is_made_anew(made: Made, jsonl: Write) -> None:
    path = jsonl({"text": "the bus"})
    texts = made(path)
    (texts.folder / "ids.bin").write_bytes(b"")
    assert open_texts(texts.folder) is None
    assert len(made(path).example(0).input_ids) == 4


def test_nothing_is_left_of_a_failure(made: Made, jsonl: Write, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        made(jsonl({"text": ""}))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_told(
    made: Made, jsonl: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "append", full)
    with pytest.raises(MeasurementFailed, match="no space left for the cache"):
        made(jsonl({"text": "the"}))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(made: Made, jsonl: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="XDG_CACHE_HOME"):
        made(jsonl({"text": "the"}), cache=tmp_path / "file" / "cache")


def test_pickled_texts_are_a_path_and_not_a_copy(made: Made, tmp_path: Path) -> None:
    texts = made(str(generated_corpus(tmp_path / "c.jsonl", 500, 0)))
    pickled = pickle.dumps(texts)
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 500


def test_ids_are_mapped_and_read_only(made: Made, jsonl: Write) -> None:
    ids = made(jsonl({"text": "the bus"})).example(0).input_ids
    assert ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_an_index_beyond_the_end_is_an_error(made: Made, jsonl: Write) -> None:
    texts = made(jsonl({"text": "the"}))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            texts.example(index)


def test_split_is_the_same_for_the_same_seed() -> None:
    train, held = split(100, 0.1, 3)
    assert (len(train), len(held)) == (90, 10)
    assert sorted([*train, *held]) == list(range(100))
    assert (split(100, 0.1, 3)[1] == held).all()
    assert (split(100, 0.1, 4)[1] != held).any()


def test_split_leaves_one_on_either_side() -> None:
    assert [len(part) for part in split(2, 0.001, 0)] == [1, 1]
    assert [len(part) for part in split(2, 0.999, 0)] == [1, 1]
    assert [len(part) for part in split(2, 0.0, 0)] == [2, 0]
    for count, share in ((1, 0.5), (10, 1.0), (10, -0.1)):
        with pytest.raises(SpecError, match="eval-share"):
            split(count, share, 0)
