"""`rigsize plan`: on which machine, how spread and in which batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from rigsize.cli_common import Given, print_answer, say, settings_of, waiting
from rigsize.cli_hardware import rows_of
from rigsize.cli_how import MOST_GLOBAL_BATCH
from rigsize.cli_job import Job as Parsed
from rigsize.cli_job import parse_job
from rigsize.cli_lengths import lengths_planned, with_examples, with_lengths
from rigsize.cli_places import catalogue_asked, check_headroom, check_own, own_asked
from rigsize.cli_settings import Settings, amount, number
from rigsize.errors import SpecError, UnsupportedCombination, nearest
from rigsize.models import check_lengths, check_task
from rigsize.spec.checks import integer
from rigsize.spec.workload import MAX_BATCH
from rigsize.units import parse_bytes

if TYPE_CHECKING:
    from rigsize.hardware import Accelerator
    from rigsize.plan.candidates import Job
    from rigsize.plan.records import Limits
    from rigsize.texts.stats import LengthHistogram

__all__ = ["plan_verb"]

MET, NOBODY = 0, 3
ALLOWED = ("lower-precision", "adapters")
_SAME = ("seed", "lean")
"""Recipes of the same mathematics, searched where no recipe is given."""
MOST_PLANNED_BATCH = MAX_BATCH
"""One device may take it at once."""
_BATCHES = {"pre-training": 256, "fine-tuning": 32}
"""Texts of an optimizer step; Devlin et al. 2018 (BERT), A.2 and A.3."""
_VARIED = ("parallel", "offload", "recompute")
"""Flags that a base Strategy does without: each value is tried with all others."""


def plan_verb(given: Given) -> int:
    """`rigsize plan MODEL`."""
    from rigsize.plan.planner import Question, plan
    from rigsize.report.plan import plan_text
    from rigsize.report.plan_answer import PlanAnswer
    from rigsize.report.plan_document import plan_document

    settings = settings_of("plan", given)
    check_own(settings)
    limits, today = _limits(settings), date.today()
    base, jobs, lengths = _jobs(settings)
    _check_planned(base)
    total = _global_batch(settings, base)
    micro = _micro_batch(settings, base, total, limits)
    own = own_asked(settings, today)
    catalogue = catalogue_asked(settings, limits, today, own)
    cards = _cards(settings)
    check_headroom(settings, limits, catalogue, cards, own)
    for line in settings.warnings:
        say(f"warning: {line}")
    with waiting(f"planning {base.source.name}"):
        found = plan(
            base.source,
            Question(
                jobs=jobs,
                global_batch=total,
                micro_batch=micro,
                accelerators=cards,
                own=own,
                told=lambda number, key: say(
                    f"tracing {base.source.name}, kind {number}: {key.compute},"
                    f" recompute {key.recompute}; some seconds, once"
                ),
                scale=settings.switch("scaling"),
            ),
            limits,
            catalogue.offers,
        )
    answer = PlanAnswer(
        plan=found,
        source=base.source,
        workload=base.workload,
        limits=limits,
        global_batch=total,
        today=today,
        own=None if own is None else own.machine,
        offers=catalogue.offers,
        offers_file=settings.text("offers"),
        usd_per_kwh=amount(settings, "power-price"),
        lengths=lengths,
        texts=tuple(_texts(settings)),
        assumed=tuple(settings.assumed),
    )
    print_answer(lambda: plan_document(answer), settings.switch("json"), lambda: plan_text(answer))
    return MET if found.met else NOBODY


# -- what ---------------------------------------------------------------------------------------


def _check_planned(base: Parsed) -> None:
    """Refuses what no plan is made of, before anything is searched."""
    workload = base.workload
    if workload.generates:
        raise UnsupportedCombination("plan", workload.task, "generation is not planned yet")
    if workload.examples is None:
        raise SpecError(
            "examples",
            None,
            "missing",
            hint="--examples N texts, --data or --histogram: hours and price need their number",
        )
    check_task(base.source.config, workload.task)
    check_lengths(base.source, workload, base.strategy)


def _jobs(settings: Settings) -> tuple[Parsed, list[Job], LengthHistogram | None]:
    """The question without a recipe, each recipe that is searched, and lengths of the texts."""
    for name, instead in (("grad-accum", "--global-batch"), ("tokens-per-batch", "--batch-size")):
        if settings.text(name) is not None:
            raise UnsupportedCombination(
                name, settings.text(name), "the plan sets it", nearest=instead
            )
    if settings.text("max-length") == "auto":
        raise UnsupportedCombination("max-length", "auto", "a plan is of texts of one length")
    asked = settings.integer("global-batch")
    if asked is not None:
        integer("global-batch", asked, 1, MOST_PLANNED_BATCH)
    plain = {k: v for k, v in settings.given.items() if k not in (*_VARIED, "recipe")}
    recipe = settings.text("recipe")
    base = _parsed(plain, None, settings if recipe is None else None)
    # A recipe may set a length: all of them are of the same texts.
    plain.setdefault("max_length", str(base.workload.max_length))
    searched = [
        (label, _parsed({**plain, **more}, name, settings if recipe is not None else None), name)
        for name, label, more in _recipes(settings, recipe)
    ]
    lengths = lengths_planned(settings, [parsed for _, parsed, _ in searched])
    base = _counted(settings, base, lengths)
    jobs = [_job(settings, base, *one, lengths) for one in searched]
    known = lengths is not None
    settings.assumed = [
        line
        for line in settings.assumed
        if not (_is_searched(line) or (known and line.startswith("dynamic padding")))
    ]
    return base, jobs, lengths


def _texts(settings: Settings) -> Iterator[str]:
    """The flags that say how long they are, for the commands of the plans."""
    for name in ("data", "text-column", "label-column", "target-column", "tokenizer", "histogram"):
        value = settings.text(name)
        if value is not None:
            yield from (f"--{name}", value)


def _counted(settings: Settings, base: Parsed, lengths: LengthHistogram | None) -> Parsed:
    """With as many texts as the file has, where nobody said how many."""
    if lengths is None:
        return with_examples(settings, base)
    if base.workload.examples is not None:
        return base
    settings.assumed.append(f"examples {lengths.texts:,}: the texts whose lengths are known")
    return replace(base, workload=replace(base.workload, examples=lengths.texts))


def _job(
    settings: Settings,
    base: Parsed,
    label: str,
    parsed: Parsed,
    recipe: str,
    lengths: LengthHistogram | None,
) -> Job:
    from rigsize.plan.candidates import Job

    fixed = {k: str(settings.given[k]) for k in _VARIED if k in settings.given}
    if settings.text("precision") or label:
        fixed["precision"] = parsed.strategy.precision
    parsed, own = with_lengths(parsed, lengths)
    return Job(
        recipe=recipe,
        workload=replace(parsed.workload, examples=base.workload.examples),
        strategy=parsed.strategy,
        label=label,
        fixed=fixed,
        lengths=own,
    )


def _recipes(
    settings: Settings, recipe: str | None
) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """(name, what it changes, flags beside it) of what is searched."""
    names = _SAME if recipe is None else (recipe,)
    for name in names:
        yield name, "", {}
    allowed = _allowed(settings)
    if settings.text("use") == "inference":
        return
    if "lower-precision" in allowed and recipe is None:
        yield "lean-8bit", "optimizer states of one byte", {}
        yield "lean-bf16", "bf16 weights without a master copy", {}
    if "adapters" in allowed and settings.text("method") is None:
        yield names[-1], "LoRA: the model's own weights stay as they are", {"method": "lora"}


def _allowed(settings: Settings) -> tuple[str, ...]:
    text = settings.text("allow")
    names = tuple(name.strip() for name in text.split(",")) if text is not None else ()
    for name in names:
        if name not in ALLOWED:
            raise SpecError(
                "allow", name, "no such change", allowed=ALLOWED, nearest=nearest(name, ALLOWED)
            )
    return names


def _parsed(plain: Mapping[str, str | bool], recipe: str | None, said: Settings | None) -> Parsed:
    """The job of a recipe; what is assumed is told to `said`."""
    settings = Settings({**plain, **({"recipe": recipe} if recipe else {})})
    parsed = parse_job(settings, "plan")
    if said is not None:
        said.assumed += settings.assumed
        said.warnings += settings.warnings
    return replace(parsed, strategy=replace(parsed.strategy, accumulation=1))


def _is_searched(line: str) -> bool:
    """Whether something that is said to be assumed is searched instead."""
    return line.split()[0] in ("batch-size", "precision", "optim", "recipe")


def _global_batch(settings: Settings, base: Parsed) -> int | None:
    if not base.workload.training:
        return None
    if base.global_batch is not None:
        return base.global_batch
    use = base.workload.use
    why = f"as BERT's authors took for {use}"
    return int(settings.or_assumed("global-batch", str(_BATCHES[use]), why))


def _micro_batch(settings: Settings, base: Parsed, total: int | None, limits: Limits) -> int | None:
    """Texts a device at a time, where they were given; they have to make the global batch."""
    from rigsize.plan.candidates import MOST_OVERSHOOT, batches

    if settings.text("batch-size") in (None, "auto"):
        return None
    micro = base.strategy.micro_batch
    if total is None:
        return micro
    # One more rank than it takes to go beyond it makes nothing that fewer do not.
    most = min(limits.max_gpus, total // micro + 1)
    if not any(batches(total, ranks, micro) for ranks in range(1, most + 1)):
        raise UnsupportedCombination(
            "batch-size",
            micro,
            f"no number of them makes a global batch of {total:,}, to {MOST_OVERSHOOT:.0%} above",
        )
    return micro


# -- limits -------------------------------------------------------------------------------------


def _limits(settings: Settings) -> Limits:
    from rigsize.plan.records import MOST_GPUS, Limits

    most = settings.integer("max-gpus")
    if most is not None:
        integer("max-gpus", most, 1, MOST_GLOBAL_BATCH)
    num_bytes, share = _headroom(settings.text("headroom"))
    provider, region = settings.text("provider"), settings.text("region")
    if region is not None and not region.strip():
        raise SpecError("region", region, "no name")
    return Limits(
        max_price_usd=_positive(settings, "max-price"),
        max_hours=_positive(settings, "max-hours"),
        max_gpus=MOST_GPUS if most is None else most,
        provider=None if provider is None else provider.casefold(),
        region=region,
        spot=settings.switch("spot"),
        headroom_bytes=num_bytes,
        headroom_share=share,
    )


def _cards(settings: Settings) -> tuple[Accelerator, ...] | None:
    """The rows of `--gpu`, which names no number of them; None for all cards."""
    gpu = settings.text("gpu")
    if gpu is None:
        return None
    rows, count = rows_of(gpu)
    if count is not None:
        hint = "--max-gpus N bounds it, --own NAME:N is of one's own"
        raise UnsupportedCombination("gpu", gpu, "the plan finds how many", hint=hint)
    return rows


def _positive(settings: Settings, name: str) -> float | None:
    text = settings.text(name)
    if text is None:
        return None
    value = number(name, text)
    if value <= 0:
        raise SpecError(name, text, "not above 0")
    return value


def _headroom(text: str | None) -> tuple[int, float]:
    """(bytes, share): of every card, whatever its size."""
    if text is None:
        return 0, 0.0
    share = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*%", text.strip())
    if share is None:
        return parse_bytes(text, "headroom"), 0.0
    percent = float(share[1])
    if percent >= 100:
        allowed = ("percentages below 100, such as 10%",)
        raise SpecError("headroom", text, "leaves nothing of any card", allowed=allowed)
    return 0, percent / 100
