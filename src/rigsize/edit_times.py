"""What a change costs in time: the step before and after it, where their work is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rigsize.errors import SizingError
from rigsize.estimate import Estimate
from rigsize.program.mesh import mesh_of
from rigsize.spec import Strategy

__all__ = ["EditTime", "step_s", "time_of_edit"]

NOT_STORED = "what a step of it computes is not stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTime:
    """The p50 of an optimizer step, or of a pass of inference, before and after a change."""

    before_s: float | None
    after_s: float | None
    times_as_long: float | None
    """Seconds a text after it by those before; None where one of them is unknown."""
    reason: str
    """Why one is unknown; empty where both are known."""


Step = tuple[float | None, str]
"""Seconds, or None and why there are none."""


def step_s(answer: Estimate, strategy: Strategy, saved_bytes: int) -> Step:
    """The p50 of a step of a strategy in place of the answer's; nothing is traced for it.

    Args:
        answer: the run.
        strategy: how.
        saved_bytes: what a micro-step saves on the host, as `Program.saved_on_host` adds up to.
    """
    from rigsize.steptime.run_time import has_stored_work, run_time  # late: memory needs no time

    workload = replace(answer.workload, examples=None)
    asked = (answer.source, workload, strategy, answer.cluster)
    sent = saved_bytes if strategy.offload == "activations" else None
    try:
        if not has_stored_work(*asked):
            return None, NOT_STORED
        return run_time(*asked, draws=0, saved_bytes=sent).step.step_s.p50, ""
    except SizingError as error:  # no published rate, no model of an optimizer
        return None, str(error)


def time_of_edit(answer: Estimate, before: Step, strategy: Strategy, saved_bytes: int) -> EditTime:
    """The cost of a strategy in place of the answer's, whose step is known."""
    after = step_s(answer, strategy, saved_bytes) if before[0] is not None else (None, "")
    longer = None
    if before[0] and after[0] is not None:
        texts = [_texts(answer, one) for one in (answer.strategy, strategy)]
        longer = (after[0] / texts[1]) / (before[0] / texts[0])
    return EditTime(
        before_s=before[0],
        after_s=after[0],
        times_as_long=longer,
        reason=before[1] or after[1],
    )


def _texts(answer: Estimate, strategy: Strategy) -> int:
    """Of a step over all ranks."""
    training = answer.workload.training
    ranks = mesh_of(strategy, answer.cluster, training=training).ranks
    return strategy.micro_batch * ranks * (strategy.accumulation if training else 1)
