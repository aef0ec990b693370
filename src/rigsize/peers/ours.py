"""Our own answer and a Record's, in the terms of a comparison. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rigsize.peers.answer import TERMS, PeerAnswer

if TYPE_CHECKING:
    from rigsize.estimate import Estimate
    from rigsize.run.record import Record

__all__ = ["our_answer", "recorded", "term_of"]

_REST = ("activations", "logits", "temporaries", "communication", "workspaces")
"""What an attribution by the identity of storages cannot tell apart."""


def term_of(ledger_name: str) -> str:
    """`weights.blocks` is of the weights; what is not in TERMS is `other`."""
    first = ledger_name.partition(".")[0]
    return first if first in TERMS else "other"


def _always(estimate: Estimate) -> tuple[str, ...]:
    """Terms that every such run takes memory for, whether or not any of it lives at the peak."""
    return ("activations", "logits") if estimate.workload.predicts_tokens else ("activations",)


def our_answer(estimate: Estimate) -> PeerAnswer:
    """The Estimate's ledger, its rows added up by term; they sum to the total."""
    from rigsize import __version__

    totals = dict.fromkeys(_always(estimate), 0)
    for row in estimate.memory.ledger:
        term = term_of(row.name)
        totals[term] = totals.get(term, 0) + row.num_bytes
    memory = estimate.memory
    on_card = memory.device_peak_bytes is not None
    return PeerAnswer(
        name="rigsize",
        version=__version__,
        total_bytes=memory.device_peak_bytes if on_card else memory.allocated_peak_bytes,
        terms={term: totals[term] for term in TERMS if term in totals},
        note=f"what lives at the peak, {memory.peak_moment}",
    )


def recorded(record: Record) -> PeerAnswer:
    """What the run really took: of the device, on a CPU of the allocations.

    Its terms are known where it was made with `--attribution`, and of another moment than the
    device's peak: of that of the allocated bytes.
    """
    memory = record.memory
    name = "device_peak_bytes" if record.device == "cuda" else "allocated_peak_bytes"
    total = getattr(memory, name) if record.outcome == "ok" else None
    found = record.attribution
    terms = {} if found is None else {k: v for k, v in found.categories.items() if k in TERMS}
    if found is not None:
        terms["other"] = found.categories.get("inputs", 0)
    if memory.context_bytes:
        terms["context"] = memory.context_bytes
    return PeerAnswer(
        name="measured",
        version=f"Record {record.record_id[:8]}",
        total_bytes=total,
        unknown_reason=memory.unknown.get(name, "") or record.outcome.replace("_", " "),
        terms={term: terms[term] for term in TERMS if terms.get(term)},
        lumped=_REST if found is not None else tuple(t for t in TERMS if t not in terms),
        note=f"{record.hardware.gpu or record.hardware.cpu or record.device}, {record.created}",
    )
