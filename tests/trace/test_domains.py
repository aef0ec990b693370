import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.trace.domains import (
    Varied,
    all_labels,
    exact_label,
    label,
    possible_labels,
    proof_points,
    sample_points,
    thresholds,
)
from rigsize.trace.sizes import monomials_at


@pytest.mark.parametrize(
    ("B", "S", "T", "limits", "expected"),
    [
        (2, 512, 0, (), "bN.s8.0"),
        (1, 512, 0, (), "b1.s8.0"),
        (16, 509, 0, (), "bN.sx.0"),
        (4, 512, 100, (), "bN.sx.0"),
        (4, 4096, 0, (4096,), "bN.s8.0"),
        (4, 4104, 0, (4096,), "bN.s8.1"),
        (1, 4097, 0, (128, 4096), "b1.sx.2"),
        (7, 1, 0, (), "at.7.1.0"),
        (7, 64, 1, (), "at.7.64.1"),
    ],
)
def test_labels(B: int, S: int, T: int, limits: tuple[int, ...], expected: str) -> None:
    assert label({"B": B, "S": S, "T": T}, limits) == expected


def test_thresholds_are_the_window_of_a_model_that_uses_it() -> None:
    assert thresholds({"sliding_window": 4096}, 32_768) == (4096,)
    assert thresholds({"sliding_window": 4096, "use_sliding_window": False}, 32_768) == ()
    assert thresholds({"sliding_window": None, "local_attention": 128}, 8192) == (128,)
    # a window that no length passes bounds nothing
    assert thresholds({"sliding_window": 262_144}, 131_072) == ()


def test_every_domain_is_listed_once() -> None:
    labels = all_labels((128, 4096))
    assert len(labels) == len(set(labels)) == 4 * 3


@given(st.integers(1, 64), st.integers(1, 9000), st.integers(0, 300))
def test_the_label_is_among_the_possible_ones(B: int, S: int, T: int) -> None:
    point = {"B": B, "S": S, "T": T}
    for limits in ((), (128,), (128, 4096)):
        assert label(point, limits) in possible_labels(point)
    assert exact_label(point) in possible_labels(point)


VARIED = [
    Varied(),
    Varied(target=True),
    Varied(rows=True),
    Varied(rows=True, chunked=True),
    Varied(unpadded=True),
    Varied(rows=True, unpadded=True),
    Varied(rows=True, chunked=True, unpadded=True),
]


@pytest.mark.parametrize("varied", VARIED, ids=str)
@pytest.mark.parametrize("limits", [(), (128,), (512, 4096)])
def test_points_lie_in_their_domain_and_proofs_are_unseen(
    limits: tuple[int, ...], varied: Varied
) -> None:
    for name in all_labels(limits):
        seen = sample_points(name, limits, 32_768, varied, count=5)
        proofs = proof_points(name, limits, 32_768, varied)
        assert len(seen) == 5
        assert len(proofs) == 3
        assert {label(p, limits) for p in [*seen, *proofs]} == {name}
        assert not [p for p in proofs if p in seen]


def test_a_long_proof_where_the_model_allows_it() -> None:
    def longest(name: str, limits: tuple[int, ...], positions: int | None) -> int:
        return max(p["S"] for p in proof_points(name, limits, positions, Varied()))

    assert longest("bN.s8.0", (), None) == 4096
    assert longest("b1.sx.0", (), 8192) == 4101
    lengths = {p["S"] for p in proof_points("bN.s8.1", (4096,), 32_768, Varied())}
    assert 4104 in lengths  # the first aligned length past the window
    assert longest("bN.s8.0", (), 512) < 512


@pytest.mark.parametrize("varied", VARIED, ids=str)
def test_sampled_sizes_tell_the_monomials_apart(varied: Varied) -> None:
    points = sample_points("bN.sx.0", (), None, varied, count=5)
    columns = [[monomials_at(p)[name] for p in points] for name in monomials_at(points[0])]
    # What the batches do not have is 0 everywhere, and `fit` leaves it out.
    used = [column for column in columns if any(column)]
    assert all(a != b for a, b in itertools.combinations(used, 2))


def test_tokens_and_rows_are_possible() -> None:
    varied = Varied(rows=True, chunked=True, unpadded=True)
    for name in all_labels(()):
        for point in sample_points(name, (), None, varied, count=12):
            B, S, M, N = (point[symbol] for symbol in "BSMN")
            assert S + B - 1 <= N <= B * S
            assert M % 8 == 0
    single = sample_points("bN.sx.0", (), None, Varied(rows=True), count=12)
    assert all(p["M"] % 2 and p["M"] <= p["B"] * p["S"] for p in single)


@pytest.mark.parametrize(
    ("varied", "domain", "count"),
    [
        (Varied(), "b1.s8.0", 1),
        (Varied(), "bN.s8.0", 2),
        (Varied(target=True), "b1.s8.0", 2),
        (Varied(unpadded=True), "b1.s8.0", 1),  # a lone text has N = S
        (Varied(rows=True, unpadded=True), "bN.s8.0", 4),
    ],
)
def test_how_many_sizes_vary(varied: Varied, domain: str, count: int) -> None:
    assert varied.count(domain) == count


def test_an_exact_domain_holds_its_own_size() -> None:
    target = Varied(target=True)
    assert sample_points("at.2.1.0", (), None, Varied(), count=5) == [{"B": 2, "S": 1}]
    assert sample_points("at.2.9.1", (), 64, target, count=5) == [{"B": 2, "S": 9, "T": 1}]


def test_one_row_is_a_domain_of_its_own() -> None:
    point = {"B": 2, "S": 9, "M": 1, "N": 14}
    assert label(point, ()) == exact_label(point) == "at.2.9.0.1.14"
    assert sample_points("at.2.9.0.1.14", (), None, Varied(rows=True), count=5) == [point]
    assert label({**point, "M": 2}, ()) == "bN.sx.0"
    # a run says 0 for what it has not
    assert exact_label({"B": 2, "S": 1, "T": 0, "M": 0, "N": 0}) == "at.2.1.0"
