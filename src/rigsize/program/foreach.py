"""What torch's foreach functions have in common: groups of one dtype and lists of temporaries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, Protocol

from rigsize.program.timeline import Parameter, Place

Device = Literal["cuda", "cpu"]
FP32_BYTES = 4
HALF_BYTES = 2


@cache
def place(category: str, op: str, phase: str = "optimizer") -> Place:
    """The one Place that all storages of an operator share; every rule here was read in source."""
    return Place(category, phase, op=op, basis="derived")


def dtype_groups(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Parameters of one dtype together, as `_group_tensors_by_device_and_dtype` gives them.

    torch collects the groups in a hash map and walks it: the dtype met last comes first (libstdc++,
    seen on the CPU build, whose code is the same). The element size stands for the dtype, so fp16
    and bf16 in one model would be taken for one. Source: torch/utils/_foreach_utils.py,
    aten/src/ATen/native/ForeachUtils.h.
    """
    groups: dict[int, list[Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.itemsize, []).append(parameter)
    return list(reversed(groups.values()))


class Frees(Protocol):
    """A timeline, or a micro-step of it."""

    def free(self, storage: int) -> None:
        """Ends a storage's life here."""


def free_list(timeline: Frees, storages: Sequence[int]) -> None:
    """The end of a Python list or tuple: CPython drops its items from the last to the first."""
    for storage in reversed(storages):
        timeline.free(storage)
