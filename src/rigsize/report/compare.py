"""Several estimators' answers to one run, term by term, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rigsize.peers.answer import TERMS, PeerAnswer
from rigsize.report.answer import command_of
from rigsize.report.console import table
from rigsize.report.document import unknown
from rigsize.units import GIB, format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.estimate import Estimate
    from rigsize.run.compare import Comparison

__all__ = ["compare_document", "compare_text"]

_LUMPED, _LEFT_OUT = "·", "-"


def compare_document(
    estimate: Estimate,
    answers: Sequence[PeerAnswer],
    measured: Comparison | None,
    assumed: Sequence[str],
) -> dict[str, Any]:
    """One entry an estimator; `left_out` names the terms of ours that it does not count."""
    document: dict[str, Any] = {
        "model": estimate.source.name,
        "workload": asdict(estimate.workload),
        "strategy": asdict(estimate.strategy),
        "cluster": {
            "accelerator": estimate.cluster.accelerator.id,
            "per_node": estimate.cluster.per_node,
            "nodes": estimate.cluster.nodes,
        },
        "terms": list(TERMS),
        "answers": [_entry(answer, answers[0]) for answer in answers],
        "fit": {"verdict": estimate.fit.verdict, "capacity_bytes": estimate.fit.capacity_bytes},
        "assumptions": [*assumed, *estimate.assumptions],
        "command": command_of("compare", estimate),
    }
    if measured is not None:
        document["record"] = {
            "record_id": measured.record.record_id,
            "inside_band": measured.inside_band,
            "verdict": measured.verdict,
        }
    return document


def _entry(answer: PeerAnswer, ours: PeerAnswer) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": answer.name, "version": answer.version or None}
    if answer.total_bytes is None:
        entry |= unknown("total_bytes", answer.unknown_reason)
    else:
        entry["total_bytes"] = answer.total_bytes
    return entry | {
        "share_of_ours": _share(answer, ours),
        "terms": [{"name": name, "bytes": size} for name, size in answer.terms.items()],
        "lumped": list(answer.lumped),
        "left_out": list(answer.left_out),
        "host_bytes": answer.host_bytes,
        "note": answer.note,
    }


def _share(answer: PeerAnswer, ours: PeerAnswer) -> float | None:
    if answer.total_bytes is None or not ours.total_bytes:
        return None
    return round(answer.total_bytes / ours.total_bytes, 4)


def compare_text(
    estimate: Estimate,
    answers: Sequence[PeerAnswer],
    measured: Comparison | None,
    assumed: Sequence[str],
) -> Iterator[RenderableType]:
    """A column an estimator that answers, then what each figure stands for and leaves out."""
    yield _headline(estimate)
    told = [answer for answer in answers if answer.total_bytes is not None]
    yield _terms(told, answers[0])
    for answer in answers:
        yield _line(answer)
    if measured is not None:
        yield f"measured: {measured.verdict}"
    yield from (f"assumed: {line}" for line in assumed)


def _headline(estimate: Estimate) -> str:
    workload, strategy, cluster = estimate.workload, estimate.strategy, estimate.cluster
    devices = f"{cluster.devices} x " if cluster.devices > 1 else ""
    return (
        f"{estimate.source.name}: {workload.task}, {workload.use}, {strategy.micro_batch} x"
        f" {workload.max_length} tokens, {strategy.precision}, {strategy.parallel}, on"
        f" {devices}{cluster.accelerator.id}; bytes of one device"
    )


def _terms(told: Sequence[PeerAnswer], ours: PeerAnswer) -> RenderableType:
    """GiB by term; `·` where one figure holds several terms, `-` where it is left out."""
    made = table(None, "GiB", *(a.name for a in told), right=[a.name for a in told])
    shown = {term for answer in told for term in answer.terms}
    for term in (term for term in TERMS if term in shown):
        made.add_row(term.replace("_", " "), *(_cell(answer, term) for answer in told))
    made.add_row("total", *(_gib(answer.total_bytes or 0) for answer in told))
    made.add_row("of ours", *(f"{100 * (_share(answer, ours) or 0):.0f} %" for answer in told))
    return made


def _cell(answer: PeerAnswer, term: str) -> str:
    if term in answer.terms:
        return _gib(answer.terms[term])
    return _LUMPED if term in answer.lumped else _LEFT_OUT


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f}"


def _line(answer: PeerAnswer) -> str:
    name = f"{answer.name} {answer.version}".strip()
    if answer.total_bytes is None:
        return f"{name}: no figure: {answer.unknown_reason}"
    parts = [answer.note]
    if answer.host_bytes is not None:
        parts.append(f"host {format_bytes(answer.host_bytes)} a node")
    if answer.left_out:
        parts.append(f"leaves out {', '.join(t.replace('_', ' ') for t in answer.left_out)}")
    return f"{name}: {'; '.join(part for part in parts if part)}"
