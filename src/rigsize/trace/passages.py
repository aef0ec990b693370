"""Passages of a schedule through the layers of one stack. No torch here.

The layers run in turn, up or down, and a full model repeats what the traced one does. Only the
first or the last layer may stand aside: DeBERTa keeps every hidden state, and the last one is the
output, which dies elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

Schedule = Sequence[tuple[str, int, int]]
"""(phase, group, template)."""


def passage_at(schedule: Schedule, index: int, layers: Sequence[int]) -> list[int] | None:
    """The groups of the passage through `layers` that begins at `index`; None if none does."""
    phase = schedule[index][0]
    for kept in (layers, layers[:-1], layers[1:]):
        entries = schedule[index : index + len(kept)]
        groups = [group for _, group, _ in entries]
        in_phase = all(entry[0] == phase for entry in entries)
        if groups and in_phase and groups in (list(kept), list(kept)[::-1]):
            return groups
    return None


def full_passage(passage: Sequence[int], layers: Sequence[int], full: range) -> Sequence[int]:
    """The same passage through the `full` layers that the traced `layers` stand for."""
    start = full.start + (layers[0] not in passage)
    stop = full.stop - (layers[-1] not in passage)
    ascending = passage[0] <= passage[-1]
    return range(start, stop) if ascending else range(start, stop)[::-1]
