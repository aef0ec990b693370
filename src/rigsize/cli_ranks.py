"""Several ranks of one command on this machine: torchrun starts them, the launcher answers.

Launcher and ranks share a folder. Each rank leaves its process id there, so that a signal goes to
the ranks themselves: they save and end in peace, where torchrun would kill them after 30 s. Rank 0
leaves the exit code, and a rank that was given bad input leaves the error and ends with 0: torchrun
starts ranks again that end otherwise, and no second try makes bad input good.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rigsize import errors
from rigsize.errors import SizingError

__all__ = ["as_rank", "launch", "launched"]

_FOLDER = "RIGSIZE_RANKS_FOLDER"
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Ranks that are started again otherwise find the keys of those before them, and wait for ever."""
_RESTARTS = 3
LOST_RANK = "ranks"
"""The field of the error of a rank that lost another: that one is worth a second try."""


def launched() -> bool:
    """Whether this process is a rank of `launch`."""
    return _FOLDER in os.environ


def launch(ranks: int, max_restarts: int | None) -> int:
    """The same command once a rank, under torchrun on a free port; its exit code.

    Raises the SizingError that a rank ended with.
    """
    with tempfile.TemporaryDirectory(prefix="rigsize-") as shared:
        folder = Path(shared)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks)),
            *("--max-restarts", str(_RESTARTS if max_restarts is None else max_restarts)),
            *("-m", "rigsize", *sys.argv[1:]),
        ]
        # A session of its own: Ctrl-C reaches this process alone, which passes it on.
        process = subprocess.Popen(command, env=_environment(folder, ranks), start_new_session=True)
        with _passing_on(process, folder):
            code = process.wait()
        for left in sorted(folder.glob("error-*")):
            raise _error(left)
        for name in ("exit", "stop"):
            if (folder / name).exists():
                return int((folder / name).read_text())
        return code


def _environment(folder: Path, ranks: int) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return os.environ | {
        _FOLDER: str(folder),
        _OWN_STORE: "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }


@contextmanager
def _passing_on(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """While this lasts SIGINT and SIGTERM go to the ranks, or to torchrun before there are any."""

    def pass_on(number: int, _frame: object) -> None:
        _leave(folder / "stop", str(128 + number))  # for ranks that are started again
        pids = [int(file.read_text()) for file in folder.glob("pid-*")]
        for pid in pids or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def as_rank(run: Callable[[], int]) -> int:
    """Runs this rank; outside `launch` it is the run itself."""
    name = os.environ.get(_FOLDER)
    if name is None:
        return run()
    folder, rank = Path(name), os.environ.get("RANK", "0")
    if (folder / "stop").exists():
        return 0
    _leave(folder / f"pid-{rank}", str(os.getpid()))
    try:
        code = run()
    except SizingError as error:
        if error.field == LOST_RANK:
            raise
        hint = error.hint
        document = error.to_json() | {"problem": error.problem, "hint": hint}
        _leave(folder / f"error-{rank}", json.dumps(document | {"class": type(error).__name__}))
        return 0
    if rank == "0":
        _leave(folder / "exit", str(code))
    return 0


def _leave(file: Path, text: str) -> None:
    partial = file.with_suffix(".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _error(file: Path) -> SizingError:
    left = json.loads(file.read_text(encoding="utf-8"))
    kind: type[SizingError] = getattr(errors, left["class"])
    return kind(
        left["field"],
        left["value"],
        left["problem"],
        allowed=left["allowed"],
        nearest=left["nearest"],
        hint=left["hint"],
    )
