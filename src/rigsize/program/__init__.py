"""From a trace, a strategy and an accelerator to one rank's timeline of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rigsize.program.work_build import decode_work_for, work_for

__all__ = ["decode_work_for", "work_for"]


def __getattr__(name: str) -> Any:
    """Work is built from trace keys, which read rules of this package: it is imported late."""
    if name in __all__:
        from rigsize.program import work_build

        return getattr(work_build, name)
    raise AttributeError(name)
