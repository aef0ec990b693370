"""Who owns a tensor, and so whether the real engine would add into it.

Two gradients that meet in a node's input buffer are added in place when nobody else holds the one
that waits, neither the tensor nor its storage (`can_accumulate_inplace` of
`torch/csrc/autograd/input_buffer.cpp`). While a dispatch mode is active the engine never does
(`isTensorSubclassLike` of `ATen/TensorSubclassLikeUtils.h`), so the recorder asks the same question
by the same reference counts. A gradient that is a view holds its base, even where gradients are off
(`as_view`, NO_GRAD_MODE), and is therefore never added into: the transposed weight gradient of a
tied LM head, the reshaped input gradient of a Linear on a three-dimensional tensor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def reference_counts(tensor: torch.Tensor) -> tuple[int, int]:
    """How many hold the tensor and how many its storage, wrappers and dispatch included."""
    counts = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return tensor._use_count(), counts  # type: ignore[attr-defined]


def engine_may_add_into(waiting: torch.Tensor, sole_owner: tuple[int, int]) -> bool:
    """The engine's own conditions: sole owner of tensor and storage, dense.

    With the storage owned alone the tensor is no view, so it is dense where it fills its storage.
    """
    filled = waiting.untyped_storage().nbytes() == waiting.numel() * waiting.element_size()
    return filled and reference_counts(waiting) == sole_owner


@functools.cache
def counts_of_sole_owner() -> tuple[int, int]:
    """What `reference_counts` gives inside a dispatch mode for a gradient only the buffer holds.

    Measured on a graph where a residual's gradient waits alone: dispatch and Python wrappers add
    counts of their own, and how many is no business of a published interface.
    """
    probe = _Probe()
    with torch.enable_grad(), FakeTensorMode(), probe:
        leaf = torch.empty(3, 5, requires_grad=True)
        stream = leaf.sin()
        (stream + stream.cos().sin()).sin().sum().backward()
    if len(probe.found) != 1:  # pragma: no cover - another torch
        raise AssertionError(f"one meeting expected, found {len(probe.found)}")
    return probe.found[0]


class _Probe(TorchDispatchMode):
    """Notes the counts of the tensor that waits, at the engine's only addition of the graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            out.untyped_storage()  # the recorder makes this wrapper too, and it counts
        if func is torch.ops.aten.add.Tensor and torch._C._current_autograd_node() is not None:
            self.found.append(reference_counts(args[0]))
        return out
