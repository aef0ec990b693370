"""What each dispatched operator of a step costs, noted in order.

Noted beside the births and deaths of the same trace (`trace.recorder`), with nothing of the
recorder's own state touched; what an operator costs is in `trace.work_costs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rigsize.trace.work_costs import Call, costs_of

if TYPE_CHECKING:
    from rigsize.trace.recorder import Layers

__all__ = ["DISPATCH", "WorkLog", "WorkNote"]

DISPATCH = "dispatch"
"""Kind of the note that every dispatch makes, before those of its kernels."""


@dataclass(slots=True)
class WorkNote:
    """A dispatch of the host, or a kernel of it."""

    phase: str
    group: int
    op: str
    kind: str
    """Of a `Cost`, attention or attention_backward, or DISPATCH."""
    numbers: tuple[int, ...] = ()
    label: tuple[Any, ...] = ()
    """(dtype, detail), or an attention node's."""


class WorkLog:
    """The notes of one step, in order.

    It asks which layer a dispatch belongs to without the recorder's memory of it, so that the
    births and deaths are told as if nobody took notes.
    """

    def __init__(self, layers: Layers, device: str) -> None:
        self.notes: list[WorkNote] = []
        self._layers, self._device = layers, device
        self._backward_in = 0
        self._in_leaf = False
        self._attention: dict[int, tuple[tuple[int, ...], tuple[Any, ...]]] = {}
        """By the storage of its output, an attention's sizes and label."""

    def dispatched(
        self, func: Any, args: Any, outputs: tuple[Any, ...], phase: str, *, in_place: bool
    ) -> None:
        """An operator ran."""
        op = func.name()
        if op.startswith("prim::"):
            return  # asks a tensor for its device: no operator in a real run
        group = self._group(phase)
        if op == "aten::detach" and not (self._in_leaf or phase.startswith("after_")):
            return  # autograd's own, of what it saves: only a dispatch mode sees it
        self.notes.append(WorkNote(phase, group, op, DISPATCH))
        call = Call(self._device, in_place)
        self.notes += [
            WorkNote(phase, group, op, kind, numbers, (dtype, detail))
            for kind, dtype, numbers, detail in costs_of(func, args, outputs, call)
        ]

    def taken_apart(self, func: Any, args: Any, out: Any, phase: str) -> None:
        """An operator ran that the recorder takes apart to what it allocates.

        LLM.int8's rounding of rows is one kernel beside that; of its other operators the product
        inside tells all (`int8_linear_matmul`).
        """
        if func.name() == "bitsandbytes::int8_vectorwise_quant":
            self.dispatched(func, args, out, phase, in_place=False)

    def attended(self, storage: int, figures: Mapping[str, Any], phase: str) -> None:
        """A call of attention whose output is `storage`; figures as the recorder tells them."""
        self._attention[storage] = figures["numbers"], figures["label"]
        self._note_attention("attention", storage, phase)

    def attended_back(self, storage: int, phase: str) -> None:
        """The backward pass of that call."""
        self._note_attention("attention_backward", storage, phase)

    def _note_attention(self, kind: str, storage: int, phase: str) -> None:
        group, op = self._group(phase), "scaled_dot_product_attention"
        numbers, label = self._attention[storage]
        self.notes.append(WorkNote(phase, group, op, DISPATCH))
        self.notes.append(WorkNote(phase, group, op, kind, numbers, label))

    def _group(self, phase: str) -> int:
        """The layer in which the step is; notes whether a gradient reaches its parameter there."""
        self._in_leaf = False
        if phase != "backward":
            return self._layers.current
        node = torch._C._current_autograd_node()
        if node is not None:
            place = self._layers.of_node(node)
            self._in_leaf = place is None
            self._backward_in = place[0] if place is not None else self._backward_in
        return self._backward_in
