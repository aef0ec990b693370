"""What the values of a mask would decide, answered where a fake tensor has none.

transformers drops a mask that masks nothing, and so lets attention run by its causal flag, but it
reads no values while tracing (`is_tracing` in `masking_utils`) and then keeps every mask. Two of
its questions have one answer in a real step: a mask of ones that the model made itself masks
nothing (BART's decoder), and positions that the model counted up itself hold one sequence a row
(every decoder that gets no mask). A padding mask of the batch does mask something: that is what
`padded` means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

ONES = frozenset({"aten::ones", "aten::new_ones", "aten::ones_like"})
COPIES = frozenset({"aten::_to_copy", "aten::clone"})
IGNORING = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")

Question = Callable[[torch.Tensor], bool]


class KnownOnes:
    """The storages that hold nothing but ones."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def born(self, operator: str, source: int, storage: int) -> None:
        """An operator made `storage`; `source` is its first argument's, -1 if it has none."""
        if operator in ONES or (operator in COPIES and source in self._storages):
            self._storages.add(storage)

    def written(self, storage: int) -> None:
        """An operator wrote into `storage`."""
        self._storages.discard(storage)

    def __contains__(self, storage: int) -> bool:
        return storage in self._storages


@contextlib.contextmanager
def answered(is_ones: Question, is_given: Question) -> Iterator[None]:
    """While this lasts transformers decides about masks as in a real step.

    `is_ones` tells a mask known to hold only ones, `is_given` an input of the step.
    """
    from transformers import masking_utils

    def ignoring(original: Callable[..., bool]) -> Callable[..., bool]:
        def ignore(padding_mask: torch.Tensor | None, *args: Any, **kwargs: Any) -> bool:
            nothing = padding_mask is not None and is_ones(padding_mask)
            return original(None if nothing else padding_mask, *args, **kwargs)

        return ignore

    def finding(original: Callable[..., torch.Tensor | None]) -> Callable[..., Any]:
        def find(position_ids: torch.Tensor) -> torch.Tensor | None:
            packed = original(position_ids)
            if packed is None or is_given(position_ids):
                return packed
            (packed[:, -1] == 0).all()  # the question itself takes a little memory too
            return None

        return find

    with contextlib.ExitStack() as stack:
        for name in IGNORING:
            stack.enter_context(_replaced(masking_utils, name, ignoring))
        stack.enter_context(_replaced(masking_utils, "find_packed_sequence_indices", finding))
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)
