"""The flags of time and money: from a job to its hours and its price, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from rigsize.cli_common import say
from rigsize.cli_job import Job
from rigsize.cli_offer import CHOOSING, catalogue_of, offer_of
from rigsize.cli_settings import Settings, amount, number
from rigsize.errors import SizingError
from rigsize.hardware.targets import target_of
from rigsize.report.timed import NOT_ASKED, Timed
from rigsize.run.folders import has_calibrations
from rigsize.spec import Cluster
from rigsize.spec.checks import share

if TYPE_CHECKING:
    from rigsize.estimate import Estimate
    from rigsize.money import BreakEven, Cost
    from rigsize.steptime.calibration import Calibration
    from rigsize.steptime.run_lines import Around, RunTime
    from rigsize.texts.stats import LengthHistogram

__all__ = ["timed"]

LEFT_OUT = "left out: --no-time"
NOT_STORED = "what a step of this model computes is not stored: --time traces it, once"
NO_PRICE = "there is no time to pay for"
_PRICED = (*CHOOSING, "own-price", "power-price")
_AROUND = ("eval-share", "save-minutes", "calibration")
_FROM_HUB = ("bundled", "hub")
"""Origins of a model whose weights are not on this machine."""
DRAWS = 1000
FEW_DRAWS = 100
"""Where a number of texts asks for hours, but nothing for a trace."""


def timed(settings: Settings, job: Job, found: Estimate, lengths: LengthHistogram | None) -> Timed:
    """Time and price of a job whose batch is settled and whose memory was found.

    Without `--time`, or a flag that needs it, only what is stored answers; without a number of
    texts either, with the middle of the step alone: a memory answer may not get slower. What cannot
    be timed never makes it fail; flags that are wrong do.
    """
    _check(settings)
    if settings.given.get("time") is False:
        return Timed(reason=LEFT_OUT, cost_reason=LEFT_OUT)
    cluster = found.cluster
    flags = any(settings.text(name) is not None for name in (*_PRICED, *_AROUND))
    asked = settings.switch("time") or settings.switch("spot") or flags
    counted = job.workload.examples is not None or lengths is not None
    draws = DRAWS if asked else FEW_DRAWS if counted else 0
    calibration = _calibrated(settings, cluster)
    try:
        run = _run(settings, job, found, lengths, calibration, draws, trace=asked)
    except SizingError as error:
        return Timed(reason=str(error), cost_reason=NO_PRICE)
    if run is None:
        return Timed(reason=NOT_STORED, cost_reason=NO_PRICE)
    note = _old_card(cluster)
    if not draws:
        return Timed(run=run, middle=True, cost_reason=NOT_ASKED, note=note)
    cost, why = _cost(settings, run, cluster)
    if asked and cost is not None and cost.stale:
        say(f"warning: {cost.notes[0]}")
    return Timed(
        run=run,
        cost=cost,
        cost_reason=why,
        bought=_bought(settings, run, cost, cluster),
        explained=asked or settings.switch("explain"),
        note=note,
        command=tuple(_words(settings, job, asked)),
    )


def _old_card(cluster: Cluster) -> str:
    """What no torch of today runs on has a time and a price all the same, of an older one."""
    card = cluster.accelerator
    if card.is_cpu or target_of(card).trains:
        return ""
    return (
        f"PyTorch on {card.id}: {card.pytorch_support}; time and price are those of a torch that"
        " still runs on it"
    )


def _calibrated(settings: Settings, cluster: Cluster) -> Calibration | None:
    """What was measured of the card on this machine; what is passed over is said."""
    asked = settings.text("calibration")
    if asked is None and not has_calibrations():
        return None
    from rigsize.run.calibration_records import calibration_asked

    found = calibration_asked(asked, cluster.accelerator.id)
    for note in found.notes:
        say(f"warning: {note}")
    return found.calibration


def _check(settings: Settings) -> None:
    """Mistakes in the flags are mistakes, whether or not there is a time."""
    for name in ("own-price", "power-price", "save-minutes"):
        amount(settings, name)
    _eval_share(settings)


def _eval_share(settings: Settings) -> float:
    text = settings.text("eval-share")
    if text is None:
        return 0.0
    value = number("eval-share", text)
    share("eval-share", value)
    return value


def _run(
    settings: Settings,
    job: Job,
    found: Estimate,
    lengths: LengthHistogram | None,
    calibration: Calibration | None,
    draws: int,
    *,
    trace: bool,
) -> RunTime | None:
    """The hours; None where they would take a trace that is not wanted."""
    from rigsize.steptime.run_time import has_stored_work, run_time

    workload = job.workload
    examples = workload.examples or (None if lengths is None else lengths.texts)
    held_out = 0 if examples is None else round(_eval_share(settings) * examples)
    if examples is not None:
        workload = replace(workload, examples=max(1, examples - held_out))
    asked = (job.source, workload, job.strategy, found.cluster)
    if not trace and not has_stored_work(*asked, lengths):
        return None
    saved = found.program.saved_on_host.values()
    return run_time(
        *asked,
        lengths=lengths,
        around=_around(settings, job, held_out),
        calibration=calibration,
        draws=draws,
        saved_bytes=sum(map(sum, saved)) if job.strategy.offload == "activations" else None,
    )


def _around(settings: Settings, job: Job, evaluated: int) -> Around:
    """As `rigsize train` would go about it; 0 minutes between checkpoints are none at all."""
    from rigsize.steptime.run_lines import Around

    plain = Around(evaluated=evaluated, downloads=job.source.origin in _FROM_HUB)
    minutes = amount(settings, "save-minutes")
    if minutes is None:
        return plain
    return replace(plain, checkpoint_every_s=minutes * 60 or None)


def _cost(settings: Settings, run: RunTime, cluster: Cluster) -> tuple[Cost | None, str]:
    """The price and, where there is none, why; a wrong file, provider or name raises."""
    from rigsize.money import cost

    today = date.today()
    catalogue = catalogue_of(settings, today)
    for warning in catalogue.warnings:
        say(f"warning: {warning}")
    try:
        offer = offer_of(settings, catalogue, cluster)
        found = cost(run, offer, cluster, today, spot=settings.switch("spot"))
    except SizingError as error:
        return None, str(error)
    return found, ""


def _bought(
    settings: Settings, run: RunTime, cost: Cost | None, cluster: Cluster
) -> BreakEven | None:
    from rigsize.money import break_even

    own, power = amount(settings, "own-price"), amount(settings, "power-price")
    if own is None:
        if power is not None:
            say("warning: --power-price has no effect without --own-price")
        return None
    return None if cost is None else break_even(run, cost, cluster, own, power)


def _words(settings: Settings, job: Job, asked: bool) -> Iterator[str]:
    """What of the command line time and price depend on."""
    workload = job.workload
    if workload.examples is not None:
        yield from ("--examples", str(workload.examples))
    if workload.epochs > 1:
        yield from ("--epochs", str(workload.epochs))
    if asked:
        yield "--time"
    for name in (*_PRICED, *_AROUND):
        value = settings.text(name)
        if value is not None:
            yield from (f"--{name}", value)
    if settings.switch("spot"):
        yield "--spot"
