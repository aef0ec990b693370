"""Ctrl-C, SIGTERM and, for tests, kills: what can end a run between or within steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Interrupt", "KillSwitch", "listening"]

KILL_AT = "RIGSIZE_KILL_AT"
"""`PHASE:STEP:RANK`: this process ends itself with SIGKILL there; for tests of checkpoints."""


@dataclass(slots=True)
class Interrupt:
    """Whether a signal asked the run to stop at the next step."""

    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 + the signal."""
        return 128 + (self.signal_number or 0)


@contextmanager
def listening() -> Iterator[Interrupt]:
    """While this lasts the first SIGINT or SIGTERM is noted; the second one ends the process."""
    interrupt = Interrupt()

    def note(number: int, _frame: object) -> None:
        interrupt.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class KillSwitch:
    """Ends this very process at a named moment, as a lost node would: no handler, no flush.

    Once: ranks that torchrun started again live.
    """

    def __init__(self, rank: int) -> None:
        self._phase, self._step = "", -1
        self.step = 0
        """The optimizer step that is being made."""
        phase, _, rest = os.environ.get(KILL_AT, "").partition(":")
        step, _, who = rest.partition(":")
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if phase and int(who or 0) == rank and not restarted:
            self._phase, self._step = phase, int(step)

    def __call__(self, phase: str) -> None:
        """A phase of a step or of a save begins."""
        if phase == self._phase and self.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)
