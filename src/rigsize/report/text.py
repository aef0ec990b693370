"""The answer to `estimate` for people: the verdict in words first, then the bytes explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rigsize.estimate import peaks
from rigsize.report.answer import (
    Answer,
    Stored,
    least_bytes,
    state_bytes_per_parameter,
    stored,
    trained_bytes_per_parameter,
)
from rigsize.report.console import table
from rigsize.report.host import host_text
from rigsize.report.time import time_text
from rigsize.search import HOPELESS, is_hopeless
from rigsize.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from rigsize.estimate import Estimate
    from rigsize.program.mesh import Mesh
    from rigsize.search import Edit

__all__ = ["estimate_text", "headline", "what_would_fit"]

_WORDS = {
    "fits": "fits",
    "tight": "tight",
    "does_not_fit": "does not fit",
    "unknown": "no verdict",
}
_OUTSIDE = (("context", "context"), ("communication", "NCCL"))
"""Ledger rows outside the allocator."""
_SMALLEST_SHOWN = 0.0005
"""Ledger rows below this share are added up in one."""


def estimate_text(answer: Answer) -> Iterator[RenderableType]:
    """Everything but the explanation, part by part."""
    yield headline(answer)
    yield _how(answer)
    yield ledger_table(answer)
    yield from _moments(answer)
    yield from host_text(answer.estimate)
    yield from _passes(answer)
    yield from _device_table(answer)
    yield _parameters(answer)
    yield from time_text(answer.timed)
    if answer.estimate.fit.of_card == "does_not_fit":
        yield from what_would_fit(answer)
    yield from _lines("note", [*answer.notes, *answer.estimate.notes])
    of_time = answer.timed.assumptions
    yield from _lines("assumed", [*answer.assumed, *answer.estimate.assumptions, *of_time])


def _moments(answer: Answer) -> Iterator[str]:
    """`loading 1.6 GiB, first step 5.7 GiB, later steps 6.0 GiB, evaluation at most 6.0 GiB`."""
    estimate = answer.estimate
    if not estimate.workload.training:
        return
    shown = []
    for peak in peaks(estimate):
        size = peak.device_peak_bytes
        size = peak.allocated_peak_bytes if size is None else size
        bound = " at most" if peak.is_bound else ""
        shown.append(f"{peak.moment}{bound} {format_bytes(size)}")
    lines = [f"  peak up to the end of {', '.join(shown)}"]
    if answer.usual is not None:
        usual = answer.usual.memory
        size = usual.device_peak_bytes
        size = usual.allocated_peak_bytes if size is None else size
        lines.append(f"  {answer.usual_words}: {format_bytes(size)}")
    yield "\n".join([*lines, ""])


def headline(answer: Answer) -> str:
    """The verdict, the peak with its band, the card and the moment."""
    estimate = answer.estimate
    workload = estimate.workload
    what = f"{estimate.source.name}, {workload.task} {workload.use}"
    words = _WORDS[estimate.fit.verdict]
    if estimate.fit.host_is_worse:
        words += " the host" if words.endswith("fit") else " on the host"
    if answer.over_limit and answer.fail_over_bytes is not None:
        # The exit code says no, and so do the first words, whatever the card has room for.
        limit = format_bytes(answer.fail_over_bytes)
        words = f"above the limit of {limit} (--fail-over); by itself: {words}"
    lines = [f"{words}: {what}, on {_devices(estimate)}", *_peak_lines(answer)]
    return "\n".join([*lines, f"  peak at the {estimate.memory.peak_moment}"])


def _devices(estimate: Estimate) -> str:
    """`one A100-40GB`, `each of 16 A100-40GB (hsdp: 2 copies over 8 ranks each)`."""
    mesh, card = estimate.program.mesh, estimate.cluster.accelerator.id
    if estimate.devices:
        return f"the fullest of {len(estimate.devices)} {card} (device_map)"
    if mesh.ranks == 1:
        return f"one {card}"
    return f"each of {mesh.ranks:,} {card} ({estimate.strategy.parallel}: {_shares(mesh)})"


def _shares(mesh: Mesh) -> str:
    if mesh.shard == 1:
        return f"{mesh.replicas:,} copies"
    shards = f"{mesh.shard:,} shards"
    return shards if mesh.replicas == 1 else f"{mesh.replicas:,} copies of {shards}"


def _peak_lines(answer: Answer) -> list[str]:
    memory = answer.estimate.memory
    if memory.device_peak_bytes is None or memory.reserved_peak_bytes is None:
        allocated = format_bytes(memory.allocated_peak_bytes)
        return [f"  allocated peak {allocated}; reserved and device memory: not on CPU"]
    band = f"{format_bytes(memory.low_bytes)} to {format_bytes(memory.high_bytes)}"
    rows = {row.name: row.num_bytes for row in memory.ledger}
    outside = "".join(
        f" + {words} {format_bytes(rows[name])}" for name, words in _OUTSIDE if name in rows
    )
    return [
        f"  device peak {format_bytes(memory.device_peak_bytes)} ({band}){_room(answer)}",
        f"  = reserved {format_bytes(memory.reserved_peak_bytes)}"
        f"{outside}; allocated"
        f" {format_bytes(memory.allocated_peak_bytes)}",
    ]


def _room(answer: Answer) -> str:
    capacity, left = answer.capacity_bytes, answer.headroom_bytes
    if capacity is None or left is None:
        return ", of a capacity that nobody published"
    kept = answer.requested_headroom_bytes
    asked = f", {format_bytes(kept)} to be kept free" if kept else ""
    words = f"{format_bytes(left)} free" if left >= 0 else f"over by {format_bytes(-left)}"
    return f" of {format_bytes(capacity)}: {words}{asked}"


def _how(answer: Answer) -> str:
    estimate = answer.estimate
    workload, strategy = estimate.workload, estimate.strategy
    target = f" -> {workload.max_target_length}" if workload.max_target_length else ""
    batch = f"batch {strategy.micro_batch} x {workload.max_length}{target} tokens"
    if workload.generates:
        batch = (
            f"batch {strategy.micro_batch}, {workload.prompt_tokens:,} tokens read and"
            f" {workload.new_tokens:,} written"
        )
    if not workload.training:
        return f"  {batch}; {_bytes_per_parameter(answer)}; attention {strategy.attention}"
    ranks = estimate.program.mesh.ranks
    total = strategy.micro_batch * strategy.accumulation * ranks
    over = f" on each of {ranks:,} ranks" if ranks > 1 else ""
    return (
        f"  {batch}, {strategy.accumulation:,} a step{over}: global batch {total:,};"
        f" {strategy.optimizer}; attention {strategy.attention};"
        f" recompute {strategy.recompute}\n  {_bytes_per_parameter(answer)}"
    )


def _bytes_per_parameter(answer: Answer) -> str:
    """`fp32: 4 weight + 4 gradient + 8 adamw-foreach = 16 bytes a parameter`."""
    policy, estimate = answer.estimate.strategy.policy, answer.estimate
    held = stored(estimate)
    if held is not None:
        return _bytes_per_quantized(answer, held)
    parts: list[tuple[float, str]] = [(policy.weight_bytes, "weight")]
    if estimate.strategy.method != "full" and estimate.workload.training:
        return _bytes_per_adapted(estimate)
    if estimate.workload.training:
        states = round(state_bytes_per_parameter(estimate), 2)
        parts += [(policy.gradient_bytes, "gradient"), (policy.master_bytes, "master copy")]
        parts += [(states, f"{estimate.strategy.optimizer} states")]
    shards = estimate.program.mesh.shard
    shared = f", over {shards:,} shards" if shards > 1 else ""
    shown = " + ".join(f"{size:g} {name}" for size, name in parts if size)
    total = f" = {sum(size for size, _ in parts):g}" if len(parts) > 1 else ""
    return f"{policy.name}: {shown}{total} bytes a parameter{shared}"


def _bytes_per_adapted(estimate: Estimate) -> str:
    """`bf16: 2 bytes a frozen parameter; lora 4 weight + 4 gradient + 8 adamw-foreach states`."""
    policy, strategy = estimate.strategy.policy, estimate.strategy
    trained = trained_bytes_per_parameter(estimate)
    states = round(state_bytes_per_parameter(estimate), 2)
    master = f" + {policy.master_bytes} master copy" if policy.master_bytes else ""
    return (
        f"{policy.name}: {policy.weight_bytes} bytes a frozen parameter; {strategy.method}:"
        f" {trained:g} weight + {trained:g} gradient{master}"
        f" + {states:g} {strategy.optimizer} states a trained one"
    )


def _bytes_per_quantized(answer: Answer, held: Stored) -> str:
    """`bf16: 6.98 B weights stored as nf4, 0.5625 bytes each, 1.05 B of 2 bytes`."""
    policy, estimate = answer.estimate.strategy.policy, answer.estimate
    weights = (
        f"{policy.name}: {format_count(held.quantized)} weights stored as {held.method},"
        f" {held.bytes_per_quantized:.4f} bytes each, {format_count(held.rest)} of"
        f" {held.bytes_per_rest:g}"
    )
    if not estimate.workload.training:
        return weights
    states = round(state_bytes_per_parameter(estimate), 2)
    parts: list[tuple[float, str]] = [(policy.gradient_bytes, "gradient")]
    parts += [
        (policy.master_bytes, "master copy"),
        (states, f"{estimate.strategy.optimizer} states"),
    ]
    shown = " + ".join(f"{size:g} {name}" for size, name in parts if size)
    return f"{weights}; a trained one {shown}"


def ledger_table(answer: Answer) -> Table:
    """Who holds the bytes; the rows sum to the peak."""
    memory, total = answer.estimate.memory, answer.peak_bytes
    made = table(None, "at the peak", "bytes", "share", "basis", right=("bytes", "share"))
    small = [row for row in memory.ledger if row.num_bytes < _SMALLEST_SHOWN * total]
    small = small if len(small) > 1 else []
    for row in memory.ledger:
        if row not in small:
            share = _share(row.num_bytes, total)
            made.add_row(row.name, format_bytes(row.num_bytes), share, row.basis)
    if small:
        rest = sum(row.num_bytes for row in small)
        made.add_row(f"{len(small)} smaller", format_bytes(rest), _share(rest, total), "")
    made.add_section()
    name = "allocated peak" if memory.device_peak_bytes is None else "device peak"
    made.add_row(name, format_bytes(total), "100.0 %", "")
    return made


def _passes(answer: Answer) -> Iterator[str]:
    """The allocated peaks of the two kinds of passes, where tokens are written."""
    peaks = answer.estimate.replay.phase_peaks
    if answer.estimate.workload.generates:
        shown = [f"{name} {format_bytes(peaks[name])}" for name in _PASSES if name in peaks]
        yield f"allocated peak by pass: {', '.join(shown)}"


def _device_table(answer: Answer) -> Iterator[RenderableType]:
    """Every device, where one model is spread over several."""
    shares = answer.estimate.devices
    if not shares:
        return
    made = table(
        "Device by device",
        *("device", "weights", "allocated", "reserved", ""),
        right=("weights", "allocated", "reserved"),
    )
    for share in shares:
        sizes = (share.weight_bytes, share.allocated_peak_bytes, share.reserved_peak_bytes)
        made.add_row(str(share.device), *map(format_bytes, sizes), _WORDS[share.verdict])
    yield made


_PASSES = ("prefill", "decode")


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else ""


def _parameters(answer: Answer) -> str:
    counts = answer.estimate.parameters
    line = f"parameters: {counts.model:,} ({format_count(counts.model)})"
    line += f", of them head {counts.head:,}, trainable {counts.trainable:,}"
    note = f" ({counts.checkpoint_note})" if counts.checkpoint_note else ""
    known = "unknown" if counts.checkpoint is None else f"{counts.checkpoint:,}"
    return f"{line}\n  checkpoint: {known}{note}"


def what_would_fit(answer: Answer) -> Iterator[RenderableType]:
    """Changes that make it fit its card, else those that save most, else why there are none."""
    if not answer.edits:
        yield f"\n{_why_nothing_helps(answer)}\n"
        return
    helps = any(edit.verdict != "does_not_fit" for edit in answer.edits)
    title = "It would fit with" if helps else "Nothing tried makes it fit; these save most"
    # The host only where something goes there.
    host = ("host",) * any("--offload" in edit.flags for edit in answer.edits)
    made = table(
        title,
        *("change", "add to the command", "saves", "device peak", *host, "step", ""),
        right=("saves", "device peak", "host", "step"),
    )
    for edit in answer.edits:
        sizes = [edit.saved_bytes, edit.device_peak_bytes]
        sizes += [edit.host_peak_bytes] if host else []
        words = (_step_of(edit), _WORDS[edit.verdict])
        made.add_row(edit.name, edit.flags, *map(format_bytes, sizes), *words)
    yield made
    yield from _step_lines(answer)


def _step_of(edit: Edit) -> str:
    """How much longer a text takes, at p50."""
    longer = None if edit.time is None else edit.time.times_as_long
    return "unknown" if longer is None else f"{longer:.2f} x"


def _step_lines(answer: Answer) -> Iterator[str]:
    times = [edit.time for edit in answer.edits if edit.time is not None]
    before = next((time.before_s for time in times if time.before_s is not None), None)
    if before is not None:
        now = format_duration(before)
        yield f"  step: the time a text takes at p50, beside now's; a step now takes {now}"
    for reason in dict.fromkeys(time.reason for time in times if time.reason):
        yield f"  step unknown: {reason}"


def _why_nothing_helps(answer: Answer) -> str:
    """No edit: none could be enough, none saves anything, or it is too much to look."""
    least = least_bytes(answer.estimate)
    tried = "no offload is enough"
    if is_hopeless(answer.estimate):
        tried = f"it needs more than {HOPELESS} times the card, so no change was tried"
    if least > (answer.estimate.fit.capacity_bytes or 0):
        return (
            f"Nothing kept on {_such_cards(answer)} makes it fit: in bf16 the weights"
            f"{_with_states(answer)} alone take {format_bytes(least)} of each, and {tried}."
        )
    if is_hopeless(answer.estimate):
        return f"{tried[0].upper()}{tried[1:]}."
    return "No change of batch, optimizer, recompute, precision, offload saves memory here."


def _such_cards(answer: Answer) -> str:
    ranks = answer.estimate.program.mesh.ranks
    return "one such card" if ranks == 1 else f"{ranks:,} such cards"


def _with_states(answer: Answer) -> str:
    return ", gradients and 8-bit states" if answer.estimate.workload.training else ""


def _lines(label: str, texts: list[str]) -> Iterator[str]:
    if texts:
        yield "\n".join(f"{label}: {text}" for text in texts)
