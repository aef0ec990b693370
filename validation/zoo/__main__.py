"""Trace every text architecture of transformers, run each for real on the CPU, print the table.

    python -m validation.zoo [--models GLOB ...] [--tasks TASK ...] [--trials traced proved ran]
                             [--failed] [--workers N] [--write]

Results lie in validation/zoo/TRIAL.jsonl, one case a line; a case that is there is
not tried again unless it is named or, with `--failed`, failed. `--write` writes docs/zoo.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from validation.zoo import attempt
from validation.zoo.cases import Case, cases
from validation.zoo.children import Child, start
from validation.zoo.page import judge, page, summary

from rigsize.models.not_text import why_not_text
from rigsize.trace.child import MEMORY_LIMIT_BYTES, TIMEOUT_S, run_under_hash_seed
from rigsize.trace.session import versions

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "zoo.md"
TRIALS: dict[str, tuple[Callable[[Case], dict[str, Any]], float]] = {
    "traced": (attempt.traced, TIMEOUT_S),
    "proved": (attempt.proved, TIMEOUT_S),
    "ran": (attempt.ran, 60.0),
}


def read_results(trial: str) -> dict[str, dict[str, Any]]:
    """What is known of a trial, by case."""
    file = FOLDER / f"{trial}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {line["case"]: line for line in map(json.loads, lines)}


def add_result(trial: str, result: dict[str, Any]) -> None:
    """One more line; of several about a case the last one counts."""
    with (FOLDER / f"{trial}.jsonl").open("a") as file:
        file.write(f"{json.dumps(result)}\n")


def tidy(trial: str) -> None:
    """One line a case, in order."""
    results = read_results(trial)
    made = FOLDER / f"{trial}.tmp"
    if not results:
        return
    made.write_text("".join(f"{json.dumps(results[key])}\n" for key in sorted(results)))
    made.replace(FOLDER / f"{trial}.jsonl")


def main() -> int:
    """Tries what is asked for and not known yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--trials", nargs="*", default=list(TRIALS))
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    known = {trial: read_results(trial) for trial in arguments.trials}
    waiting = [
        (case, trial)
        for case in cases()
        for trial in arguments.trials
        if _wanted(case, known[trial].get(case.key), arguments)
    ]
    print(f"{len(waiting)} trials", flush=True)
    for case, trial, told in _tried(waiting, arguments.workers):
        add_result(trial, {"case": case.key, "class": case.class_name, **told})
        mark = "ok" if told["ok"] else told["error"][:150]
        print(f"{case.key} {trial} {told['seconds']} s: {mark}", flush=True)
    for trial in arguments.trials:
        tidy(trial)
    _report(write=arguments.write)
    return 0


def _report(*, write: bool) -> None:
    """The share that is the target, and with `write` the page."""
    known = [read_results(trial) for trial in ("traced", "proved", "ran")]
    verdicts = [judge(case, *known) for case in cases()]
    print(summary(verdicts))
    if write:
        PAGE.write_text(page(verdicts, versions()), encoding="utf-8")
        print(f"written: {PAGE}")


def _wanted(case: Case, known: dict[str, Any] | None, arguments: argparse.Namespace) -> bool:
    named = any(fnmatch.fnmatch(case.model_type, glob) for glob in arguments.models)
    if why_not_text(case.model_type, case.task):
        return False
    if (arguments.models and not named) or (arguments.tasks and case.task not in arguments.tasks):
        return False
    if known is None:
        return True
    return not known["ok"] if arguments.failed else named


def _tried(
    waiting: list[tuple[Case, str]], workers: int
) -> Iterator[tuple[Case, str, dict[str, Any]]]:
    """Every trial's answer, as they come; `workers` children at a time."""
    running: list[tuple[Case, str, Child]] = []
    waiting = waiting[::-1]
    while waiting or running:
        while waiting and len(running) < workers:
            case, trial = waiting.pop()
            work, limit_s = TRIALS[trial]
            child = start(partial(work, case), limit_s=limit_s, address_bytes=MEMORY_LIMIT_BYTES)
            running.append((case, trial, child))
        time.sleep(0.02)
        for entry in list(running):
            told = entry[2].finished()
            if told is not None:
                running.remove(entry)
                yield entry[0], entry[1], told


def prepare() -> None:
    """What every child needs is imported once, before the first of them."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import transformers

    transformers.logging.set_verbosity_error()
    for name in ("modeling_utils", "models.bert.modeling_bert", "models.t5.modeling_t5"):
        importlib.import_module(f"transformers.{name}")
    gc.freeze()


if __name__ == "__main__":
    run_under_hash_seed()
    prepare()
    raise SystemExit(main())
