"""What each verb does: flags to records, the answer to stdout, the exit code back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigsize.cli_common import Given, print_answer, say, settings_of, waiting
from rigsize.cli_flags import VERBS as FLAGS
from rigsize.cli_job import (
    Job,
    Settings,
    Target,
    parse_job,
    parse_target,
    settle_batch,
    settle_length,
    settle_parallel,
)
from rigsize.cli_lengths import lengths_asked, with_examples
from rigsize.cli_offer import with_offered_host
from rigsize.errors import SpecError
from rigsize.program.mesh import mesh_of
from rigsize.spec.checks import one_of
from rigsize.spec.workload import USES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.estimate import Estimate
    from rigsize.evidence.validate import Report
    from rigsize.report.answer import Answer
    from rigsize.search import Edit

__all__ = ["VERBS"]


# -- estimate -----------------------------------------------------------------------------------


def estimate_verb(given: Given) -> int:
    """`rigsize estimate MODEL`."""
    settings = settings_of("estimate", given)
    target = with_offered_host(settings, parse_target(settings))
    job = settle_parallel(settings, parse_job(settings), target.cluster)
    for warning in settings.warnings:
        say(f"warning: {warning}")
    explained = settings.switch("explain")
    answer, explanation = _answer(settings, job, target, explained)

    def document() -> dict[str, Any]:
        from rigsize.report.document import estimate_document
        from rigsize.report.explain import explain_document

        more = {"explain": explain_document(explanation)} if explanation else {}
        return estimate_document(answer) | more

    def parts() -> Iterator[RenderableType]:
        from rigsize.report.explain import explain_text
        from rigsize.report.text import estimate_text

        yield from estimate_text(answer)
        if explanation:
            yield from explain_text(explanation)

    print_answer(document, settings.switch("json"), parts)
    return answer.exit_code


def _answer(settings: Settings, job: Job, target: Target, explained: bool) -> tuple[Answer, Any]:
    """The Answer, and its Explanation where one is wanted."""
    from rigsize.batches import longest_text, usual_batch, worst_batch
    from rigsize.cli_time import timed
    from rigsize.estimate import check_workload, estimate, profile_for
    from rigsize.report.answer import Answer
    from rigsize.report.explain import explain
    from rigsize.search import largest_batch, longest_context

    auto, cluster = job.auto_batch, target.cluster
    check_workload(job.source, job.workload, job.strategy)
    lengths, job = lengths_asked(settings, job), with_examples(settings, job)
    whole = job.workload
    if lengths is not None:
        longest = longest_text(lengths, whole)
        job = replace(job, workload=replace(whole, max_length=longest))
    with waiting(f"tracing {job.source.name}, which takes some seconds the first time"):
        job, any_fits = settle_batch(job, cluster, largest_batch)
        job, any_length = settle_length(job, cluster, longest_context)
        asked, usual, words = job.strategy, None, ""
        if lengths is not None:
            batch = worst_batch(lengths, whole, asked)
            job = replace(job, workload=batch.workload, strategy=batch.strategy)
            said = [line for line in settings.assumed if not line.startswith("dynamic padding")]
            settings.assumed = [*said, batch.words]
        profile = profile_for(job.source, job.workload, job.strategy, cluster.accelerator)
        found = estimate(job.source, job.workload, job.strategy, cluster, profile=profile)
        if lengths is not None:
            batch = usual_batch(lengths, whole, asked)
            usual = estimate(job.source, batch.workload, batch.strategy, cluster)
            words = batch.words
        of_time = replace(job, workload=whole if lengths else job.workload, strategy=asked)
        priced = timed(settings, of_time, usual or found, lengths)
    answer = Answer(
        estimate=found,
        assumed=tuple(settings.assumed),
        usual=usual,
        usual_words=words,
        notes=tuple(_notes(job, target, auto, any_fits and any_length)),
        requested_headroom_bytes=target.headroom_bytes,
        fail_over_bytes=target.fail_over_bytes,
        edits=_edits(found),
        timed=priced,
    )
    return answer, explain(found, profile) if explained else None


def _edits(found: Estimate) -> tuple[Edit, ...]:
    """What would make it fit."""
    from rigsize.search import cheapest_edits

    if found.fit.of_card != "does_not_fit":
        return ()
    with waiting("looking for changes that make it fit; each is traced and replayed"):
        return tuple(cheapest_edits(found))


def _notes(job: Job, target: Target, auto: bool, any_fits: bool) -> Iterator[str]:
    micro = job.strategy.micro_batch
    if auto:
        yield f"the largest batch that fits: {micro}" if any_fits else "not even a batch of 1 fits"
    if job.auto_length:
        longest = job.workload.prompt_tokens
        found = f"the longest {job.auto_length} that fits: {longest:,}, in steps of 8"
        yield found if any_fits else "not even 8 tokens fit"
    mesh = mesh_of(job.strategy, target.cluster, training=job.workload.training)
    total = micro * job.strategy.accumulation * mesh.ranks
    if job.global_batch is not None and total != job.global_batch:
        yield f"the global batch is {total:,}, not {job.global_batch:,}: whole micro-batches only"
    if target.note:
        yield target.note


# -- table --------------------------------------------------------------------------------------


def table_verb(given: Given) -> int:
    """`rigsize table`: what the article prints, or with `--use inference` what it announces."""
    use = given.get("use")
    if use is not None:
        one_of("use", str(use), USES)
    return _inference_table(given) if use == "inference" else _seed_table(given)


def _inference_table(given: Given) -> int:
    from rigsize.report.inference import inference_document, inference_text
    from rigsize.seed_inference import INFERENCE_RECIPE, predict_inference
    from rigsize.seed_table import CLASS_CARDS

    with waiting("tracing the article's models, which takes a minute the first time"):
        rows = predict_inference()
    more = (INFERENCE_RECIPE, CLASS_CARDS)
    print_answer(
        lambda: inference_document(rows, *more),
        bool(given.get("json")),
        lambda: inference_text(rows, *more),
    )
    return 0


SEED_DRAWS = 200
"""Of thirteen intervals, to be had in seconds."""


def _seed_table(given: Given) -> int:
    from rigsize.report.table import table_document, table_text
    from rigsize.seed_hours import predict_hours
    from rigsize.seed_table import CLASS_CARDS, FOOTNOTES, RECIPE, predict_table

    with waiting("tracing the article's models, which takes a minute the first time"):
        hours = predict_hours(draws=SEED_DRAWS)
        every = zip(predict_table(), hours.rows, strict=True)
        rows = [replace(row, hours=one) for row, one in every]
    rows = [row for row in rows if given.get("use") in (None, row.table)]
    more = (RECIPE, FOOTNOTES, CLASS_CARDS)
    print_answer(
        lambda: table_document(rows, *more, hours.fitted),
        bool(given.get("json")),
        lambda: table_text(rows, *more, hours.fitted),
    )
    return 0


# -- validate -----------------------------------------------------------------------------------


def validate_verb(given: Given) -> int:
    """`rigsize validate`."""
    from rigsize.estimate import estimate
    from rigsize.evidence.cases import load_cases, load_records
    from rigsize.evidence.page import write_page
    from rigsize.evidence.validate import validate
    from rigsize.report.validation import validation_document, validation_text

    root = _validation_root(given)
    cases = load_cases(Path(str(given.get("cases") or root / "validation" / "cases.toml")))
    records = load_records(Path(str(given.get("records") or root / "validation" / "records")))
    page = Path(str(given.get("page") or root / "docs" / "validation.md"))
    with waiting("predicting every case; those without a stored profile are traced"):
        report: Report = validate(cases, records, estimate, seed_rows=_seed_rows)
    write_page(page, report, cases)
    say(f"page written to {page}")
    print_answer(
        lambda: validation_document(report),
        bool(given.get("json")),
        lambda: validation_text(report),
    )
    return report.exit_code


def _validation_root(given: Given) -> Path:
    """Where `validation/` lies: here, or in the source tree this runs from."""
    for root in (Path(), Path(__file__).parents[2]):
        if (root / "validation" / "cases.toml").is_file():
            return root
    if given.get("cases"):
        return Path()
    raise SpecError(
        "cases",
        "validation/cases.toml",
        "no such file here",
        hint="run it in the source tree, or give --cases, --records and --page",
    )


def _seed_rows() -> list[Any]:
    from rigsize.evidence.validate import SeedVerdict
    from rigsize.seed_table import predict_table

    return [
        SeedVerdict(
            row=f"{row.table} {row.model} {row.micro_batch} x {row.accumulation}"
            f" on {row.num_gpus}: {row.published_size_class_gb} GB",
            verdict=row.verdict,
            note=row.note,
        )
        for row in predict_table()
    ]


def _late(module: str, name: str) -> Callable[[Given], int]:
    """A verb of another module, which is imported when it is called."""

    def verb(given: Given) -> int:
        code: int = getattr(importlib.import_module(f"rigsize.{module}"), name)(given)
        return code

    return verb


VERBS: dict[str, Callable[[Given], int]] = {
    "train": _late("cli_train", "train_verb"),
    "data": _late("cli_data", "data_verb"),
    "estimate": estimate_verb,
    "compare": _late("cli_compare", "compare_verb"),
    "plan": _late("cli_plan", "plan_verb"),
    "table": table_verb,
    "measure": _late("cli_measure", "measure_verb"),
    "validate": validate_verb,
    "gpus": _late("cli_hardware", "gpus_verb"),
    "offers": _late("cli_hardware", "offers_verb"),
    "records": _late("cli_records", "records_verb"),
    "calibrate": _late("cli_calibrate", "calibrate_verb"),
    "emit": _late("cli_emit", "emit_verb"),
}
assert VERBS.keys() == FLAGS.keys()
