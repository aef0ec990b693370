"""Which module goes to which device: what `from_pretrained(device_map="auto")` would decide.

transformers' own functions (integrations/accelerate.py of 5.23, which follows accelerate's) on the
model built on `meta`, in a child process as for a trace; the parent imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from rigsize.errors import TraceFailed, UnsupportedCombination
from rigsize.models.source import ModelSource
from rigsize.trace.child import TIMEOUT_S, child_environment
from rigsize.trace.profile import TraceKey

__all__ = ["device_map"]

_NEEDED = ("torch", "transformers", "accelerate")
_known: dict[tuple[str, tuple[int, ...]], dict[str, int | str]] = {}
"""A search asks for every batch; the weights are the same."""


def device_map(
    source: ModelSource, key: TraceKey, capacities_bytes: Sequence[int]
) -> dict[str, int | str]:
    """Device numbers by module path; `disk` for what no device has room for."""
    asked = (key.text(), tuple(capacities_bytes))
    if asked not in _known:
        _check_installed(len(capacities_bytes))
        _known[asked] = _ask(source, key, capacities_bytes)
    return _known[asked]


def _check_installed(devices: int) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedCombination(
            "gpus",
            devices,
            f"a device_map spreads the model, and {', '.join(missing)} is not installed",
            hint="pip install accelerate 'rigsize[trace]', or ask for one device",
        )


def _ask(
    source: ModelSource, key: TraceKey, capacities_bytes: Sequence[int]
) -> dict[str, int | str]:
    request = {"config": source.config, "key": astuple(key), "capacities": list(capacities_bytes)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rigsize.trace.device_map"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired as error:
        problem = f"its device_map took longer than {TIMEOUT_S:.0f} s"
        raise TraceFailed("model", source.name, problem) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TraceFailed("model", source.name, f"no device_map can be made: {last[:300]}")
    found: dict[str, int | str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(request: Mapping[str, Any]) -> dict[str, int | str]:
    """The child: the map of a model on devices with so many free bytes each."""
    from transformers.integrations import accelerate

    from rigsize.trace.model import build, load_config
    from rigsize.trace.session import Session

    options = Session(request["config"], TraceKey(*request["key"])).options
    model: Any = build(load_config(request["config"], options), options)
    free: dict[int | str, int | str] = dict(enumerate(request["capacities"]))
    no_split = getattr(model, "_no_split_modules", None)
    balanced = accelerate.get_balanced_memory(
        model, max_memory=free, no_split_module_classes=no_split
    )
    return dict(
        accelerate.infer_auto_device_map(
            model, max_memory=balanced, no_split_module_classes=no_split
        )
    )


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
