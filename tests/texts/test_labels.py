from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.texts.labels import LabelCounts, label_scheme


def counted(*labels: Any) -> LabelCounts:
    counts = LabelCounts("label")
    for number, label in enumerate(labels, start=1):
        counts.add(number, label)
    return counts


def test_names_are_sorted() -> None:
    scheme = label_scheme(counted("pos", "neg", " pos "))
    assert scheme.names == ("neg", "pos")
    assert [scheme.id_of(name) for name in ("pos", "neg")] == [1, 0]


def test_numbers_are_ids_however_they_are_written() -> None:
    scheme = label_scheme(counted("0", 2, 2.0, True))
    assert scheme.names == ("0", "1", "2")
    assert [scheme.id_of(label) for label in ("0", 2, 2.0, True)] == [0, 2, 2, 1]


def test_a_number_out_of_range_is_told_with_its_rows() -> None:
    with pytest.raises(SpecError, match=r"label: out of range in row 2, 3.*got 3; allowed: 0 to 2"):
        label_scheme(counted(0, 3, 3), num_labels=3)
    with pytest.raises(SpecError, match=r"out of range in row 1.*got -1"):
        label_scheme(counted(-1, 0, 1))


def test_many_rows_are_counted_not_listed() -> None:
    with pytest.raises(SpecError, match="row 1, 2, 3, 4, 5 and 7 more"):
        label_scheme(counted(*[9] * 12), num_labels=3)


def test_a_missing_label_is_told_with_its_row() -> None:
    for missing in (None, "", "  ", float("nan")):
        with pytest.raises(SpecError, match="missing in row 2"):
            label_scheme(counted("a", missing))


def test_an_unknown_name_is_told_with_its_row() -> None:
    with pytest.raises(SpecError, match=r"unknown in row 3, got 'psitive'; allowed: neg, pos"):
        label_scheme(counted("neg", "pos", "psitive"), names=("neg", "pos"))


def test_numbers_stand_for_given_names() -> None:
    scheme = label_scheme(counted(1, "neg"), names=("neg", "pos"))
    assert [scheme.id_of(label) for label in (1, "neg")] == [1, 0]


def test_a_name_too_many_is_told_with_the_rarest() -> None:
    with pytest.raises(SpecError, match=r"3 different labels.*num-labels is 2.*'psitive' \(row 5"):
        label_scheme(counted("a", "a", "b", "b", "psitive"), num_labels=2)


def test_fewer_names_than_the_head_has_are_no_error() -> None:
    assert label_scheme(counted("a", "b"), num_labels=3).names == ("a", "b")


def test_tags_are_counted_one_by_one_and_minus_100_is_ignored() -> None:
    scheme = label_scheme(counted([0, -100, 1], [1]))
    assert scheme.names == ("0", "1")
    assert scheme.id_of(-100) == -100


def test_identifiers_are_not_labels() -> None:
    with pytest.raises(SpecError, match="must count from 0"):
        label_scheme(counted(123_456_789))


def test_mixed_names_and_numbers_are_names() -> None:
    assert label_scheme(counted(1, "b")).names == ("1", "b")


def test_a_name_beyond_the_head_is_told_with_its_row() -> None:
    names = ("a", "b", "c")
    assert label_scheme(counted("a", "b"), names=names, num_labels=2).names == names
    with pytest.raises(SpecError, match="beyond the head's classes in row 2, got 'c'"):
        label_scheme(counted("a", "c"), names=names, num_labels=2)
