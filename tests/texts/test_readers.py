import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.texts import lines as lines_module
from rigsize.texts.readers import Row, open_table, rows
from rigsize.texts.source import DataSource


def read(path: Path, content: bytes, **more: Any) -> list[Row]:
    path.write_bytes(content)
    return list(rows(DataSource(path=str(path), **more)))


def test_json_lines_keep_the_number_of_their_line(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", b'{"text": "a"}\n\n"b"\r\n{"text": "c", "label": 1}')
    assert [(row.number, row.values) for row in found] == [
        (1, {"text": "a"}),
        (3, {"text": "b"}),
        (4, {"text": "c", "label": 1}),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{oops}", "row 2 is not JSON"),
        (b"[1]", "row 2 is neither"),
        (b"17", "row 2 is neither"),
        (b"[" * 100_000, "row 2 is not JSON"),
        (b"1" * 5000, "row 2 is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        read(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line)


def test_columns_are_those_of_all_first_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert open_table(DataSource(path=str(tmp_path / "a.jsonl"))).columns == ("text", "label")


def test_a_json_array_is_read_too(tmp_path: Path) -> None:
    found = read(tmp_path / "a.json", b'[{"text": "a"},\n "b"]')
    assert [(row.number, row.values["text"]) for row in found] == [(1, "a"), (2, "b")]


def test_a_broken_array_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"not JSON .* in line 2"):
        read(tmp_path / "a.json", b'[{"text": "a"},\n oops]')


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    assert len(read(tmp_path / "a.json", b'{"text": "a"}\n{"text": "b"}\n')) == 2


def test_separated_rows_count_below_the_header(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbflabel,text\nx,"one, ""two""\nthree"\n\ny,four\nz\n'
    found = read(tmp_path / "a.csv", content)
    assert [(row.number, row.values) for row in found] == [
        (1, {"label": "x", "text": 'one, "two"\nthree'}),
        (2, {"label": "y", "text": "four"}),
        (3, {"label": "z"}),
    ]


def test_tabs_separate_too(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tsv", b"text\tlabel\na, b\t1\n")[0].values["text"] == "a, b"


def test_a_field_too_many_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="row 2 has 3 fields, the header 2"):
        read(tmp_path / "a.csv", b"text,label\na,1\nb,c,1\n")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one name"):
        read(tmp_path / "a.csv", b"text,text\na,1\n")


def test_a_long_field_is_no_error(tmp_path: Path) -> None:
    # csv's own limit is 131,072 characters.
    assert len(read(tmp_path / "a.csv", b"text\n" + b"a" * 200_000)[0].values["text"]) == 200_000


def test_broken_bytes_are_replaced_and_marked(tmp_path: Path) -> None:
    found = read(tmp_path / "a.txt", b"caf\xe9\ncaf\xc3\xa9\n")
    assert [(row.values["text"], row.broken) for row in found] == [("caf�", True), ("café", False)]
    found = read(tmp_path / "a.csv", b"text\ncaf\xe9\nplain\n")
    assert [row.broken for row in found] == [True, False]


def test_utf16_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="UTF-16"):
        read(tmp_path / "a.txt", "hello".encode("utf-16"))


def test_gzip_is_read_and_a_cut_one_told(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(f"text {n}\n".encode() for n in range(1000)))
    assert len(read(tmp_path / "a.txt.gz", packed)) == 1000
    with pytest.raises(SpecError, match="cut or broken"):
        read(tmp_path / "b.txt.gz", packed[:-500])
    with pytest.raises(SpecError, match="cut or broken"):
        read(tmp_path / "c.txt.gz", b"plain")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_an_empty_file_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="no rows"):
        read(tmp_path / name, b"")


def test_a_line_without_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "LONGEST_LINE_BYTES", 10)
    with pytest.raises(SpecError, match="line 2"):
        read(tmp_path / "a.txt", b"short\n" + b"a" * 11)


def test_only_the_first_rows(tmp_path: Path) -> None:
    assert len(read(tmp_path / "a.txt", b"a\nb\nc\n", max_rows=2)) == 2


def test_a_file_that_is_read_twice_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    table = open_table(DataSource(path=str(tmp_path / "a.jsonl")))
    assert list(table.rows()) == list(table.rows())


def test_semicolons_are_told_not_read_as_one_column(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"separated by semicolons.*\.tsv"):
        read(tmp_path / "a.csv", b"text;label\nhello;1\n")
