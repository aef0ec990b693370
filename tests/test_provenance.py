from typing import Any

import pytest

from rigsize.provenance import Sourced

GOOD: dict[str, Any] = {
    "value": 1,
    "source": "datasheet",
    "as_of": "2026-11-22",
    "basis": "datasheet",
}


def test_keeps_what_it_is_given() -> None:
    assert Sourced(**GOOD).value == 1


@pytest.mark.parametrize("change", [{"source": " "}, {"as_of": ""}, {"basis": "guessed"}])
def test_refuses_a_value_without_source_date_or_basis(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"value|basis"):
        Sourced(**{**GOOD, **change})
