"""`rigsize measure`: flags to a real run, its Record, the prediction beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import Given, device_of, print_answer, say, settings_of, typed, waiting
from rigsize.cli_job import Job, parse_job
from rigsize.cli_settings import Settings
from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.run.record_store import records_folder
from rigsize.units import parse_bytes

if TYPE_CHECKING:
    from rigsize.run.job import MeasureOptions
    from rigsize.run.record import Record
    from rigsize.run.suite import SuiteReport

__all__ = ["measure_verb"]

ASSUMED_MINUTES = 60.0


def measure_verb(given: Given) -> int:
    """`rigsize measure MODEL`, or a whole suite."""
    # Read when torch is imported: see `run.measure`.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    settings = settings_of("measure", given)
    if settings.text("suite") is not None:
        return _measure_suite(settings, given)
    if settings.text("max-minutes") is not None:
        raise UnsupportedCombination(
            "max-minutes", settings.text("max-minutes"), "only a suite has a time to keep to"
        )
    return _measure_one(settings)


def _measure_one(settings: Settings) -> int:
    if settings.text("recipe") is not None:  # it asks whether it is a CPU
        settings.given = {**settings.given, "device": device_of(settings.text("device"))}
    job = parse_job(settings, "measure")
    if job.auto_batch or job.auto_length:
        raise UnsupportedCombination(
            job.auto_length or "batch-size",
            "auto",
            "a measured run needs a number",
            hint="estimate finds the largest",
        )
    record = _measured(settings, job)
    if not _first() and record.outcome == "ok":
        return 0  # the first rank has the Record of all
    code = _answer(settings, job, record)
    if record.outcome != "ok" and os.environ.get("WORLD_SIZE", "1") != "1":
        return MeasurementFailed.exit_code  # so that torchrun ends the ranks that wait for this one
    return code


def _first() -> bool:
    """Whether this process is the rank that talks and writes."""
    return os.environ.get("RANK", "0") == "0"


def _answer(settings: Settings, job: Job, record: Record) -> int:
    from rigsize.report.measured import measured_text
    from rigsize.run.compare import compare, predict_record, to_json
    from rigsize.run.record import to_json as record_json
    from rigsize.run.record import write_record

    with waiting(f"tracing {job.source.name} for the prediction"):
        prediction, reason = predict_record(job.source, record)
    comparison = compare(record, prediction, reason)
    folder = settings.text("out")
    path = write_record(Path(folder) if folder else records_folder(), record)
    say(f"Record written to {path}")
    print_answer(
        lambda: {"record": record_json(record)} | to_json(comparison),
        settings.switch("json"),
        lambda: measured_text(comparison),
    )
    return MeasurementFailed.exit_code if record.outcome == "failed" else comparison.exit_code


def _measured(settings: Settings, job: Job) -> Record:
    from rigsize.run.checks import check_job
    from rigsize.run.measure import measure

    asked, options = settings.text("device"), _options(settings)
    steps, seed = settings.integer("steps"), settings.integer("seed")
    numbers = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    # Before torch is imported: a mistake is told at once.
    likely = "cpu" if options.cap_bytes is None else "cuda"
    check_job(job.source, job.workload, job.strategy, asked or likely, options=options, **numbers)
    device = device_of(asked)
    if _first():
        for text in [*settings.warnings, *(f"assumed: {line}" for line in settings.assumed)]:
            say(text)
        say(f"running {job.source.name} on {device}: torch starts, then {steps or 3} steps")
    return measure(
        job.source,
        job.workload,
        job.strategy,
        device,
        command=typed(),
        options=options,
        **numbers,
    )


def _options(settings: Settings) -> MeasureOptions:
    """What is measured beyond the plain run; SpecError for a file that cannot be read."""
    from rigsize.run.job import MeasureOptions
    from rigsize.texts.source import DataSource
    from rigsize.texts.stats import read_histogram

    histogram, data, cap = (settings.text(name) for name in ("histogram", "data", "cap"))
    columns: dict[str, Any] = {
        f"{name}_column": settings.text(f"{name}-column") for name in ("text", "label", "target")
    }
    if data is None:
        for name in ("text-column", "label-column", "target-column", "tokenizer"):
            if settings.text(name) is not None:
                settings.warnings.append(f"--{name} has no effect without --data")
    snapshot = settings.text("snapshot")
    return MeasureOptions(
        world=settings.integer("world"),
        histogram=None if histogram is None else read_histogram(histogram),
        histogram_source=histogram or "",
        data=None if data is None else DataSource(path=data, **columns),
        tokenizer=settings.text("tokenizer"),
        cap_bytes=None if cap is None else parse_bytes(cap, "cap"),
        snapshot=None if snapshot is None else Path(snapshot).expanduser(),
        attribution=settings.switch("attribution"),
    )


def _measure_suite(settings: Settings, given: Given) -> int:
    from rigsize.run.specs import read_specs
    from rigsize.run.suite import run_suite

    taken = {"suite", "max_minutes", "out", "device", "json"}
    for key in given:
        if key not in taken:
            flag = key.replace("_", "-")
            raise UnsupportedCombination(flag, given[key], "not with --suite: its jobs say it all")
    file = Path(settings.text("suite") or "")
    out = Path(settings.text("out") or f"{file.stem}.records.jsonl")
    device = settings.text("device")
    if device not in (None, "cpu", "cuda"):
        raise SpecError("device", device, "unknown value", allowed=("cpu", "cuda"))
    read_specs(file)  # a mistake in it is told before anything else is said
    minutes = _minutes(settings.text("max-minutes"))
    report = run_suite(
        file, minutes, out, _suite_device(device), command=typed(), progress=_tell_line
    )
    print_answer(
        lambda: _suite_document(report), settings.switch("json"), lambda: _suite_text(report)
    )
    return 0


def _suite_device(asked: str | None) -> str:
    """Never asks torch: it would start CUDA before the children are forked."""
    from rigsize.run import host

    if asked is not None:
        return device_of(asked)
    found = "cuda" if host.hardware("cuda").gpu else "cpu"
    say(f"device: {found}")
    return found


def _minutes(text: str | None) -> float:
    if text is None:
        say(f"assumed: max-minutes {ASSUMED_MINUTES:g}")
        return ASSUMED_MINUTES
    try:
        return float(text) if len(text) < 20 else -1.0
    except ValueError:
        raise SpecError("max-minutes", text, "not a number of minutes") from None


def _tell_line(line: Mapping[str, Any]) -> None:
    record = line["record"]
    outcome = record["outcome"] if record else f"refused: {line['record_unknown_reason']}"
    say(f"{line['id']}: {outcome} ({line['wall_s']:.0f} s)")


def _suite_document(report: SuiteReport) -> dict[str, Any]:
    return {
        "outcomes": report.outcomes,
        "already": list(report.already),
        "left": list(report.left),
        "out": str(report.out),
        "lines": list(report.lines),
    }


def _suite_text(report: SuiteReport) -> Iterator[str]:
    counts = ", ".join(f"{count} {name}" for name, count in report.outcomes.items()) or "none run"
    yield f"{counts}; {len(report.already)} were done before, {len(report.left)} are left"
    if report.left:
        yield f"left: {', '.join(report.left)}"
    yield f"Records: {report.out}"
