"""The JSON documents: bytes integers, the unit in the key, an unknown null with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rigsize.estimate import peaks
from rigsize.memory.peaks import Peak
from rigsize.report.answer import (
    Answer,
    state_bytes_per_parameter,
    stored,
    trained_bytes_per_parameter,
)
from rigsize.report.host import host_document
from rigsize.report.time_document import cost_document, time_document

if TYPE_CHECKING:
    from rigsize.errors import SizingError
    from rigsize.estimate import Estimate
    from rigsize.search import Edit

__all__ = [
    "SCHEMA_VERSION",
    "edit_document",
    "error_document",
    "estimate_document",
    "memory_document",
    "render",
    "unknown",
]

SCHEMA_VERSION = "1.0"
"""major.minor: a minor adds keys, a major may change their meaning."""
NOT_YET = "not answered yet"


def render(document: Mapping[str, Any]) -> str:
    """The document as text, with its version first."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False)


def unknown(key: str, reason: str) -> dict[str, Any]:
    """A null and why."""
    return {key: None, f"{key}_unknown_reason": reason}


def error_document(error: SizingError) -> dict[str, Any]:
    """An error of the user's input."""
    return {"error": error.to_json() | {"message": str(error)}}


def estimate_document(answer: Answer) -> dict[str, Any]:
    """The answer to `estimate`, by the contract."""
    estimate = answer.estimate
    document: dict[str, Any] = {
        "model": _model(answer),
        "workload": asdict(estimate.workload),
        "strategy": asdict(estimate.strategy),
        "cluster": _cluster(answer),
        "memory": memory_document(estimate),
        "peaks": _peaks(answer),
        "host": host_document(estimate),
        "time": time_document(answer.timed),
        "cost": cost_document(answer.timed),
        **_generation(answer),
        **_devices(answer),
        "fit": _fit(answer),
        "plan": _plan(answer),
        "parameters": estimate.parameters.model,
        "trainable_parameters": estimate.parameters.trainable,
        "head_parameters": estimate.parameters.head,
        **_checkpoint(answer),
        "precision": _precision(answer),
        "attention_kernels": dict(estimate.program.kernels),
        "versions": dict(estimate.versions),
        "assumptions": [*answer.assumed, *estimate.assumptions, *answer.timed.assumptions],
        "notes": [*answer.notes, *estimate.notes],
        "command": answer.command,
    }
    if estimate.fit.verdict == "does_not_fit":
        document["edits"] = [edit_document(edit) for edit in answer.edits]
    return document


def _model(answer: Answer) -> dict[str, Any]:
    source = answer.estimate.source
    return {
        "name": source.name,
        "model_type": source.model_type,
        "origin": source.origin,
        "config_digest": source.digest,
    }


def _cluster(answer: Answer) -> dict[str, Any]:
    cluster = answer.estimate.cluster
    return {
        "accelerator": cluster.accelerator.id,
        "per_node": cluster.per_node,
        "nodes": cluster.nodes,
        "mesh": asdict(answer.estimate.program.mesh),
    }


def memory_document(estimate: Estimate) -> dict[str, Any]:
    """`memory` of the contract."""
    memory = estimate.memory
    document: dict[str, Any] = {"allocated_peak_bytes": memory.allocated_peak_bytes}
    for key in ("reserved_peak_bytes", "device_peak_bytes"):
        value = getattr(memory, key)
        document |= unknown(key, "not on CPU") if value is None else {key: value}
    rows = [{"name": row.name, "bytes": row.num_bytes, "basis": row.basis} for row in memory.ledger]
    return document | {
        "low_bytes": memory.low_bytes,
        "high_bytes": memory.high_bytes,
        "peak_moment": memory.peak_moment,
        "ledger": rows,
    }


def _peaks(answer: Answer) -> list[dict[str, Any]]:
    """Moment by moment, and a usual batch; `at_most` where the figure is a bound from above."""
    found = list(peaks(answer.estimate))
    if answer.usual is not None:
        memory = answer.usual.memory
        found.append(
            Peak(
                moment="usual batch",
                allocated_peak_bytes=memory.allocated_peak_bytes,
                device_peak_bytes=memory.device_peak_bytes,
                basis="derived",
            )
        )
    return [
        {
            "moment": peak.moment,
            "allocated_peak_bytes": peak.allocated_peak_bytes,
            **(
                unknown("device_peak_bytes", "not on CPU")
                if peak.device_peak_bytes is None
                else {"device_peak_bytes": peak.device_peak_bytes}
            ),
            "at_most": peak.is_bound,
            "basis": peak.basis,
        }
        for peak in found
    ]


