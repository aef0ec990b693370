"""Pinned memory is rounded up to a power of two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.memory.pinned import pinned_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        (0, 0),
        (1, 1),
        (3, 4),
        (4096, 4096),
        (4097, 8192),
        (GIB, GIB),
        # A shard of 1.03 GB is below 2^30 bytes, one of 1.1 GB is not.
        (1_030_000_000, GIB),
        (1_100_000_000, 2 * GIB),
    ],
)
def test_next_power_of_two(asked: int, held: int) -> None:
    assert pinned_bytes(asked) == held


@given(st.integers(1, 1 << 45))
def test_the_law_of_rounding(asked: int) -> None:
    held = pinned_bytes(asked)
    assert held & (held - 1) == 0
    assert asked <= held < 2 * asked
    assert pinned_bytes(held) == held


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_more_bytes_never_take_less(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert pinned_bytes(low) <= pinned_bytes(high)
