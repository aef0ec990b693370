"""What docs/kernels.md prints, for the parts that take seconds; the rest is the script's."""

import pytest
from validation.check_kernels import held_out_error, left_out_error, pairs_error

from rigsize.hardware import find_accelerator
from rigsize.steptime.tables import tables_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["A100-80GB-SXM", "H100-80GB-SXM"])
def test_a_gpu_left_out_is_within_14_percent(name: str) -> None:
    assert left_out_error(name) < 14


def test_pairs_held_out_are_within_8_percent_on_the_hardest_card() -> None:
    assert pairs_error("L40S") < 8


def test_attention_held_out_is_within_6_percent() -> None:
    tables = tables_of(find_accelerator("A100-80GB-SXM"))
    assert tables is not None
    grid = tables.attention[0].grid
    assert held_out_error(grid, lambda i: i * 7919 % 5, (0,)) < 6


def test_the_error_is_that_of_a_point_it_was_not_given() -> None:
    # With the grid's own value left in, the error would be zero.
    tables = tables_of(find_accelerator("A100-80GB-SXM"))
    assert tables is not None
    assert held_out_error(tables.attention[0].grid, lambda i: i % 5, (0,)) > 1
