"""What was given to a verb, as text: flags and spec files, and what was said about them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rigsize.cli_flags import MODEL, VERBS
from rigsize.errors import SpecError, nearest

__all__ = ["MOST_AMOUNT", "Settings", "amount", "number", "read_spec", "whole"]

_INTEGER = re.compile(r"[+-]?\d{1,18}")
_LARGEST_SPEC_BYTES = 1024**2


@dataclass(slots=True)
class Settings:
    """What was given, by flag key; text, or a bool for a switch."""

    given: Mapping[str, str | bool]
    assumed: list[str] = field(default_factory=list)
    """Choices made where nothing was given, in words."""
    warnings: list[str] = field(default_factory=list)
    """Settings without effect."""

    def text(self, name: str) -> str | None:
        """The value of a flag, None where it was not given."""
        value = self.given.get(name.replace("-", "_"))
        return value if isinstance(value, str) else None

    def switch(self, name: str, default: bool = False) -> bool:
        """A switch."""
        value = self.given.get(name.replace("-", "_"))
        return value if isinstance(value, bool) else default

    def integer(self, name: str) -> int | None:
        """A whole number; the records check its range."""
        text = self.text(name)
        return None if text is None else whole(name, text)

    def or_assumed(self, name: str, default: str, why: str = "") -> str:
        """The value of a flag, or the default, which is then said to be assumed."""
        text = self.text(name)
        if text is not None:
            return text
        self.assumed.append(f"{name} {default}{f': {why}' if why else ''}")
        return default


def whole(name: str, text: str) -> int:
    """A whole number; the records check its range."""
    digits = text.strip().replace("_", "")
    if not _INTEGER.fullmatch(digits):
        raise SpecError(name, text, "not a whole number of at most 18 digits")
    return int(digits)


def number(name: str, text: str) -> float:
    """A finite number; the records check its range."""
    try:
        value = float(text) if len(text) < 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(name, text, "not finite" if math.isinf(value) else "not a number")
    return value


MOST_AMOUNT = 1e12


def amount(settings: Settings, name: str) -> float | None:
    """USD, minutes or the like of a flag: from 0 to `MOST_AMOUNT`; None where it was not given."""
    text = settings.text(name)
    if text is None:
        return None
    value = number(name, text)
    if not 0 <= value <= MOST_AMOUNT:
        allowed = (f"0 to {MOST_AMOUNT:g}",)
        raise SpecError(name, text, "negative or absurdly large", allowed=allowed)
    return value


_ON_WHAT = ("gpus", "accelerators", "host_memory", "network")
"""Keys of a plan's spec file that a run on the machine at hand has no flag for."""


def read_spec(path: str, verb: str) -> dict[str, str | bool]:
    """A TOML file of a verb's flags; an unknown key is refused with the nearest.

    It may also say on what a plan was made for, which `settings_of` takes out again for a run.
    """
    known = (MODEL, *VERBS[verb], *(f for f in VERBS["estimate"] if f.key in _ON_WHAT))
    flags = {flag.key: flag for flag in known if flag.name != "spec"}
    given: dict[str, str | bool] = {}
    for written, value in _toml(Path(path)).items():
        key = written.replace("-", "_")
        if key not in flags:
            raise SpecError(f"{path}: {written}", value, "unknown key", nearest=nearest(key, flags))
        given[key] = _spec_value(f"{path}: {written}", value, flags[key].switch)
    return given


def _toml(file: Path) -> Mapping[str, Any]:
    import tomllib  # late: few runs have a file

    try:
        if not file.is_file():
            raise SpecError("spec", str(file), "no such file")
        if file.stat().st_size > _LARGEST_SPEC_BYTES:
            raise SpecError("spec", str(file), "too large", allowed=("up to 1 MiB",))
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("spec", str(file), f"cannot be read as TOML ({error})") from None


def _spec_value(field_: str, value: object, switch: bool) -> str | bool:
    if switch and isinstance(value, bool):
        return value
    if switch:
        raise SpecError(field_, value, "not a switch", allowed=("true", "false"))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(field_, value, "not a text or a number")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise SpecError(field_, value, "absurdly large")
    return str(value)
