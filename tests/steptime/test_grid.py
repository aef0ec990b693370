import math

import pytest

from rigsize.steptime.grid import Grid

AXES = ((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8))
METRIC = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def linear_grid(missing: tuple[int, ...] = ()) -> Grid:
    """1000 + 100 log2 x + 20 log2 y + 3 log2 z, in the grid's units of 1e-4."""
    points = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    values = [1000 + 100 * x + 20 * y + 3 * z for x, y, z in points]
    known = [None if i in missing else v for i, v in enumerate(values)]
    return Grid(axes=AXES, values=tuple(known), metric=METRIC)


def test_a_measured_point_answers_with_its_measurement() -> None:
    assert linear_grid().at((4, 2, 8)) == pytest.approx((1000 + 200 + 20 + 9) * 1e-4, abs=1e-12)


def test_a_linear_law_is_found_between_and_at_a_hole() -> None:
    # (2, 4, 2): index 1*16 + 2*4 + 1 = 25; the neighbours lie symmetrically, so the ridge on the
    # slopes moves nothing and the linear law is exact.
    assert linear_grid((25,)).at((2, 4, 2)) == pytest.approx((1000 + 100 + 40 + 3) * 1e-4)
    middle = linear_grid().at((math.sqrt(8), math.sqrt(8), math.sqrt(8)))
    assert middle == pytest.approx((1000 + 1.5 * 123) * 1e-4)


def test_no_jump_at_a_measured_point() -> None:
    grid = Grid(axes=AXES, values=tuple((i * 37) % 101 for i in range(64)), metric=METRIC)
    assert grid.at((4.0001, 2, 2)) == pytest.approx(grid.at((4, 2, 2)), abs=1e-6)


def test_beyond_the_grid_its_face_answers() -> None:
    assert linear_grid().at((64, 2, 2)) == linear_grid().at((8, 2, 2))


def test_no_measurement_is_an_error() -> None:
    with pytest.raises(ValueError, match="no measurement near"):
        Grid(axes=AXES, values=(None,) * 64, metric=METRIC).at((2, 2, 2))
