"""A job in a child process: spawned as a new interpreter, or forked from one that is warm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Child", "fork_child", "spawn_child"]

_POLL_S = 0.02
_LAST_WORDS = 300


class _Process(Protocol):
    pid: int

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def kill(self) -> None:
        """Ends it and what it started."""


class Child:
    """A running job and the file its answer comes in."""

    def __init__(self, process: _Process, result: Path, log: Path) -> None:
        self._process, self._result, self._log = process, result, log
        self._code: int | None = None

    def answer(self, ends: float) -> dict[str, Any] | None:
        """What it wrote before `ends` (time.monotonic); None if it wrote nothing."""
        self._code = self._process.wait(max(ends - time.monotonic(), 0))
        if self._code is None:
            self._process.kill()
        if not self._result.exists():
            return None
        answer: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        return answer

    def how_it_ended(self, allowed_s: float) -> str:
        """Why there is no answer, in words."""
        if self._code is None:
            return f"timed out after {allowed_s:.0f} s"
        how = _signal_name(-self._code) if self._code < 0 else f"exit status {self._code}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"crashed ({how}){': ' + lines[-1][:_LAST_WORDS] if lines else ''}"


def spawn_child(role: str, job: Mapping[str, Any], folder: Path) -> Child:
    """A new interpreter: `python -m rigsize.run.worker`."""
    job_file, result, log = _files(folder)
    job_file.write_text(json.dumps(job), encoding="utf-8")
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rigsize.run.worker", role, str(job_file), str(result)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
    return Child(_Spawned(process), result, log)


def fork_child(role: str, job: Mapping[str, Any], folder: Path) -> Child:
    """A fork of this process, which has imported torch and has not started CUDA."""
    _, result, log = _files(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads; torch's start with the first kernel only.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return Child(_Forked(pid), result, log)
    _in_child(role, job, result, log)
    raise AssertionError("unreachable: the child has left")


def _in_child(role: str, job: Mapping[str, Any], result: Path, log: Path) -> None:
    """Works and leaves without the parent's exit handlers and buffers."""
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from rigsize.run.worker import work

        work(role, job, result)
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _files(folder: Path) -> tuple[Path, Path, Path]:
    name = uuid.uuid4().hex
    return folder / f"{name}.job", folder / f"{name}.result", folder / f"{name}.log"


class _Spawned:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        _kill_group(self.pid)
        self._process.wait()


class _Forked:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self, seconds: float) -> int | None:
        ends = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= ends:
                return None
            time.sleep(_POLL_S)

    def kill(self) -> None:
        _kill_group(self.pid)
        os.waitpid(self.pid, 0)


def _kill_group(pid: int) -> None:
    """The child leads a group of its own; it may not have reached that point yet."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
