"""One job of a suite in a process of its own: a job in a file in, one result line in a file out.

    python -m rigsize.run.worker measure|predict JOB.json RESULT.json

The parent (`run.suite`) starts it, or forks itself and calls `work`. A crash here ends no suite.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rigsize.errors import SizingError
from rigsize.models.source import resolve_model
from rigsize.quiet import hush
from rigsize.run.compare import predict_record, try_predict
from rigsize.run.measure import measure
from rigsize.run.record import from_json, to_json
from rigsize.run.specs import parse_spec

__all__ = ["main", "work"]

ROLES = ("measure", "predict")


def work(role: str, job: Mapping[str, Any], result: Path) -> None:
    """Does one job and writes what came of it, whole or not at all."""
    warnings.simplefilter("ignore")  # a model's own warnings are no result
    if job["one_thread"]:
        import torch

        torch.set_num_threads(1)
    try:
        answer = _measure(job) if role == "measure" else _predict(job)
    except SizingError as error:
        answer = {"error": str(error)}
    partial = result.with_suffix(".tmp")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(result)


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    spec = parse_spec(job["spec"])
    source = resolve_model(spec.workload.model, allow_network=False)
    record = measure(
        source,
        spec.workload,
        spec.strategy,
        job["device"],
        steps=spec.steps,
        seed=spec.seed,
        command=job["command"],
        options=spec.options,
    )
    return {"record": to_json(record)}


def _predict(job: Mapping[str, Any]) -> dict[str, Any]:
    spec = parse_spec(job["spec"])
    source = resolve_model(spec.workload.model, allow_network=False)
    if job.get("record") is not None:  # whose sizes were those of its texts
        prediction, reason = predict_record(source, from_json(job["record"]))
    else:
        prediction, reason = try_predict(
            source,
            spec.workload,
            spec.strategy,
            job["device"],
            job["gpu"],
            ranks=spec.options.world or 1,
            fake=spec.options.world is not None,
        )
    return {
        "prediction": asdict(prediction) if prediction else None,
        "prediction_unknown_reason": reason or None,
    }


def main(arguments: list[str]) -> int:
    """The command of the module docstring."""
    role, job, result = arguments
    hush()
    if role not in ROLES:
        raise SystemExit(2)
    work(role, json.loads(Path(job).read_text(encoding="utf-8")), Path(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
