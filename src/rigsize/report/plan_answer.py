"""A Plan with what was asked, and the commands that ask for its plans again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from rigsize.hardware.offers import Offer
from rigsize.models import ModelSource
from rigsize.plan.records import Chosen, Limits, Plan
from rigsize.report.answer import command_for
from rigsize.spec import Workload
from rigsize.spec.zero import ZEROS
from rigsize.texts.stats import LengthHistogram

__all__ = [
    "NETWORK",
    "NO_TIME",
    "PlanAnswer",
    "command",
    "kept_bytes",
    "notes_of_named",
    "with_a_name",
]

NO_TIME = "no time can be given for it"
NETWORK = "100 Gbit/s between nodes"
"""As the time model says it of a plan of several nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A Plan with what was asked."""

    plan: Plan
    source: ModelSource
    workload: Workload
    limits: Limits
    global_batch: int | None
    today: date
    own: Offer | None = None
    """The machines one has."""
    offers: tuple[Offer, ...] = ()
    """The catalogue."""
    offers_file: str | None = None
    """Of `--offers`."""
    usd_per_kwh: float | None = None
    """Of their energy; None where it has no price."""
    lengths: LengthHistogram | None = None
    """Of the texts, where batches of any recipe are not padded to max-length."""
    texts: tuple[str, ...] = ()
    """The flags that name them."""
    assumed: tuple[str, ...] = ()


def command(chosen: Chosen, answer: PlanAnswer, verb: str = "estimate") -> str:
    """The command that asks for this very plan, or with `emit` writes its launch files."""
    candidate, workload = chosen.candidate, answer.workload
    cluster, rented = candidate.place.cluster, candidate.place.offer is not answer.own
    if rented and verb == "estimate":  # its --offer says it
        cluster = replace(cluster, host_memory_bytes=None)
    kept = kept_bytes(chosen) if verb == "estimate" else 0
    words = command_for(verb, candidate.way.workload, candidate.strategy, cluster, kept)
    if workload.examples is not None and "--examples" not in words:
        words += f" --examples {workload.examples}"
    if workload.epochs != 1 and "--epochs" not in words:
        words += f" --epochs {workload.epochs}"
    if candidate.way.lengths is not None and verb == "estimate":
        words += f" {shlex.join(answer.texts)}"
    if verb == "estimate":
        words += " --time"
        words += f" {shlex.join(_offer_words(candidate.place.offer, answer))}" if rented else ""
    return words


def _offer_words(offer: Offer, answer: PlanAnswer) -> Iterator[str]:
    """What makes `estimate` price this machine and no other."""
    yield from ("--provider", offer.provider, "--offer", offer.instance)
    if sum((o.provider, o.instance) == (offer.provider, offer.instance) for o in answer.offers) > 1:
        yield from ("--region", offer.region)
    if answer.offers_file is not None:
        yield from ("--offers", answer.offers_file)
    if answer.limits.spot:
        yield "--spot"


def kept_bytes(chosen: Chosen) -> int:
    """Of the card, what its capacity was lessened by."""
    whole = chosen.candidate.place.offer.accelerator.capacity_bytes or 0
    return whole - (chosen.candidate.place.cluster.accelerator.capacity_bytes or 0)


def notes_of_named(answer: PlanAnswer) -> Iterator[str]:
    """What is to be known of named plans before they are launched."""
    if any(one.candidate.strategy.parallel in ZEROS for one in with_a_name(answer)):
        yield "`rigsize train` does not run ZeRO: `rigsize emit` writes the files for DeepSpeed"


def with_a_name(answer: PlanAnswer) -> list[Chosen]:
    """Cheapest, fastest, smallest or nearest: what has an interval and a replay of its own."""
    return [one for one in answer.plan.chosen if one.labels != ("front",)]
