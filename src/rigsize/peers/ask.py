"""All estimators on one run, each with what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rigsize.peers import accelerate, deepspeed, rules
from rigsize.peers.answer import PeerAnswer
from rigsize.peers.ours import our_answer

if TYPE_CHECKING:
    from rigsize.estimate import Estimate

__all__ = ["ask_all"]

PEERS: tuple[Callable[[Estimate], PeerAnswer], ...] = (
    accelerate.ask,
    deepspeed.ask_zero2,
    deepspeed.ask_zero3,
    rules.multiple_of_weights,
    rules.of_the_article,
)


def ask_all(estimate: Estimate) -> tuple[PeerAnswer, ...]:
    """Ours first; then the others' own code where it is installed, and the rules of thumb."""
    ours = our_answer(estimate)
    return (ours, *(_judged(peer(estimate), ours) for peer in PEERS))


def _judged(answer: PeerAnswer, ours: PeerAnswer) -> PeerAnswer:
    """With the terms that this run takes memory for and that the other does not count."""
    if answer.total_bytes is None:
        return answer
    return replace(
        answer, left_out=tuple(term for term in ours.terms if term not in answer.counted)
    )
