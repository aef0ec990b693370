import pytest

from rigsize.errors import SpecError
from rigsize.texts.columns import choose_columns
from rigsize.texts.source import DataSource

FILE = DataSource(path="a.csv")


@pytest.mark.parametrize(
    ("task", "columns", "told"),
    [
        (
            "sequence-classification",
            ("id", "Tweet", "sentiment"),
            'text from "Tweet" (guessed), label from "sentiment" (guessed)',
        ),
        (
            "token-classification",
            ("tokens", "ner_tags"),
            'text from "tokens" (guessed), label from "ner_tags" (guessed)',
        ),
        ("masked-lm", ("anything",), 'text from "anything" (guessed)'),
        (
            "seq2seq-lm",
            ("document", "summary"),
            'text from "document" (guessed), target from "summary" (guessed)',
        ),
        (
            "embedding",
            ("query", "positive", "negative"),
            'text from "query" (guessed), target from "positive" (guessed)',
        ),
    ],
)
def test_usual_names_are_guessed_and_told(task: str, columns: tuple[str, ...], told: str) -> None:
    assert choose_columns(FILE, columns, task).told() == told


def test_a_named_column_is_not_guessed() -> None:
    source = DataSource(path="a.csv", text_column="b", label_column="a")
    chosen = choose_columns(source, ("a", "b", "text", "label"), "sequence-classification")
    assert (chosen.text, chosen.label, chosen.guessed) == ("b", "a", ())


def test_a_wrong_column_is_told_with_those_there_are() -> None:
    source = DataSource(path="a.csv", text_column="tekst")
    with pytest.raises(SpecError, match="allowed: id, text; did you mean text") as caught:
        choose_columns(source, ("id", "text"), "masked-lm")
    assert caught.value.field == "text-column"


def test_no_usual_name_is_told_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"needs a label.*'text, y'.*--label-column"):
        choose_columns(FILE, ("text", "y"), "sequence-classification")


def test_a_column_the_task_does_not_read_is_refused() -> None:
    with pytest.raises(SpecError, match="masked-lm reads no target"):
        choose_columns(DataSource(path="a.csv", target_column="b"), ("text", "b"), "masked-lm")


def test_one_column_is_never_two_roles() -> None:
    source = DataSource(path="a.csv", text_column="label")
    chosen = choose_columns(source, ("label", "sentiment"), "sequence-classification")
    assert (chosen.text, chosen.label) == ("label", "sentiment")