def _generation(answer: Answer) -> dict[str, Any]:
    """Prefill and decoding apart, where tokens are written."""
    estimate = answer.estimate
    if not estimate.workload.generates:
        return {}
    peaks = estimate.replay.phase_peaks
    return {
        "generation": {
            "prompt_length": estimate.workload.prompt_tokens,
            "max_new_tokens": estimate.workload.new_tokens,
            "prefill_allocated_peak_bytes": peaks.get("prefill"),
            "decode_allocated_peak_bytes": peaks.get("decode"),
            "decoding_steps_replayed": len(estimate.program.decoding),
        }
    }


def _devices(answer: Answer) -> dict[str, Any]:
    """Every device, where one model is spread over several."""
    shares = answer.estimate.devices
    return {"devices": [asdict(share) for share in shares]} if shares else {}


def _fit(answer: Answer) -> dict[str, Any]:
    fit = answer.estimate.fit
    if fit.verdict == "unknown":
        verdict = unknown("fits", _why_unknown(answer)) | unknown("verdict", _why_unknown(answer))
    else:
        verdict = {"fits": fit.fits, "verdict": fit.verdict}
    for key in ("capacity_bytes", "headroom_bytes"):
        value = getattr(answer, key)
        verdict |= unknown(key, _why_unknown(answer)) if value is None else {key: value}
    verdict["requested_headroom_bytes"] = answer.requested_headroom_bytes
    verdict |= _host_fit(answer)
    if answer.fail_over_bytes is not None:
        verdict |= {"fail_over_bytes": answer.fail_over_bytes, "over_limit": answer.over_limit}
    return verdict


def _host_fit(answer: Answer) -> dict[str, Any]:
    fit = answer.estimate.fit
    if fit.host_capacity_bytes is None:
        return unknown("host_capacity_bytes", "no --host-memory was given")
    return {
        "host_capacity_bytes": fit.host_capacity_bytes,
        "host_headroom_bytes": fit.host_headroom_bytes,
        "host_verdict": fit.host_verdict,
    }


def _why_unknown(answer: Answer) -> str:
    accelerator = answer.estimate.cluster.accelerator
    return "not on CPU" if accelerator.is_cpu else f"nobody published what {accelerator.id} leaves"


def _plan(answer: Answer) -> dict[str, int]:
    strategy, ranks = answer.estimate.strategy, answer.estimate.program.mesh.ranks
    return {
        "micro_batch": strategy.micro_batch,
        "accumulation": strategy.accumulation,
        "ranks": ranks,
        "global_batch": strategy.micro_batch * strategy.accumulation * ranks,
    }


def _checkpoint(answer: Answer) -> dict[str, Any]:
    parameters = answer.estimate.parameters
    note = parameters.checkpoint_note or "the file was not read"
    if parameters.checkpoint is None:
        return unknown("checkpoint_parameters", note)
    return {"checkpoint_parameters": parameters.checkpoint, "checkpoint_note": note}


def _precision(answer: Answer) -> dict[str, Any]:
    policy = answer.estimate.strategy.policy
    training = answer.estimate.workload.training
    held = stored(answer.estimate)
    quantized = held and {
        "stored_as": held.method,
        "quantized_parameters": held.quantized,
        "quantized_bytes_per_parameter": round(held.bytes_per_quantized, 6),
    }
    return {
        "name": policy.name,
        "weight_bytes_per_parameter": round(held.bytes_per_parameter, 6)
        if held
        else policy.weight_bytes,
        **(quantized or {}),
        "gradient_bytes_per_parameter": _gradient_bytes(answer) if training else 0,
        "master_bytes_per_parameter": policy.master_bytes if training else 0,
        "state_bytes_per_parameter": round(state_bytes_per_parameter(answer.estimate), 4),
    }


def _gradient_bytes(answer: Answer) -> float:
    """Of a trained parameter; adapters may be fp32 over 16-bit weights."""
    estimate = answer.estimate
    if estimate.strategy.method == "full":
        return estimate.strategy.policy.gradient_bytes
    return round(trained_bytes_per_parameter(estimate), 4)


def edit_document(edit: Edit) -> dict[str, Any]:
    """A change with what it saves."""
    return {
        "name": edit.name,
        "flags": edit.flags,
        "saved_bytes": edit.saved_bytes,
        "device_peak_bytes": edit.device_peak_bytes,
        "host_peak_bytes": edit.host_peak_bytes,
        "verdict": edit.verdict,
        "time": _time_of_edit(edit),
    }


def _time_of_edit(edit: Edit) -> dict[str, Any]:
    """Seconds of a step before and after, null with a reason where one is unknown."""
    time = edit.time
    why = "not asked for" if time is None else time.reason
    found = {
        "step_before_s": time and time.before_s,
        "step_after_s": time and time.after_s,
        "times_as_long": time and time.times_as_long,
    }
    document: dict[str, Any] = {}
    for key, value in found.items():
        document |= unknown(key, why) if value is None else {key: value}
    return document
