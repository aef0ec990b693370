"""A measurement on a terminal: predicted beside measured, then what else the run showed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rigsize.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.run.compare import Comparison
    from rigsize.run.record import Record
    from rigsize.run.record_parts import Cap, HostMemory, Texts, Throughput, WorldRun

__all__ = ["measured_text", "record_lines"]


def measured_text(comparison: Comparison) -> Iterator[RenderableType]:
    """The comparison, then one line a topic."""
    from rigsize.run.compare import render

    yield render(comparison)
    lines = list(record_lines(comparison.record))
    if lines:
        yield "\n".join(lines)


def record_lines(record: Record) -> Iterator[str]:
    """What a Record holds beside the three peaks."""
    if record.cap is not None:
        yield f"cap: {_cap(record.cap)}"
    if record.world is not None and (record.world.parallel != "single"):
        yield f"ranks: {_world(record.world)}"
    if record.texts is not None:
        yield f"texts: {_texts(record.texts)}"
    if record.throughput is not None:
        yield from _throughput(record.throughput)
    if record.host is not None:
        yield f"host: {_host(record.host)}"
    if record.attribution is not None:
        found = record.attribution
        shares = ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(size)}"
            for name, size in found.categories.items()
        )
        yield f"at the peak ({found.phase} of step {found.step}): {shares}"


def _cap(cap: Cap) -> str:
    verdict = "proven to fit" if cap.proven else "not proven to fit"
    return f"{verdict} {format_bytes(cap.cap_bytes)}{'; ' + cap.note if cap.note else ''}"


def _world(world: WorldRun) -> str:
    parts = [f"{world.parallel.upper()} over {world.size}"]
    if world.offload != "none":
        parts.append(f"offload {world.offload}")
    if len(world.ranks) > 1:
        peaks = [one.device_peak_bytes or one.allocated_peak_bytes for one in world.ranks]
        shown = [format_bytes(peak) for peak in peaks if peak is not None]
        parts.append(f"peaks by rank {', '.join(shown)}")
    for name in ("context_start", "communicator"):
        size = getattr(world, f"{name}_bytes")
        if size is not None:
            parts.append(f"{name.replace('_', ' at ')} {format_bytes(size)}")
    return ", ".join(parts)


def _texts(texts: Texts) -> str:
    kind = texts.kind if not texts.source else f"{texts.kind} {texts.source}"
    count = "" if texts.texts is None else f", {texts.texts:,} texts"
    mean = "" if texts.mean_length is None else f", {texts.mean_length:.1f} tokens on average"
    return f"{kind}{count}{mean}; largest: {texts.worst}"


def _throughput(found: Throughput) -> Iterator[str]:
    padding = "" if found.padding_share is None else f"; {100 * found.padding_share:.0f} % padding"
    if found.real_tokens_per_s is None or found.step_s is None:
        yield f"times are not quoted: {found.unknown['step_s']}{padding}"
        return
    rate = f"{found.real_tokens_per_s:,.0f} real tokens/s, {found.examples_per_s:,.1f} examples/s"
    yield (
        f"pace: {rate}, a step takes {format_duration(found.step_s)}"
        f" (median of {found.steady_steps}, spread {100 * (found.spread or 0):.0f} %){padding}"
    )
    if found.epoch_hours is not None:
        hours = format_duration(3600 * found.epoch_hours)
        yield f"an epoch of {found.examples:,} texts: {hours}, extrapolated"
    if found.warning:
        yield f"warning: {found.warning}"


def _host(host: HostMemory) -> str:
    names = {"pss_peak_bytes": "PSS", "pinned_bytes": "pinned", "cgroup_peak_bytes": "cgroup peak"}
    return ", ".join(
        f"{shown} {format_bytes(size) if (size := getattr(host, name)) is not None else 'unknown'}"
        for name, shown in names.items()
    )
