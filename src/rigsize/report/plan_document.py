"""A plan as JSON: memory, host, time and cost of each plan as `estimate` has them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from rigsize.errors import SizingError
from rigsize.money import cost
from rigsize.plan.records import Chosen
from rigsize.plan.words import bound_in_words
from rigsize.report.document import edit_document, memory_document, unknown
from rigsize.report.host import host_document
from rigsize.report.plan_answer import (
    NETWORK,
    NO_TIME,
    PlanAnswer,
    command,
    notes_of_named,
)
from rigsize.report.time_document import cost_document, intervals, time_document
from rigsize.report.timed import Timed
from rigsize.spec import Cluster

__all__ = ["plan_document"]

BY_A_FACT = "it fits: another replay, of no less memory, does; not replayed itself"
NO_INTERVAL = "no interval is made for a plan without a name: its command makes it"
_OF_MEMORY = (
    *("allocated_peak_bytes", "reserved_peak_bytes", "device_peak_bytes"),
    *("low_bytes", "high_bytes", "peak_moment", "ledger"),
)


def plan_document(answer: PlanAnswer) -> dict[str, Any]:
    """By the contract: plans[], rejected[], searched."""
    plan = answer.plan
    return {
        "model": {"name": answer.source.name, "config_digest": answer.source.digest},
        "workload": asdict(answer.workload),
        "texts": _texts(answer),
        "limits": asdict(answer.limits),
        "global_batch": answer.global_batch,
        "met": plan.met,
        "plans": [_chosen(one, answer) for one in plan.chosen],
        "rejected": [
            {"class": one.kind, "of": one.of, "reason": one.reason, "count": one.count}
            for one in plan.rejected
        ],
        "searched": asdict(plan.searched),
        "edits": [edit_document(edit) for edit in plan.edits],
        "scaling": [asdict(point) for point in plan.scaling],
        "versions": _versions(answer),
        "assumptions": list(answer.assumed),
        "notes": [*plan.notes, *notes_of_named(answer)],
    }


def _texts(answer: PlanAnswer) -> dict[str, Any]:
    lengths = answer.lengths
    if lengths is None:
        why = "no --data or --histogram: each takes max-length tokens"
        return unknown("mean_tokens", why) | unknown("longest_tokens", why)
    cut = lengths.cut_to(answer.workload.max_length)
    return {"mean_tokens": cut.mean, "longest_tokens": cut.longest}


def _versions(answer: PlanAnswer) -> dict[str, str]:
    """Of the libraries that the replayed plans were traced with."""
    estimates = (one.confirmed.estimate for one in answer.plan.chosen)
    return next((dict(one.versions) for one in estimates if one is not None), {})


def _chosen(chosen: Chosen, answer: PlanAnswer) -> dict[str, Any]:
    candidate = chosen.candidate
    place, way = candidate.place, candidate.way
    cluster = place.cluster
    return {
        "labels": list(chosen.labels),
        "misses": list(chosen.misses),
        "provider": place.offer.provider,
        "instance": place.offer.instance,
        "region": place.offer.region,
        "gpu": cluster.accelerator.id,
        "gpus": cluster.devices,
        "per_node": cluster.per_node,
        "nodes": cluster.nodes,
        **_host_memory(cluster),
        **_network(cluster),
        "recipe": way.recipe,
        "changes": way.label,
        "workload": asdict(way.workload),
        "strategy": asdict(candidate.strategy),
        "plan": {
            "micro_batch": candidate.micro_batch,
            "accumulation": candidate.accumulation,
            "global_batch": candidate.global_batch,
        },
        "memory": _memory(chosen),
        "host": _host(chosen),
        **_time_and_cost(chosen, answer),
        "command": command(chosen, answer),
        "emit_command": f"{command(chosen, answer, 'emit')} --out launch",
    }


def _host_memory(cluster: Cluster) -> dict[str, Any]:
    """Of each machine, beside the need of it under `host`."""
    size = cluster.host_memory_bytes
    if size is None:
        return unknown("host_memory_bytes", "the offer, or --host-memory of one's own, says none")
    return {"host_memory_bytes": size}


def _network(cluster: Cluster) -> dict[str, Any]:
    if cluster.nodes == 1:
        return unknown("network_bytes_per_s", "one machine")
    if cluster.network_bytes_per_s is None:
        return unknown("network_bytes_per_s", f"the offer does not say; assumed: {NETWORK}")
    return {"network_bytes_per_s": cluster.network_bytes_per_s}


def _memory(chosen: Chosen) -> dict[str, Any]:
    capacity = chosen.candidate.place.cluster.accelerator.capacity_bytes
    estimate = chosen.confirmed.estimate
    if estimate is not None:
        verdict = estimate.fit.verdict
        return memory_document(estimate) | {"capacity_bytes": capacity, "verdict": verdict}
    document: dict[str, Any] = {}
    for key in _OF_MEMORY:
        document |= unknown(key, BY_A_FACT)
    at_most = chosen.confirmed.at_most_bytes
    return document | {
        "at_most_bytes": at_most,
        "capacity_bytes": capacity,
        "verdict": "fits",
    }


def _host(chosen: Chosen) -> dict[str, Any]:
    estimate = chosen.confirmed.estimate
    if estimate is not None:
        return host_document(estimate)
    return unknown("peak_bytes", BY_A_FACT) | unknown("ledger", BY_A_FACT)


def _time_and_cost(chosen: Chosen, answer: PlanAnswer) -> dict[str, Any]:
    run, place = chosen.run, chosen.candidate.place
    if run is None:
        timed = Timed(reason=NO_TIME, cost_reason=NO_TIME)
        time = time_document(timed) | unknown("hours", NO_TIME)
        return {"time": time, "cost": cost_document(timed)}
    middle = chosen.labels == ("front",)
    timed = Timed(run=run, middle=middle, reason=NO_INTERVAL)
    time = time_document(timed) | {
        "hours": intervals(run.hours, timed),
        "run_bound_by": bound_in_words(run),
        "assumptions": list(run.assumptions),
    }
    if place.offer is answer.own:
        return {"time": time, "cost": _energy(chosen, timed, answer)}
    return {"time": time, "cost": cost_document(_priced(timed, chosen, answer))}


def _priced(timed: Timed, chosen: Chosen, answer: PlanAnswer) -> Timed:
    run, place = timed.run, chosen.candidate.place
    assert run is not None, chosen
    try:
        found = cost(run, place.offer, place.cluster, answer.today, spot=answer.limits.spot)
    except SizingError as error:  # a clock that is behind its prices
        return replace(timed, cost_reason=str(error))
    return replace(timed, cost=found)


def _energy(chosen: Chosen, timed: Timed, answer: PlanAnswer) -> dict[str, Any]:
    """Of one's own machines: that of their accelerators' energy, where it has a price."""
    run, place = chosen.run, chosen.candidate.place
    assert run is not None, chosen
    kwh = answer.usd_per_kwh
    document: dict[str, Any] = {"usd_per_hour": place.usd_per_hour, "spot": False, "stale": False}
    if not kwh or run.energy_kwh is None:
        free = {"p10": 0.0, "p50": 0.0, "p90": 0.0}
        why = "one's own machines have no price: --power-price gives them that of their energy"
        return {"usd": free, **document, **unknown("price_date", why)}
    usd = type(run.energy_kwh)(*(kwh * energy for energy in run.energy_kwh))
    return {
        "usd": intervals(usd, timed),
        **document,
        "usd_per_kwh": kwh,
        "price_date": place.offer.price_date,
        "source": place.offer.source,
    }
