"""The article's hours: predicted with nothing fitted, and one reading of its pre-training rows.

The article leaves out what its hours depend on most: precision, padding, and what travels between
GPU and host in a micro-step. Its pre-training rates are above the fp32 peak of an A100, grow with
the batch as TF32 products over 128 positions do, and have a part that does not depend on the batch
and grows with the parameters. So `reading_of` takes one mechanism for all nine rows: TF32, every
text padded to 128 tokens, FSDP2 with CPU offload (on one GPU too) and blocks kept whole after
their forward pass. Its gradients are added up on the host in every micro-step. Chosen for the
hours, it gives the size classes of all nine rows as well. Two constants of the article's machine
are fitted to these rows and prove nothing about the model beyond them:

    micro-step = simulated step without the host's sum + fixed_s + host_s_per_param x P x h

P counts the parameters of the whole model, since the ranks of a node share its host memory. h is 1
on the A100 machine and HOST_OF_H100 on the other.

The fine-tuning rows never take part: they contradict the pre-training rows by 20 to 180 times.
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rigsize.errors import SizingError
from rigsize.hardware import Accelerator, find_accelerator
from rigsize.point import point_of
from rigsize.program.work_build import work_for
from rigsize.provenance import Sourced
from rigsize.seed_table import ROWS, question_of, stated_of
from rigsize.spec import Strategy
from rigsize.steptime.run_lines import Around, RunTime, run_time_of
from rigsize.steptime.step import Quantiles, step_time
from rigsize.steptime.streams import HOST_SUM

__all__ = [
    "EXAMPLES",
    "HOST_OF_H100",
    "READING",
    "Hours",
    "Reading",
    "RowHours",
    "SeedRow",
    "fit",
    "left_out",
    "predict_hours",
    "reading_of",
    "seed_rows",
]

EXAMPLES = {"fine-tuning": 10_000, "pre-training": 1_000_000}
"""Tweets of an epoch, as the article has them."""
_SXM = {"H100-80GB-PCIe": "H100-80GB-SXM"}
"""Eight H100 in one machine are usually SXM; the article links the PCIe card."""
HOST_OF_H100 = Sourced(
    value=1 / 3,
    source="host memory of the other machine: two sockets of eight DDR5-4800 channels, 614 GB/s,"
    " as machines of eight H100 have, against one of eight DDR4-3200 channels, 205 GB/s, as"
    " machines of four A100 have; the article names neither",
    as_of="2026-11-28",
    basis="assumed",
)
READING = (
    "TF32, every text padded to 128 tokens, FSDP2 with CPU offload and blocks kept whole after"
    " forward on every row (one GPU too), the eight H100 as SXM; two constants fitted to these nine"
    " rows: host seconds a parameter and micro-step, and fixed seconds a micro-step"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The two constants, fitted to the nine pre-training rows and used for nothing but them."""

    fixed_s: float
    """Seconds a micro-step whatever the model: batches, Python, waiting for one another."""
    host_s_per_param: float
    """Of the host of the A100 machine, for each parameter of the model and micro-step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRow:
    """A pre-training row with what the simulator says of the mechanism."""

    model: str
    num_gpus: int
    micro_batch: int
    published_hours: float
    micro_steps: int
    """Of one rank in an epoch."""
    simulated_s: float
    """A micro-step of the mechanism, the host's sum of gradients left out."""
    parameters: int
    host: float
    """Seconds of the host for the same work, over those of the A100 machine's."""

    def hours(self, reading: Reading) -> float:
        """The epoch."""
        host_s = reading.host_s_per_param * self.parameters * self.host
        return self.micro_steps * (self.simulated_s + reading.fixed_s + host_s) / 3600

    def error(self, reading: Reading) -> float:
        """Hours over the published ones, less one."""
        return self.hours(reading) / self.published_hours - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowHours:
    """A row of the article's tables: an epoch in hours."""

    published: float
    plain: Quantiles | None
    """Under the table's own recipe and the article's words, nothing fitted."""
    reason: str = ""
    """Why there is no plain prediction."""
    bound_by: str = ""
    read: float | None = None
    """By the one reading; None for fine-tuning."""
    note: str = ""
    """The plain prediction on the card that was probably meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """All rows of the article's tables, and what was fitted to nine of them."""

    rows: tuple[RowHours, ...]
    """In the article's order."""
    fitted: Reading | None = None
    """None where the pre-training rows cannot be timed."""


def predict_hours(*, draws: int = 1000) -> Hours:
    """All thirteen rows; the constants of the reading are fitted anew, in a tenth of a second."""
    fitted, read = None, {}
    with contextlib.suppress(SizingError):  # a row of its own says why
        nine = seed_rows()
        fitted = fit(nine)
        read = {_key(row): row.hours(fitted) for row in nine}
    rows = tuple(_hours(row, read.get(_row_key(row)), draws) for row in _published())
    return Hours(rows=rows, fitted=fitted)


