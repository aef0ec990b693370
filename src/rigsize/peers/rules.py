"""Rules of thumb: a multiple of the weights. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rigsize.peers.answer import PeerAnswer

if TYPE_CHECKING:
    from rigsize.estimate import Estimate

__all__ = ["multiple_of_weights", "of_the_article"]

_STATES = {
    **dict.fromkeys(("sgd", "adafactor", "adafactor-foreach", "adafactor-hf"), 0),
    **dict.fromkeys(("sgd-momentum", "lion", "lion-8bit", "rmsprop", "muon"), 1),
}
"""Optimizer states as large as the weights; those of Adam, two, for every other name."""
ARTICLE_FACTOR = 3
"""`During training, the model occupies approximately three times more GPU memory than during
inference`: the article, `Memory Footprint of a Language Model`."""


def multiple_of_weights(estimate: Estimate) -> PeerAnswer:
    """Weights, gradients and optimizer states of one size: x1, x2 (SGD), x4 (Adam).

    As transformers' guide to the anatomy of a model's memory and accelerate's estimator have it;
    what the rule calls weights is parameters by the bytes of one.
    """
    weights = _weights(estimate)
    terms = {"weights": weights}
    if estimate.workload.training:
        states = _STATES.get(estimate.strategy.optimizer, 2)
        terms |= {"gradients": weights, "optimizer_states": states * weights}
    terms = {term: size for term, size in terms.items() if size}
    total = sum(terms.values())
    return PeerAnswer(
        name=f"x{total // weights} rule",
        total_bytes=total,
        terms=terms,
        note="parameters by the bytes of a weight, gradients and states as large",
    )


def of_the_article(estimate: Estimate) -> PeerAnswer:
    """Three times the weights in training, these alone in inference."""
    training = estimate.workload.training
    return PeerAnswer(
        name="the article's x3" if training else "the article's x1",
        total_bytes=_weights(estimate) * (ARTICLE_FACTOR if training else 1),
        lumped=("weights", "gradients", "optimizer_states") if training else ("weights",),
        note="training takes approximately three times more than inference",
    )


def _weights(estimate: Estimate) -> int:
    policy = estimate.strategy.policy
    bits = 4 if policy.name == "int4" else 8 * policy.weight_bytes
    return -(-estimate.parameters.model * bits // 8)
