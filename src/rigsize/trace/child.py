"""Tracing in a child process with limits; the parent never imports torch."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rigsize.errors import SizingError, SpecError, TraceFailed, UnsupportedCombination
from rigsize.trace.profile import TraceKey

if TYPE_CHECKING:
    from rigsize.models import ModelSource

TIMEOUT_S = 180.0
HASH_SEED = "0"
"""transformers walks through `set(config.layer_types)` (Gemma 3, ModernBERT): which kind's rotary
table is made first hangs on the hashes of strings, so every trace is made under one seed."""
MEMORY_LIMIT_BYTES = 12 * 2**30
"""Address space of the child: torch and transformers take some 4 GiB of it."""


class Traces(NamedTuple):
    """What one child has traced, packed."""

    profile: bytes
    work: bytes = b""
    """What the step computes; empty where it was not asked for and would take traces of its own."""


def trace_in_child(
    source: ModelSource, key: TraceKey, point: Mapping[str, int], *, work: bool = False
) -> Traces:
    """The packed profile, and its `work` where that comes along or is asked for.

    TraceFailed says why there is none.
    """
    if importlib.util.find_spec("torch") is None or not importlib.util.find_spec("transformers"):
        raise TraceFailed(
            "model",
            source.name,
            "no stored profile answers this, and tracing needs torch and transformers",
            hint="pip install 'rigsize[trace]'",
        )
    request = {
        "config": source.config,
        "key": astuple(key),
        "point": dict(point),
        "work": work,
        "memory_limit_bytes": MEMORY_LIMIT_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="rigsize-") as folder:
        Path(folder, "request.json").write_text(json.dumps(request))
        try:
            done = subprocess.run(
                command(folder),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                env=child_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise TraceFailed(
                "model", source.name, f"tracing took longer than {TIMEOUT_S:.0f} s"
            ) from error
        return _answer(Path(folder), done, source.name)


def command(folder: str) -> list[str]:
    """The child: this interpreter, this module."""
    return [sys.executable, "-m", "rigsize.trace.child", folder]


def child_environment() -> dict[str, str]:
    """The child finds this very package, also when it runs from source."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": HASH_SEED,
        "TRANSFORMERS_VERBOSITY": "error",
        "CUDA_VISIBLE_DEVICES": "",  # no GPU is touched
    }


def run_under_hash_seed() -> None:
    """Starts the running script once more, under the seed of every trace, if it is not already."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _answer(folder: Path, done: subprocess.CompletedProcess[str], name: str) -> Traces:
    profile, work, failure = folder / "profile", folder / "work", folder / "error.json"
    if profile.exists():
        return Traces(profile.read_bytes(), work.read_bytes() if work.exists() else b"")
    if failure.exists():
        told = json.loads(failure.read_text())
        raise TraceFailed(
            told.get("field", "model"),
            told.get("value", name),
            told["problem"],
            allowed=told.get("allowed", ()),
            nearest=told.get("nearest"),
            hint=told["hint"],
        )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise TraceFailed("model", name, f"the tracing process died (exit {done.returncode}): {last}")


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # not on this platform: the time limit still holds
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main(folder: Path) -> int:
    """The child: reads the request, writes `profile` (and `work`) or `error.json`."""
    request: dict[str, Any] = json.loads((folder / "request.json").read_text())
    _limit_memory(request["memory_limit_bytes"])
    key = TraceKey(*request["key"])
    if not key.quantization:
        # peft imports them wherever they are found, and with them torch's compiler: two seconds.
        for name in ("bitsandbytes", "torchao"):
            sys.modules[name] = None  # type: ignore[assignment]
    try:
        data, work = trace(request["config"], key, request["point"], work=request["work"])
    except Exception as error:  # whatever transformers raises is the answer
        (folder / "error.json").write_text(
            json.dumps(_explain(error) | _culprit(error, request["config"]), default=repr)
        )
        return 1
    if work:
        (folder / "work").write_bytes(work)
    (folder / "profile").write_bytes(data)
    return 0


def trace(
    config: Mapping[str, Any], key: TraceKey, point: Mapping[str, int], *, work: bool
) -> Traces:
    """The packed profile of a size's domain, or of that size alone where no domain holds.

    Texts grow through all domains of decoding steps, so these are traced together.
    """
    from rigsize.models import max_positions
    from rigsize.trace.domains import exact_label
    from rigsize.trace.profile import pack
    from rigsize.trace.session import LengthMatters, Session

    session = Session(config, key, max_positions(config))
    labels = session.domains_of(point)
    try:
        profile = session.profile(labels)
    except LengthMatters:
        labels = [exact_label(key.point(point))]
        profile = session.profile(labels)
    computed = session.work(labels) if work else session.work_so_far
    return Traces(pack(profile), pack(computed) if computed else b"")


def _explain(error: Exception) -> dict[str, Any]:
    if isinstance(error, UnsupportedCombination | SpecError):  # of the run, not of the model
        told = ("problem", "hint", "field", "allowed", "nearest")
        return {"value": str(error.value)} | {name: getattr(error, name) for name in told}
    if isinstance(error, SizingError):
        return {"problem": error.problem, "hint": error.hint}
    if type(error).__name__ in ("DynamicOutputShapeException", "DataDependentOutputException"):
        return {
            "problem": f"what {error} gives depends on the values of the tokens, not on sizes",
            "hint": "choose another task, or measure a real run",
        }
    if isinstance(error, MemoryError):
        return {"problem": "tracing took more memory than its limit", "hint": ""}
    text = " ".join(str(error).split())[:300]
    return {"problem": f"it cannot be traced: {type(error).__name__}: {text}", "hint": ""}


def _culprit(error: Exception, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config field that the error is about, where it says so.

    huggingface_hub's strict dataclasses name the field; a look-up that failed (an activation, a
    rope type) is the value of one.
    """
    named = re.search(r"field '(\w+)'", str(error))
    if named and named[1] in config:
        return {"field": named[1], "value": config[named[1]]}
    if isinstance(error, KeyError) and error.args:
        for name, value in config.items():
            inner = value.values() if isinstance(value, dict) else [value]
            if any(item == error.args[0] for item in inner):
                return {
                    "field": name,
                    "value": value,
                    "problem": "transformers knows no such value",
                    "hint": "",
                }
    return {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
