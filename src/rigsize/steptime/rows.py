"""A stage of one rank's step whose seconds are still by part, before any clock runs."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Row"]


@dataclass(slots=True, kw_only=True)
class Row:
    """What `streams.Stage` says in seconds, with compute by part and the host by launches."""

    busy_s: dict[str, float] = field(default_factory=dict)
    launches: float = 0.0
    dispatches: float = 0.0
    fetch_s: float = 0.0
    gather_s: float = 0.0
    reductions: tuple[tuple[float, float], ...] = ()
    store_s: float = 0.0
    host_step_s: float = 0.0
    waits: bool = False

    def add(self, part: str, seconds: float) -> None:
        """More compute of one part."""
        self.busy_s[part] = self.busy_s.get(part, 0.0) + seconds

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for rows that take the same of every stream."""
        return (
            *self.busy_s.items(),
            self.launches,
            self.dispatches,
            self.fetch_s,
            self.gather_s,
            self.reductions,
            self.store_s,
            self.host_step_s,
            self.waits,
        )