def _published() -> list[dict[str, str]]:
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _key(row: SeedRow) -> tuple[str, str, int, int]:
    return "pre-training", row.model, row.num_gpus, row.micro_batch


def _row_key(row: dict[str, str]) -> tuple[str, str, int, int]:
    return row["table"], row["model"], int(row["num_gpus"]), int(row["micro_batch"])


def _hours(row: dict[str, str], read: float | None, draws: int) -> RowHours:
    published = float(row["published_hours"])
    card, note = question_of(row)[2].accelerator, ""
    try:
        run = _epoch(row, card, draws)
        if card.id in _SXM:
            meant = find_accelerator(_SXM[card.id])
            hours = _epoch(row, meant, 0).epoch_hours
            note = "" if hours is None else f"{hours.p50:.3g} h on {meant.id}"
    except SizingError as error:
        return RowHours(published=published, plain=None, reason=str(error), read=read)
    return RowHours(
        published=published, plain=run.epoch_hours, bound_by=run.bound_by, read=read, note=note
    )


def _epoch(row: dict[str, str], card: Accelerator, draws: int) -> RunTime:
    """The steps of an epoch under the table's recipe, as the article states the row."""
    source, workload, cluster = question_of(row)
    workload = replace(workload, examples=EXAMPLES[row["table"]])
    strategy, cluster = stated_of(row), replace(cluster, accelerator=card)
    work = work_for(source, workload, strategy, card, point_of(workload, strategy))
    step = step_time(work, strategy, cluster, draws=draws)
    return run_time_of(work, step, workload, strategy, cluster, around=_STEPS_ALONE, draws=draws)


_STEPS_ALONE = Around(checkpoint_every_s=None, downloads=False, prepared=True)


def reading_of(row: dict[str, str]) -> Strategy:
    """How the one reading runs a row of `seed_rows.csv`."""
    return replace(
        stated_of(row),
        precision="tf32",
        parallel="fsdp",
        offload="cpu",
        reshard_after_forward=False,
    )


def seed_rows() -> list[SeedRow]:
    """The nine pre-training rows under the reading's mechanism, before any constant."""
    return [_seed_row(row) for row in _published() if row["table"] == "pre-training"]


def _seed_row(row: dict[str, str]) -> SeedRow:
    source, workload, cluster = question_of(row)
    card = find_accelerator(_SXM.get(cluster.accelerator.id, cluster.accelerator.id))
    strategy = reading_of(row)
    cluster = replace(cluster, accelerator=card)
    work = work_for(source, workload, strategy, card, point_of(workload, strategy))
    step = step_time(work, strategy, cluster, draws=0)
    host_s = sum(part.seconds for part in step.parts if part.name == HOST_SUM)
    return SeedRow(
        model=row["model"],
        num_gpus=cluster.devices,
        micro_batch=strategy.micro_batch,
        published_hours=float(row["published_hours"]),
        micro_steps=-(-EXAMPLES["pre-training"] // (strategy.micro_batch * cluster.devices)),
        simulated_s=(step.step_s.p50 - host_s) / strategy.accumulation,
        parameters=sum(work.parameters),
        host=1.0 if row["gpu"].startswith("A100") else HOST_OF_H100.value,
    )


# -- the fit ------------------------------------------------------------------------------------

_LARGEST = Reading(fixed_s=0.5, host_s_per_param=1.5e-9)
_STEPS, _ROUNDS = 20, 12


def fit(rows: Sequence[SeedRow]) -> Reading:
    """The constants with the least mean |log(predicted / published)| over the rows.

    A grid that is drawn closer around its best point, round by round: deterministic, and a single
    row that the mechanism does not explain does not pull the others with it.
    """
    best = Reading(fixed_s=_LARGEST.fixed_s / 2, host_s_per_param=_LARGEST.host_s_per_param / 2)
    width = 1.0
    for _ in range(_ROUNDS):
        best = min(_around(best, width), key=lambda one: _loss(rows, one))
        width /= 2
    return best


def _around(middle: Reading, width: float) -> list[Reading]:
    """A grid of so wide a share of the largest values, none below zero."""
    shares = [width * (2 * n / _STEPS - 1) / 2 for n in range(_STEPS + 1)]
    return [
        Reading(
            fixed_s=max(0.0, middle.fixed_s + one * _LARGEST.fixed_s),
            host_s_per_param=max(0.0, middle.host_s_per_param + two * _LARGEST.host_s_per_param),
        )
        for one in shares
        for two in shares
    ]


def _loss(rows: Sequence[SeedRow], reading: Reading) -> float:
    return sum(abs(math.log(1 + row.error(reading))) for row in rows)


def left_out(rows: Sequence[SeedRow]) -> list[float]:
    """Each row's error under the constants that the other rows give."""
    return [
        row.error(fit([*rows[:number], *rows[number + 1 :]])) for number, row in enumerate(rows)
    ]
