"""Which cases of a long matrix `make test` runs, and which only `make exhaustive`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def thinned(cases: Sequence[Any], *, every: int = 3) -> list[Any]:
    """Each `every`-th case as it is, the others marked `exhaustive`.

    Matrices are built with their settings innermost, so that a stride still meets every family
    and every setting.
    """
    return [case if index % every == 0 else exhaustive(case) for index, case in enumerate(cases)]


def exhaustive(case: Any) -> Any:
    """One case, left to `make exhaustive`."""
    values = case if type(case) is tuple else (case,)
    return pytest.param(*values, marks=pytest.mark.exhaustive)
