from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.trace.depth import _contexts, _represent, reduce_depth, shorten


def test_a_uniform_stack_keeps_its_ends_and_two_between() -> None:
    # 0 and 11 are ends; two of the ten alike, so that `fold` can compare them
    chosen = shorten(["x"] * 12, radius=1)
    assert len(chosen) == 4
    assert (chosen[0], chosen[-1]) == (0, 11)
    assert _represent(["x"] * 12, chosen, 1) == (0, *[1] * 10, 3)


def test_a_short_stack_stays_whole() -> None:
    assert shorten(["x"] * 3, radius=1) == [0, 1, 2]


def test_alternating_layers() -> None:
    # s f s f ... : inner contexts (s f s) and (f s f), ends (- s f) and (s f -)
    kinds = ["s", "f"] * 13
    chosen = shorten(kinds, radius=1)
    assert [kinds[i] for i in chosen] == ["s", "f", "s", "f"]


def test_five_to_one() -> None:
    # Gemma 3: five sliding layers, one full, again and again, and two sliding ones at the end
    kinds = (["s"] * 5 + ["f"]) * 4 + ["s"] * 2
    chosen = shorten(kinds, radius=1)
    # (- s s) (s s s) (s s f) (s f s) (f s s) (s s -): six contexts, six layers
    assert len(chosen) == 6


def test_dense_then_experts() -> None:
    # DeepSeek-V3: three dense layers, then 58 with experts
    kinds = ["d"] * 3 + ["e"] * 58
    chosen = [kinds[i] for i in shorten(kinds, radius=1)]
    # (- d d) (d d d) (d d e) (d e e) (e e e) (e e -)
    assert chosen == ["d", "d", "d", "e", "e", "e"]


def test_a_layer_that_is_alone_costs_one_more() -> None:
    # T5: the first layer holds the relative positions; some other context must occur twice
    kinds = ["first"] + ["x"] * 23
    assert [kinds[i] for i in shorten(kinds, radius=1)] == ["first", "x", "x", "x", "x"]


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
    st.sampled_from([1, 2]),
)
def test_every_context_of_the_full_stack_occurs_in_the_short_one(
    kinds: list[str], radius: int
) -> None:
    chosen = shorten(kinds, radius)
    short = [kinds[i] for i in chosen]
    assert set(_contexts(short, radius)) == set(_contexts(kinds, radius))
    assert chosen == sorted(chosen)
    stand_ins = _represent(kinds, chosen, radius)
    assert len(stand_ins) == len(kinds)
    assert [short[n] for n in stand_ins] == kinds


def llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "num_hidden_layers": 32, **more}


def test_the_config_is_reduced_and_the_given_one_left_alone() -> None:
    values = llama()
    depth = reduce_depth(values, values)
    assert depth.config["num_hidden_layers"] == 4
    assert values["num_hidden_layers"] == 32
    assert depth.depths == (4,)
    assert len(depth.representative[0]) == 32
    assert depth.reduced


def test_radius_nought_keeps_every_layer() -> None:
    depth = reduce_depth(llama(), llama(), 0)
    assert depth.representative == (tuple(range(32)),)
    assert not depth.reduced


def test_lists_by_layer_are_cut_alike() -> None:
    types = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
    full = llama(num_hidden_layers=26, layer_types=types)
    depth = reduce_depth(llama(num_hidden_layers=26), full)
    kept = depth.config["layer_types"]
    assert len(kept) == depth.config["num_hidden_layers"] == depth.depths[0]
    # the first full layer is a kind of its own: what full layers share dies with it
    assert kept.count("full_attention") == 2


def test_dense_layers_before_the_experts_are_counted_anew() -> None:
    full = llama(num_hidden_layers=61, first_k_dense_replace=3)
    depth = reduce_depth(full, full)
    assert depth.config["first_k_dense_replace"] == 3
    assert depth.depths == (6,)


def test_gpt_neo_spells_its_layers_in_pairs() -> None:
    values = {"model_type": "gpt_neo", "num_layers": 24, "attention_types": [[["g", "l"], 12]]}
    full = {**values, "attention_layers": ["g", "l"] * 12}
    depth = reduce_depth(values, full)
    ((pattern, repeats),) = depth.config["attention_types"]
    assert repeats == 1
    assert len(pattern) == depth.config["num_layers"]


@pytest.mark.parametrize("period", [2, 3, 5])
def test_one_of_every_few_layers_is_of_its_own_kind(period: int) -> None:
    depth = reduce_depth(llama(), llama(), 1, period)
    stands_for = [depth.recomputed[traced] for traced in depth.representative[0]]
    assert stands_for == [n % period == 0 for n in range(32)]
    assert sum(depth.depths) == len(depth.recomputed) <= 3 * period + 3
    whole = reduce_depth(llama(), llama(), 0, period)
    assert list(whole.recomputed) == stands_for


def test_every_few_layers_are_counted_through_both_stacks() -> None:
    values = {"model_type": "x", "is_encoder_decoder": True}
    values |= {"encoder_layers": 11, "decoder_layers": 12}
    depth = reduce_depth(values, values, 1, 2)
    encoder = [depth.recomputed[n] for n in depth.representative[0]]
    decoder = [depth.recomputed[depth.depths[0] + n] for n in depth.representative[1]]
    assert encoder + decoder == [n % 2 == 0 for n in range(23)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"encoder_layers": 12, "decoder_layers": 12}, (4, 5)),
        (
            {"num_layers": 24, "num_decoder_layers": 24, "relative_attention_num_buckets": 32},
            (5, 5),
        ),
    ],
)
def test_encoder_decoders_have_two_stacks(
    fields: dict[str, int], expected: tuple[int, int]
) -> None:
    values = {"model_type": "x", "is_encoder_decoder": True, **fields}
    depth = reduce_depth(values, values)
    assert depth.depths == expected
    # contexts of the two stacks never meet
    first, second = depth.contexts[: expected[0]], depth.contexts[expected[0] :]
    assert not set(first) & set(second)
