from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.trace.domains import Varied, sample_points
from rigsize.trace.sizes import MONOMIALS, NotFitted, evaluate, fit, monomials_at

POINTS = [{"B": 2, "S": 37}, {"B": 3, "S": 75}, {"B": 5, "S": 101}, {"B": 4, "S": 61}]
VALUES = [monomials_at(point) for point in POINTS]


def samples(formula: Callable[[int, int], int]) -> list[int]:
    return [formula(p["B"], p["S"]) for p in POINTS]


def test_one_term() -> None:
    # hidden states of XLM-R base in fp32: 4 bytes x 768 a token
    assert fit(samples(lambda B, S: 3072 * B * S), VALUES) == ((3072, "BS"),)


def test_constant_and_nothing() -> None:
    assert fit([589_824] * 4, VALUES) == ((589_824, "1"),)
    assert fit([0] * 4, VALUES) == ()


def test_attention_scores_padded_to_eight() -> None:
    # a mask of [B, 1, S, S] whose rows are padded: S = 37 takes 40
    assert fit(samples(lambda B, S: 4 * B * S * (-(-S // 8) * 8)), VALUES) == ((4, "BS.S8"),)


def test_two_terms_need_no_third() -> None:
    found = fit(samples(lambda B, S: 8 * B * S + 16), VALUES)
    assert sorted(found) == [(8, "BS"), (16, "1")]


def test_the_simplest_of_monomials_that_agree() -> None:
    # at one text B is 1 everywhere: S and BS cannot be told apart
    alone = [{"B": 1, "S": s} for s in (37, 75, 101, 61)]
    found = fit([3072 * p["S"] for p in alone], [monomials_at(p) for p in alone])
    assert found == ((3072, "S"),)


def test_first_points_that_are_multiples_of_one_another() -> None:
    # B.S8 is 80 and 240, B.S64 128 and 384 at the first two points: these alone tell nothing
    points = sample_points("bN.sx.0", (), None, Varied(), count=5)
    values = [monomials_at(p) for p in points]
    found = fit([v["B.S8"] + v["B.S64"] for v in values], values)
    assert sorted(found) == [(1, "B.S64"), (1, "B.S8")]


def test_a_single_point_is_a_constant() -> None:
    assert fit([12_345], VALUES[:1]) == ((12_345, "1"),)


def test_refuses_what_is_no_sum_of_monomials() -> None:
    with pytest.raises(NotFitted):
        fit(samples(lambda B, S: B**3 * S), VALUES)


def test_refuses_a_fraction() -> None:
    with pytest.raises(NotFitted):
        fit(samples(lambda B, S: (B * S) // 2), VALUES)


@given(
    first=st.sampled_from(["1", "B", "S", "BS", "BSS", "B.S8", "BS.S8"]),
    second=st.sampled_from(["SS", "BB", "B.S64"]),
    a=st.integers(1, 10**9),
    b=st.integers(1, 10**9),
)
def test_any_sum_of_two_monomials_is_recovered(first: str, second: str, a: int, b: int) -> None:
    points = sample_points("bN.sx.0", (), None, Varied(), count=5)
    values = [monomials_at(p) for p in points]
    sizes = [a * v[first] + b * v[second] for v in values]
    assert sorted(fit(sizes, values)) == sorted([(a, first), (b, second)])


@given(st.dictionaries(st.sampled_from(sorted(MONOMIALS)), st.integers(-9, 9), max_size=4))
def test_evaluate_is_the_sum(terms: dict[str, int]) -> None:
    B, S, T, M, N, C = 3, 41, 17, 24, 99, 77
    values = monomials_at({"B": B, "S": S, "T": T, "M": M, "N": N, "C": C})
    expression = tuple((c, name) for name, c in terms.items())
    assert evaluate(expression, values) == sum(
        c * MONOMIALS[name](B, S, T, M, N, C) for name, c in terms.items()
    )


def test_monomials_by_hand() -> None:
    values = monomials_at({"B": 3, "S": 41, "T": 17})
    assert values["BST"] == 3 * 41 * 17
    assert values["B.S8"] == 3 * 48
    assert values["B.S64"] == 3 * 64
    assert values["B.S128.S128"] == 3 * 128 * 128


def test_rows_and_tokens_by_hand() -> None:
    values = monomials_at({"B": 3, "S": 41, "M": 24, "N": 99})
    assert (values["M"], values["M/8"], values["N"], values["T"]) == (24, 3, 99, 0)
    # 25 rows are cut in no pieces of one length
    assert monomials_at({"B": 3, "S": 41, "M": 25})["M/8"] == 0


def test_rows_and_tokens_are_told_apart() -> None:
    points = sample_points("bN.sx.0", (), None, Varied(rows=True, unpadded=True), count=5)
    values = [monomials_at(p) for p in points]
    assert fit([1_000_008 * p["M"] for p in points], values) == ((1_000_008, "M"),)
    assert fit([3072 * p["N"] for p in points], values) == ((3072, "N"),)
    # log-sum-exp of 12 heads and the gaps of 128 rows between the texts
    gaps = fit([48 * (p["N"] + 128 * p["B"]) for p in points], values)
    assert sorted(gaps) == [(48, "N"), (6144, "B")]


def test_a_piece_of_the_chunked_loss() -> None:
    points = sample_points("bN.sx.0", (), None, Varied(rows=True, chunked=True), count=5)
    values = [monomials_at(p) for p in points]
    # fp32 logits of an eighth of the rows over 250,002 words: half of them is a whole number, too
    assert fit([4 * 250_002 * p["M"] // 8 for p in points], values) == ((1_000_008, "M/8"),)
    assert fit([3072 * p["M"] for p in points], values) == ((8 * 3072, "M/8"),)


def test_what_has_no_rows_is_fitted_as_before() -> None:
    assert all(value["M"] == value["M/8"] == value["N"] == 0 for value in VALUES)
