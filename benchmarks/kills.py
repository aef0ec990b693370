"""A hundred kills of a short training run: each resume must reach an unbroken run's final loss.

    python benchmarks/kills.py [--kills 100] [--log FILE] [--seed 0]

Half of them on one rank, half on two (FSDP2 over gloo); of each half, half at random moments and
half in the phases of a save in turn, on one rank or the other. After each kill a copy of the run is
resumed to its end, where losses from the last checkpoint on and the held-out loss are compared with
the unbroken run's; the run itself is killed again further on, until it is nearly over, and then a
new one begins. Dropout is on. One JSON line a kill in the log. Exit 1 if any resume was wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.train.runs import make_data, run_rank, run_ranks  # noqa: E402

from rigsize.train.checkpoint import PHASES  # noqa: E402

STEPS, SAVE_EVERY, TOLERANCE = 16, 2, 1e-6
GIVEN: dict[str, Any] = {
    "config": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "max_steps": STEPS,
    "padding": "unpadded",
}
MORE: dict[str, Any] = {"checkpoint": True, "save_every": SAVE_EVERY, "resume": "auto"}


@dataclass(frozen=True)
class Kill:
    """One kill -9."""

    rank: int
    after_s: float | None = None
    """A random moment after the start."""
    phase: str = ""
    step: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--log", type=Path, default=Path("kills.log.jsonl"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, arguments.log.open("w") as log:
        entries = list(_all(Path(folder), arguments.kills, draw, log))
    wrong = [entry for entry in entries if not entry["right"]]
    print(f"{len(entries)} kills, {len(wrong)} of the resumes wrong; log: {arguments.log}")
    return 1 if wrong else 0


def _all(folder: Path, kills: int, draw: random.Random, log: Any) -> Iterator[dict[str, Any]]:
    make_data(folder)
    for ranks in (1, 2):
        given = GIVEN | ({"parallel": "fsdp", "micro_batch": 4} if ranks == 2 else {})
        began = time.monotonic()
        expected = run_ranks(ranks, folder, f"whole{ranks}", **given)
        typical_s = time.monotonic() - began
        died = number = 0
        while died < kills // 2:
            name = f"run{ranks}-{number}"
            saved = _newest(folder / name)
            if saved >= STEPS - SAVE_EVERY:
                number += 1
                continue
            kill = _next(died, ranks, saved, typical_s, draw)
            if not _killed(folder, name, ranks, given | MORE, kill):
                number += 1  # it ran to its end before
                continue
            died += 1
            found = _judged(folder, name, ranks, given | MORE, expected)
            entry = {"run": name, "ranks": ranks, **vars(kill), **found}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(json.dumps(entry), flush=True)
            yield entry


def _newest(run: Path) -> int:
    """The step of the newest folder of a checkpoint; 0 for none."""
    names = [path.name for path in (run / "checkpoints").glob("step-*") if path.suffix == ""]
    return max((int(name.split("-")[1]) for name in names), default=0)


def _next(number: int, ranks: int, saved: int, typical_s: float, draw: random.Random) -> Kill:
    """Every other one in a phase of the next save, the phases in turn."""
    rank = draw.randrange(ranks)
    if number % 2:
        return Kill(rank=rank, phase=PHASES[number // 2 % len(PHASES)], step=saved + SAVE_EVERY)
    return Kill(rank=rank, after_s=draw.uniform(0.1, 0.9) * typical_s)


def _killed(folder: Path, name: str, ranks: int, given: dict[str, Any], kill: Kill) -> bool:
    """Whether the kill came before the run's end."""
    environment = {}
    if kill.phase:
        environment["RIGSIZE_KILL_AT"] = f"{kill.phase}:{kill.step}:{kill.rank}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.rank"])
    with tempfile.TemporaryDirectory() as shared:
        arguments = (ranks, f"{shared}/store", folder, name, given | {"environment": environment})
        processes = [context.Process(target=run_rank, args=(r, *arguments)) for r in range(ranks)]
        for process in processes:
            process.start()
        if kill.after_s is not None:
            time.sleep(kill.after_s)
            if processes[kill.rank].pid and processes[kill.rank].is_alive():
                os.kill(processes[kill.rank].pid or 0, signal.SIGKILL)
        for process in processes:
            process.join(60)
            if process.exitcode is None:
                process.kill()
                process.join()
    return processes[kill.rank].exitcode == -signal.SIGKILL


def _judged(
    folder: Path, name: str, ranks: int, given: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    import shutil

    copy = f"{name}-judged"
    shutil.rmtree(folder / copy, ignore_errors=True)
    if (folder / name).exists():
        shutil.copytree(folder / name, folder / copy)
    found = run_ranks(ranks, folder, copy, **given)
    start = found["resumed_step"]
    differences = [
        abs(a - b) for a, b in zip(found["losses"], expected["losses"][start:], strict=True)
    ]
    differences.append(abs(found["metrics"]["loss"] - expected["metrics"]["loss"]))
    return {
        "resumed_step": start,
        "largest_difference": max(differences),
        "right": found["step"] == STEPS and max(differences) <= TOLERANCE,
    }


if __name__ == "__main__":
    sys.exit(main())
