"""The Record of a run: what is known before it, and what it left. No torch here."""

from __future__ import annotations

from dataclasses import asdict, replace

from rigsize.models.source import ModelSource
from rigsize.run import host
from rigsize.run.record import STATISTICS, Memory, ModelIdentity, Record, now
from rigsize.spec import Strategy, Workload

__all__ = ["blank_record", "failed_record", "shorten"]

_MESSAGE_CHARS = 500


def failed_record(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int,
    seed: int,
    command: str,
    message: str,
) -> Record:
    """The Record of a run that left none itself: it crashed, or its time was over."""
    base = blank_record(source, workload, strategy, device, steps=steps, seed=seed, command=command)
    return replace(base, message=shorten(message))


def shorten(message: str) -> str:
    """The first line, of a length that a table can show."""
    lines = message.strip().splitlines()
    return " ".join(lines[0].split())[:_MESSAGE_CHARS] if lines else ""


def blank_record(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int,
    seed: int,
    command: str,
) -> Record:
    """What is known before the run; failed until it is more."""
    return Record(
        created=now(),
        command=command,
        model=ModelIdentity(
            name=source.name,
            origin=source.origin,
            config_digest=source.digest,
            config=dict(source.config),
        ),
        workload=asdict(workload),
        strategy=asdict(strategy),
        device=device,
        hardware=host.hardware(device),
        versions=host.versions(),
        seed=seed,
        outcome="failed",
        memory=Memory(unknown=dict.fromkeys(STATISTICS, "the run left no figure")),
        steps=steps,
    )
