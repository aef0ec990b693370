"""What several verbs share: messages, flags with their files, the answer, the device."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_flags import VERBS
from rigsize.cli_settings import Settings, read_spec
from rigsize.errors import MeasurementFailed
from rigsize.report.document import render

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Given",
    "device_of",
    "print_answer",
    "say",
    "settings_of",
    "take_own_cards",
    "typed",
    "waiting",
]

Given = Mapping[str, str | bool]
_PATIENCE_S = 1.0


def say(text: str) -> None:
    """A message to the user, on stderr."""
    print(f"rigsize: {text}", file=sys.stderr, flush=True)


@contextmanager
def waiting(text: str, after_s: float = _PATIENCE_S) -> Iterator[None]:
    """Says on stderr what takes so long, where it does."""
    timer = threading.Timer(after_s, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def settings_of(verb: str, given: Given) -> Settings:
    """The flags, and below them those of `--spec`."""
    path = given.get("spec")
    below = read_spec(path, verb) if isinstance(path, str) else {}
    known = {"model", *(flag.key for flag in VERBS[verb])}
    settings = Settings({**{k: v for k, v in below.items() if k in known}, **given})
    take_own_cards(settings.text("accelerators"))
    for key in below.keys() - known:
        settings.assumed.append(f"on this machine: {path} was made for {key} {below[key]}")
    return settings


def take_own_cards(file: str | None) -> None:
    """The rows of `--accelerators` count for the rest of this command."""
    if file is not None:
        from rigsize.hardware.accelerators import take_accelerators

        take_accelerators(Path(file).expanduser())


def print_answer(document: Callable[[], Mapping[str, Any]], as_json: bool, parts: _Parts) -> None:
    """The answer, on stdout: one JSON document, or what rich shows."""
    if as_json:
        print(render(document()))
        return
    from rigsize.report.console import write  # late: it imports rich

    write(parts())


_Parts = Callable[[], "Iterable[RenderableType]"]


def device_of(asked: str | None) -> str:
    """The device; where none is named, cuda if torch sees one."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise MeasurementFailed(
            "device",
            asked or "any",
            "measuring needs torch and transformers",
            hint="pip install 'rigsize[trace]'",
        )
    if asked is not None:
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def typed() -> str:
    """The command line as it was typed."""
    import shlex

    return shlex.join(["rigsize", *sys.argv[1:]])
