"""`rigsize emit`: the chosen plan as the files that launch it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import (
    Given,
    print_answer,
    say,
    settings_of,
    take_own_cards,
    typed,
    waiting,
)
from rigsize.cli_job import (
    Job,
    Settings,
    number,
    parse_job,
    parse_target,
    settle_batch,
    settle_length,
    settle_parallel,
)
from rigsize.cli_train import check_run_flags
from rigsize.errors import SizingError, SpecError, UnsupportedCombination
from rigsize.spec import Cluster, check_together

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.emit import Emission, Launch

__all__ = ["emit_verb"]

_RUN_FLAGS = (
    *("text-column", "label-column", "target-column", "tokenizer", "eval-data", "eval-share"),
    *("learning-rate", "weight-decay", "schedule", "warmup-share", "max-steps", "seed", "init"),
    *("trust-remote-code", "offline"),
)
"""What `rigsize train` is told beside the spec file."""


def emit_verb(given: Given) -> int:
    """`rigsize emit MODEL --out DIR`, or `--plan FILE --pick WHICH`."""
    from rigsize.emit.files import emit, write_files

    out = given.get("out")
    if not isinstance(out, str) or not out.strip():
        raise SpecError("out", None, "missing", hint="--out FOLDER")
    settings, most_hours = _settings(given)
    launch = _launch(settings, most_hours)
    emission = emit(launch)
    folder = Path(out).expanduser()
    paths = write_files(emission, folder, force=settings.switch("force"))
    for text in (*settings.warnings, *(f"assumed: {line}" for line in settings.assumed)):
        say(text)
    for name, why in emission.left_out:
        say(f"{name} is not written: {why}")
    for note in emission.notes:
        say(note)
    print_answer(
        lambda: _document(emission, paths, launch),
        settings.switch("json"),
        lambda: _text(emission, paths),
    )
    return 0


def _settings(given: Given) -> tuple[Settings, float | None]:
    """The flags, over those of a spec file or of a plan; the plan's hours."""
    plan = given.get("plan")
    if not isinstance(plan, str):
        if "pick" in given:
            raise UnsupportedCombination("pick", given["pick"], "there is no --plan to pick from")
        return settings_of("emit", given), None
    if "spec" in given:
        raise UnsupportedCombination("spec", given["spec"], "the plan says it all")
    from rigsize.cli_picked import pick_plan

    pick = given.get("pick")
    picked = pick_plan(Path(plan).expanduser(), None if pick is None else str(pick))
    say(picked.words)
    changed = sorted(
        key for key in given if key in picked.given and given[key] != picked.given[key]
    )
    hours = None if changed else picked.most_hours
    settings = Settings({**picked.given, **given})
    for key in changed:
        name = key.replace("_", "-")
        settings.warnings.append(f"--{name} {given[key]} instead of the plan's {picked.given[key]}")
    return settings, hours


def _launch(settings: Settings, most_hours: float | None) -> Launch:
    from rigsize.emit import Launch

    take_own_cards(settings.text("accelerators"))
    target = parse_target(settings)
    job = settle_parallel(settings, parse_job(settings, "emit"), target.cluster)
    check_together(job.workload, job.strategy)
    check_run_flags(settings)
    job = _settled(job, target.cluster)
    _warn_of_memory(settings, job, target.cluster)
    rates: dict[str, Any] = {
        name.replace("-", "_"): number(name, text)
        for name in ("learning-rate", "weight-decay")
        if (text := settings.text(name)) is not None
    }
    run_flags = {
        name: value
        for name in _RUN_FLAGS
        if (value := settings.given.get(name.replace("-", "_"))) is not None
    }
    return Launch(
        workload=job.workload,
        strategy=job.strategy,
        cluster=target.cluster,
        data=settings.text("data"),
        run_flags=run_flags,
        most_hours=most_hours,
        command=typed(),
        **rates,
    )


def _settled(job: Job, cluster: Cluster) -> Job:
    """With numbers where `auto` was said, which traces and replays."""
    from rigsize.search import largest_batch, longest_context

    with waiting(f"tracing {job.source.name}, which takes some seconds the first time"):
        job, fits = settle_batch(job, cluster, largest_batch)
        job, fits_length = settle_length(job, cluster, longest_context)
    if not (fits and fits_length):
        flag = job.auto_length or "batch-size"
        raise UnsupportedCombination(flag, "auto", "not even the smallest fits this card")
    return job


def _warn_of_memory(settings: Settings, job: Job, cluster: Cluster) -> None:
    """A warning where what is stored says that it does not fit; nothing is traced for it."""
    from rigsize.estimate import estimate
    from rigsize.search import is_stored

    try:
        if not is_stored(job.source, job.workload, job.strategy, cluster):
            return
        found = estimate(job.source, job.workload, job.strategy, cluster)
    except SizingError:  # what cannot be estimated may be written all the same
        return
    if found.fit.verdict == "does_not_fit":
        where = "the host" if found.fit.of_card != "does_not_fit" else cluster.accelerator.id
        settings.warnings.append(
            f"warning: it does not fit {where}; `rigsize estimate` with the same flags says why"
        )


def _document(emission: Emission, paths: tuple[Path, ...], launch: Launch) -> dict[str, Any]:
    from rigsize.emit import spec_flags
    from rigsize.emit.spec_file import gpus_text

    return {
        "files": [
            {"name": file.name, "path": str(path), "notes": list(file.notes)}
            for file, path in zip(emission.files, paths, strict=True)
        ],
        "left_out": [{"name": name, "reason": why} for name, why in emission.left_out],
        "spec": spec_flags(launch.workload, launch.strategy),
        "gpus": gpus_text(launch.cluster),
        "global_batch": launch.global_batch,
        "runs": not launch.why_not_run,
        "command": launch.command,
    }


def _text(emission: Emission, paths: tuple[Path, ...]) -> Iterator[RenderableType]:
    from rigsize.report.console import table

    about = {
        "rigsize.toml": "the plan; rigsize estimate and train take it with --spec",
        "run.sh": "starts it on this machine, or on every node",
        "accelerate.yaml": "the same for accelerate launch",
        "deepspeed.json": "the same for DeepSpeed",
        "job.sbatch": "the same as a SLURM job",
    }
    made = table(None, "written", "", right=())
    for file, path in zip(emission.files, paths, strict=True):
        made.add_row(str(path), about[file.name])
    yield made
