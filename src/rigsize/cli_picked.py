"""One plan out of what `rigsize plan --json` printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rigsize.cli_flags import ARGUMENTS, VERBS
from rigsize.errors import SpecError, nearest

__all__ = ["PICKS", "Picked", "pick_plan"]

_OF_PLANS = ("estimate", "emit")
PICKS = ("cheapest", "fastest", "smallest")
_LARGEST_FILE_BYTES = 64 * 1024**2
_MOST_HOURS = 1e5
"""Eleven years: no scheduler has a longer limit."""


class Picked(NamedTuple):
    """A plan's own command, taken apart."""

    given: dict[str, str | bool]
    """Flags by key, as the command line would have given them."""
    most_hours: float | None
    """The p90 of its hours, where it has one."""
    words: str
    """Which it is."""


def pick_plan(file: Path, pick: str | None) -> Picked:
    """The plan with that label, or of that number from 1; SpecError where there is none.

    None picks the cheapest, of one's own machines, which have no price, the fastest.
    """
    plans = _plans(file)
    if pick is None:
        pick = next((name for name in PICKS if any(name in _labels(p) for p in plans)), PICKS[0])
    index = _index(plans, pick)
    plan = plans[index]
    command = plan.get("command")
    if not isinstance(command, str):
        raise SpecError(f"plans[{index}].command", command, "not a command")
    given = _flags(command)
    size = plan.get("host_memory_bytes")
    if isinstance(size, int) and size > 0:  # of the machine that the command names
        given.setdefault("host_memory", f"{size}B")
    return Picked(given, _hours(plan), f"plan {index + 1} of {len(plans)}: {command}")


def _plans(file: Path) -> Sequence[Mapping[str, Any]]:
    try:
        if not file.is_file():
            raise SpecError("plan", str(file), "no such file")
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise SpecError("plan", str(file), "too large", allowed=("up to 64 MiB",))
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("plan", str(file), f"cannot be read as JSON ({error})") from None
    plans = document.get("plans") if isinstance(document, dict) else None
    if not isinstance(plans, list) or not all(isinstance(plan, dict) for plan in plans):
        raise SpecError("plan", str(file), "no plans in it", hint="rigsize plan ... --json > FILE")
    if not plans:
        raise SpecError("plan", str(file), "it holds no plan: nothing met the limits")
    return plans


def _index(plans: Sequence[Mapping[str, Any]], pick: str) -> int:
    if pick.isdecimal() and len(pick) < 10:
        if not 1 <= int(pick) <= len(plans):
            raise SpecError("pick", pick, "no such plan", allowed=(f"1 to {len(plans)}",))
        return int(pick) - 1
    for index, plan in enumerate(plans):
        if pick in _labels(plan):
            return index
    named = [name for name in PICKS if any(name in _labels(plan) for plan in plans)]
    allowed = (*named, f"1 to {len(plans)}")
    raise SpecError("pick", pick, "no such plan", allowed=allowed, nearest=nearest(pick, named))


def _labels(plan: Mapping[str, Any]) -> Sequence[Any]:
    labels = plan.get("labels")
    return labels if isinstance(labels, list) else ()


def _hours(plan: Mapping[str, Any]) -> float | None:
    """Of the whole run; the hours of an epoch are no limit for several."""
    time = plan.get("time")
    hours = time.get("hours") if isinstance(time, dict) else None
    p90 = hours.get("p90") if isinstance(hours, dict) else None
    if isinstance(p90, bool) or not isinstance(p90, int | float):
        return None
    return float(p90) if 0 < p90 <= _MOST_HOURS else None


def _flags(command: str) -> dict[str, str | bool]:
    """`rigsize VERB MODEL --flag value ...` as the flags of `emit`; nothing of it is run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SpecError("plan", command, f"not a command ({error})") from None
    if len(words) < 2 or words[0] != "rigsize" or words[1] not in _OF_PLANS:
        raise SpecError("plan", command, "not a command of rigsize for one plan")
    verb, rest = words[1], iter(words[2:])
    options = {option: flag for flag in VERBS[verb] for option in flag.options}
    ours = {flag.key for flag in VERBS["emit"]}
    given: dict[str, str | bool] = {}
    for word in rest:
        if not word.startswith("--"):
            if not ARGUMENTS.get(verb) or "model" in given:
                raise SpecError("plan", command, f"a word too many: {word}")
            given["model"] = word
            continue
        name, has_value, value = word.partition("=")
        flag = options.get(name)
        if flag is None:
            raise SpecError("plan", name, "no such option", nearest=nearest(name, options))
        if flag.switch:
            found: str | bool | None = not name.startswith("--no-")
        else:
            found = value if has_value else next(rest, None)
        if found is None:
            raise SpecError("plan", command, f"{name} has no value")
        if flag.key in ours:
            given[flag.key] = found
    return given
