"""A function in a forked child with a limit on time and address space; its death is an answer."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Child:
    """A child that runs, and where its answer will lie."""

    pid: int
    answer: Path
    errors: Path
    deadline_s: float
    started_s: float

    def finished(self) -> dict[str, Any] | None:
        """The answer once it is there, or why there is none."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = time.monotonic() > self.deadline_s
        if not pid and not late:
            return None
        if not pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        taken_s = round(time.monotonic() - self.started_s, 1)
        return self._read(status, late=not pid) | {"seconds": taken_s}

    def _read(self, status: int, *, late: bool) -> dict[str, Any]:
        text = self.answer.read_text() if self.answer.exists() else ""
        errors = self.errors.read_text(errors="replace").strip().splitlines()
        self.answer.unlink(missing_ok=True)
        self.errors.unlink(missing_ok=True)
        if late:
            return {"ok": False, "error": "took longer than its limit"}
        if not text:
            code = os.waitstatus_to_exitcode(status)
            last = errors[-1][:200] if errors else "no message"
            return {"ok": False, "error": f"the process died (exit {code}): {last}"}
        answer: dict[str, Any] = json.loads(text)
        return answer


def start(work: Callable[[], dict[str, Any]], *, limit_s: float, address_bytes: int) -> Child:
    """Forks; `work` answers a document."""
    folder = Path(tempfile.gettempdir())
    name = f"zoo-{os.getpid()}-{time.monotonic_ns()}"
    answer, errors = folder / f"{name}.json", folder / f"{name}.err"
    pid = os.fork()
    if pid == 0:
        _work(work, answer, errors, address_bytes)
    now = time.monotonic()
    return Child(pid, answer, errors, now + limit_s, now)


def _work(
    work: Callable[[], dict[str, Any]], answer: Path, errors: Path, address_bytes: int
) -> None:
    """The child's whole life: it never returns into the parent's code."""
    try:
        descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
        try:
            told = work()
        except BaseException as error:
            text = " ".join(str(error).split())[:300]
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = {
                "ok": False,
                "error": f"{type(error).__name__}: {text}",
                "where": f"{Path(where.filename).name}:{where.lineno}",
            }
        partial = answer.with_suffix(".tmp")
        partial.write_text(json.dumps(told))
        partial.replace(answer)
    finally:
        os._exit(0)
