"""`--data` and `--histogram` of an estimate: lengths of the texts, or only how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rigsize.cli_common import say
from rigsize.cli_job import Job, Settings
from rigsize.errors import UnsupportedCombination

if TYPE_CHECKING:
    from rigsize.texts.stats import LengthHistogram

__all__ = ["lengths_asked", "lengths_planned", "with_examples", "with_lengths"]


def lengths_asked(settings: Settings, job: Job) -> LengthHistogram | None:
    """Lengths of the texts, where a file of them or of texts was given and they matter."""
    _check_flags(settings)
    return _read(settings, job) if _lengths_matter(job) else None


def lengths_planned(settings: Settings, jobs: Sequence[Job]) -> LengthHistogram | None:
    """The same of jobs of the same texts, where they matter to any of them."""
    _check_flags(settings)
    matters = next((job for job in jobs if _lengths_matter(job)), None)
    return None if matters is None else _read(settings, matters)


def with_lengths(job: Job, lengths: LengthHistogram | None) -> tuple[Job, LengthHistogram | None]:
    """The job cut to the longest of these texts, and their lengths, where they matter to it."""
    if lengths is None or not _lengths_matter(job):
        return job, None
    from rigsize.batches import longest_text

    longest = longest_text(lengths, job.workload)
    return replace(job, workload=replace(job.workload, max_length=longest)), lengths.cut_to(longest)


def _read(settings: Settings, job: Job) -> LengthHistogram | None:
    histogram = settings.text("histogram")
    if histogram is not None:
        from rigsize.texts.stats import read_histogram

        return read_histogram(histogram)
    if settings.text("data") is None:
        return None
    from rigsize.cli_data import lengths_of

    source = job.source
    named = source.path or source.name
    return lengths_of(settings, job.workload.task, str(named), job.workload.max_length)


def with_examples(settings: Settings, job: Job) -> Job:
    """The job with the number of texts in the file, where their lengths do not matter.

    Where lengths do, they bring the number with them (`steptime.run_time`). The file is read even
    if `--examples` says how many: a missing one is a mistake either way.
    """
    flag = _flag(settings)
    if flag is None or _lengths_matter(job):
        return job
    count = _count(settings, job)
    why = "generation has its own lengths" if job.workload.generates else "all take max-length"
    if job.workload.examples is not None or count is None:
        say(f"warning: --{flag} has no effect: {why}; --padding dynamic or unpadded")
        return job
    settings.assumed.append(f"examples {count:,}: the texts of --{flag}; {why}")
    return replace(job, workload=replace(job.workload, examples=count))


def _count(settings: Settings, job: Job) -> int | None:
    """None of a data set on the hub, which is not downloaded to be counted."""
    histogram = settings.text("histogram")
    if histogram is not None:
        from rigsize.texts.stats import read_histogram

        return read_histogram(histogram).texts
    from rigsize.cli_data import source_of
    from rigsize.texts.counting import count_texts

    source = source_of(settings, "data")
    return None if source.kind() == "hub" else count_texts(source, job.workload.task)


def _flag(settings: Settings) -> str | None:
    return next((name for name in ("data", "histogram") if settings.text(name) is not None), None)


def _lengths_matter(job: Job) -> bool:
    return job.workload.padding != "fixed" and not job.workload.generates


def _check_flags(settings: Settings) -> None:
    histogram = settings.text("histogram")
    if settings.text("data") is None:
        for name in ("text-column", "label-column", "target-column", "tokenizer"):
            if settings.text(name) is not None:
                say(f"warning: --{name} has no effect without --data")
    elif histogram is not None:
        raise UnsupportedCombination(
            "histogram", histogram, "the data has lengths of its own", hint="give one of the two"
        )
