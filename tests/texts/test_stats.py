import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SpecError
from rigsize.texts.stats import LengthHistogram, read_histogram

FOUR = LengthHistogram.of([4, 2, 2, 8])


def test_counts() -> None:
    assert FOUR.pairs == ((2, 2), (4, 1), (8, 1))
    assert (FOUR.texts, FOUR.tokens, FOUR.mean, FOUR.longest) == (4, 16, 4.0, 8)


def test_percentiles_are_lengths_that_occur() -> None:
    assert [FOUR.percentile(p) for p in ("50", "51", "75", "76", "100")] == [2, 4, 4, 8, 8]


def test_covering_is_exact_where_a_float_is_not() -> None:
    # 0.9999 of 10,000 texts are 9,999: the one long text is left out.
    histogram = LengthHistogram(((10, 9_999), (500, 1)))
    assert histogram.covering("0.9999") == 10
    assert LengthHistogram(((10, 9_998), (500, 2))).covering("0.9999") == 500


def test_share_cut() -> None:
    assert [FOUR.share_cut(limit) for limit in (1, 2, 4, 8)] == [1.0, 0.5, 0.25, 0.0]


def test_padding_by_hand() -> None:
    # Limit 10: 16 of 40 positions. Batches of 2: the pairs of {2, 2, 4, 8} have the longest
    # 2 (once), 4 (twice) and 8 (three times), 34 / 6 on average, of which 4 are tokens.
    # Sorted: (8, 4) and (2, 2) take 16 + 4 positions.
    shares = FOUR.padding(10, 2)
    assert shares.fixed == pytest.approx(1 - 16 / 40)
    assert shares.dynamic == pytest.approx(1 - 4 / (34 / 6))
    assert shares.dynamic_sorted == pytest.approx(1 - 16 / 20)
    assert shares.unpadded == 0


def test_padding_counts_texts_as_cut() -> None:
    # Cut to 4: 2, 2, 4, 4.
    shares = FOUR.padding(4, 4)
    assert shares.fixed == shares.dynamic == shares.dynamic_sorted == pytest.approx(1 - 12 / 16)


def test_expected_padding_is_that_of_drawn_batches() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(3, 60) for _ in range(400)]
    positions = tokens = 0
    for _ in range(2000):
        batch = draw.sample(lengths, 16)
        positions += 16 * max(batch)
        tokens += sum(batch)
    expected = LengthHistogram.of(lengths).padding(128, 16).dynamic
    assert expected == pytest.approx(1 - tokens / positions, abs=0.005)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_padding_is_a_share_and_less_by_each_mode(lengths: list[int], size: int) -> None:
    shares = LengthHistogram.of(lengths).padding(50, size)
    assert 0 <= shares.dynamic <= shares.fixed + 1e-9 < 1
    assert 0 <= shares.dynamic_sorted <= shares.fixed + 1e-9


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 9))
def test_sorted_batches_are_those_of_a_sorted_list(lengths: list[int], size: int) -> None:
    size = min(size, len(lengths))
    ordered = sorted(lengths, reverse=True)
    batches = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    padded = sum(batch[0] * len(batch) for batch in batches)
    shares = LengthHistogram.of(lengths).padding(50, size)
    assert shares.dynamic_sorted == pytest.approx(1 - sum(lengths) / padded)


def test_a_histogram_is_read_back(tmp_path: Path) -> None:
    bare, whole = tmp_path / "bare.json", tmp_path / "whole.json"
    bare.write_text(json.dumps(FOUR.to_json()))
    whole.write_text(json.dumps({"schema_version": "1.0", "histogram": FOUR.to_json()}))
    assert read_histogram(bare) == read_histogram(str(whole)) == FOUR
    bare.write_bytes(b"\xef\xbb\xbf" + bare.read_bytes())  # as Windows' editors write it
    assert read_histogram(bare) == FOUR


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[]", "[[1]]", "[[1, true]]", "[[2, 1], [1, 1]]", "[[1, 0]]", "[[0, 1]]", "7"],
)
def test_what_is_no_histogram_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "h.json").write_text(content)
    with pytest.raises(SpecError, match="histogram"):
        read_histogram(tmp_path / "h.json")


def test_a_missing_histogram_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_histogram(tmp_path / "none.json")
