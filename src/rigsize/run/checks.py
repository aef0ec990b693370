"""What cannot be run is refused before anything is imported or allocated. No torch here."""

from __future__ import annotations

from rigsize.errors import SpecError
from rigsize.models.positions import check_task, max_positions
from rigsize.models.source import ModelSource
from rigsize.run.specs import LEAST_STEPS, MOST_STEPS
from rigsize.spec import Strategy, Workload, check_together
from rigsize.spec.checks import integer, one_of

__all__ = ["DEVICES", "check_job"]

DEVICES = ("cpu", "cuda")


def check_job(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str,
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
) -> None:
    """Refuses what cannot be run, before anything is imported or allocated."""
    one_of("device", device, DEVICES)
    integer("steps", steps, LEAST_STEPS, MOST_STEPS)
    integer("seed", seed, 0, 2**63 - 1)
    check_task(source.config, workload.task)
    _check_length(source, workload)
    check_together(workload, strategy)


def _check_length(source: ModelSource, workload: Workload) -> None:
    longest = max_positions(source.config)
    if longest is not None and workload.max_length > longest:
        raise SpecError(
            "max-length",
            workload.max_length,
            f"beyond the positions of {source.name}",
            allowed=(f"up to {longest:,}",),
        )
