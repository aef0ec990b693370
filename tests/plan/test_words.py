"""What a plan says: misses, and why there is no machine."""

from __future__ import annotations

from dataclasses import replace

from tests.plan.made import place

from rigsize.hardware import find_accelerator
from rigsize.hardware.offers import Offer
from rigsize.plan.records import Limits, Score
from rigsize.plan.words import hours_in_words, misses_of, nowhere_in_words

L4, TPU = find_accelerator("L4"), find_accelerator("TPU-v4")


def offer(**changed: object) -> Offer:
    return replace(place("L4", 8, 1, 4.0).offer, **changed)  # type: ignore[arg-type]


def test_misses_are_shown_in_figures_that_tell() -> None:
    limits = Limits(max_price_usd=0.001, max_hours=0.01)
    assert misses_of(Score(0.0256, 0.0456), limits) == (
        "0.046 USD, 0.045 over --max-price",
        "0.026 hours, 0.016 over --max-hours",
    )
    assert misses_of(Score(0.005, 0.001), limits) == ()
    assert hours_in_words(1234.5) == "1,234.50"


def test_the_card_then_the_provider_then_the_count_is_named() -> None:
    offers = (offer(),)
    assert nowhere_in_words((TPU,), Limits(), offers).startswith("nothing is planned on TPU-v4: ")
    t4 = find_accelerator("T4")
    assert nowhere_in_words((t4,), Limits(), offers) == "nobody in the catalogue offers T4"
    said = nowhere_in_words((L4,), Limits(provider="aws"), offers)
    assert said == "aws offers no L4; made offers it"
    said = nowhere_in_words((L4,), Limits(max_gpus=4), offers)
    assert said == "the smallest such machine has 8 GPUs, more than --max-gpus 4"
    said = nowhere_in_words((L4,), Limits(spot=True, region="mars"), offers)
    assert said == "no machine meets all that was asked for: --region mars, --spot"
    said = nowhere_in_words(None, Limits(), (offer(gpu_count=0.5),))
    assert said.startswith("only slices of a GPU")
