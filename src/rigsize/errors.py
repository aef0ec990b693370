"""Every error a user can meet, each one clear line.

    SizingError                      nothing of ours raises anything else on bad input
    ├── SpecError (also ValueError)  a field of a spec, config or option has a bad value
    ├── UnknownModel                 no such bundled name, folder, config.json or hub id
    ├── UnknownDevice                no such accelerator
    ├── UnsupportedCombination       each value is fine alone, not together
    ├── TraceFailed                  the architecture cannot be traced, and why
    └── MeasurementFailed            a real run could not be made, and why

Not fitting into memory is a result, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

__all__ = [
    "MeasurementFailed",
    "SizingError",
    "SpecError",
    "TraceFailed",
    "UnknownDevice",
    "UnknownModel",
    "UnsupportedCombination",
    "nearest",
]

_VALUE_CHARS = 80
_ALLOWED_SHOWN = 8
# A name longer than this is no typing mistake, and difflib takes quadratic time over it.
_LONGEST_NAME = 120
# Integers beyond this lose digits in most JSON readers.
_LARGEST_JSON_INT = 2**63


class SizingError(Exception):
    """The base of all errors that a user's input can cause.

    Args:
        field: the option, spec field or config key at fault.
        value: what was given, of any type and size.
        problem: what is wrong with it, in a few words.
        allowed: the values, or the range in words, that would be accepted.
        nearest: the allowed name that was probably meant.
        hint: what to do now.
    """

    kind: ClassVar[str] = "sizing_error"
    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        field: str,
        value: object,
        problem: str = "",
        *,
        allowed: Iterable[str] = (),
        nearest: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(field, value, problem)
        self.field = _shorten("".join(c if c.isprintable() else "?" for c in field))
        self.value = value
        self.problem = problem
        self.allowed = tuple(allowed)
        self.nearest = nearest
        self.hint = hint

    def __str__(self) -> str:
        got = "" if self.value is None else f", got {show(self.value)}"
        parts = [f"{self.field}: {self.problem or 'not accepted'}{got}"]
        if self.allowed:
            parts.append(f"allowed: {_join_allowed(self.allowed)}")
        if self.nearest:
            parts.append(f"did you mean {self.nearest}?")
        if self.hint:
            parts.append(self.hint)
        # Whatever a hostile file put into a part, the message stays one line.
        return " ".join("; ".join(parts).split())

    def __reduce__(self) -> tuple[Callable[..., SizingError], tuple[Any, ...]]:
        # Errors cross from the child process that traces; keyword arguments would be lost.
        args = (self.field, self.value, self.problem, self.allowed, self.nearest, self.hint)
        return _rebuild, (type(self), *args)

    def to_json(self) -> dict[str, Any]:
        """The error as the command line's JSON contract has it, every value serialisable."""
        return {
            "kind": self.kind,
            "field": self.field,
            "value": _json_value(self.value),
            "allowed": list(self.allowed),
            "nearest": self.nearest,
        }


class SpecError(SizingError, ValueError):
    """A field of a spec, a config or an option has a value that cannot be used."""

    kind = "spec_error"


class UnknownModel(SizingError):
    """No bundled model, folder, config.json or reachable hub id has this name."""

    kind = "unknown_model"


class UnknownDevice(SizingError):
    """The accelerator table has no such row, and a neighbour's figures are never used."""

    kind = "unknown_device"


class UnsupportedCombination(SizingError):
    """Values that are fine alone cannot be used together."""

    kind = "unsupported_combination"


class TraceFailed(SizingError):
    """The architecture cannot be traced; the message says why."""

    kind = "trace_failed"


class MeasurementFailed(SizingError):
    """A real run could not be made: hardware, network or the run itself."""

    kind = "measurement_failed"
    exit_code = 5


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that was probably meant by ``name``, or None."""
    if not name or len(name) > _LONGEST_NAME:
        return None
    import difflib  # late: only an error needs it

    by_folded = {candidate.casefold(): candidate for candidate in names}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def show(value: object, limit: int = _VALUE_CHARS) -> str:
    """A value on one line and shortened, whatever it is."""
    if isinstance(value, str):
        return repr(_shorten(value, limit))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**limit:
        return "an integer of more than 80 digits"  # str() of it may raise
    if isinstance(value, dict | list | tuple | set):
        return f"{_JSON_NAMES.get(type(value), type(value).__name__)} of {len(value)} entries"
    return _shorten(repr(value), limit)


_JSON_NAMES = {dict: "an object", list: "an array"}


def _shorten(text: str, limit: int = _VALUE_CHARS) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _join_allowed(allowed: tuple[str, ...]) -> str:
    rest = len(allowed) - _ALLOWED_SHOWN
    shown = ", ".join(allowed[:_ALLOWED_SHOWN])
    return f"{shown} and {rest} more" if rest > 0 else shown


def _json_value(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST_JSON_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _shorten(value) if isinstance(value, str) else show(value)


def _rebuild(
    error: type[SizingError],
    field: str,
    value: object,
    problem: str,
    allowed: tuple[str, ...],
    nearest: str | None,
    hint: str,
) -> SizingError:
    return error(field, value, problem, allowed=allowed, nearest=nearest, hint=hint)
