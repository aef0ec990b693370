"""The flags that say on what it is done, and the limits that the user sets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rigsize.cli_settings import Settings, number
from rigsize.errors import SpecError
from rigsize.hardware import Accelerator, parse_gpus
from rigsize.hardware.accelerators import with_headroom
from rigsize.spec import Cluster
from rigsize.spec.cluster import MOST_NETWORK_GBIT_PER_S
from rigsize.units import GIGABIT_BYTES, format_bytes, parse_bytes

__all__ = ["Target", "host_memory_asked", "network_asked", "parse_target"]

ASSUMED_GPU = "A100-40GB"
"""The card of the article that the seed's tables come from; always said to be assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """On what, and the limits that the user sets."""

    cluster: Cluster
    """Its capacity is already less by the headroom."""
    headroom_bytes: int
    fail_over_bytes: int | None
    note: str | None


def parse_target(settings: Settings) -> Target:
    """The device, with the headroom taken off its capacity."""
    text = settings.or_assumed("gpus", ASSUMED_GPU, "the article's card")
    gpus = parse_gpus(text)
    fail_over = settings.text("fail-over")
    headroom = _headroom(settings, gpus.accelerator)
    return Target(
        cluster=Cluster(
            accelerator=with_headroom(gpus.accelerator, headroom),
            per_node=gpus.per_node,
            nodes=gpus.nodes,
            host_memory_bytes=host_memory_asked(settings),
            network_bytes_per_s=_network(settings, gpus.nodes),
        ),
        headroom_bytes=headroom,
        fail_over_bytes=None if fail_over is None else parse_bytes(fail_over, "fail-over"),
        note=gpus.assumed_note,
    )


def host_memory_asked(settings: Settings) -> int | None:
    """`--host-memory` in bytes; None where it was not given."""
    text = settings.text("host-memory")
    size = None if text is None else parse_bytes(text, "host-memory")
    if size == 0:
        raise SpecError("host-memory", text, "no memory at all", allowed=("256GiB", "1TiB"))
    return size


def network_asked(settings: Settings) -> float | None:
    """`--network` in bytes a second; None where it was not given."""
    text = settings.text("network")
    if text is None:
        return None
    rate = number("network", text)
    if not 0 < rate <= MOST_NETWORK_GBIT_PER_S:
        allowed = (f"Gbit/s above 0, up to {MOST_NETWORK_GBIT_PER_S:,}",)
        raise SpecError("network", text, "not a network's rate", allowed=allowed)
    return rate * GIGABIT_BYTES


def _network(settings: Settings, nodes: int) -> float | None:
    rate = network_asked(settings)
    if rate is not None and nodes == 1:
        settings.warnings.append("--network has no effect: all is on one machine")
    return rate


def _headroom(settings: Settings, accelerator: Accelerator) -> int:
    text = settings.text("headroom")
    if text is None:
        return 0
    capacity = accelerator.capacity_bytes
    if capacity is None:
        settings.warnings.append(f"--headroom has no effect: {accelerator.id} has no capacity here")
        return 0
    share = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*%", text.strip())
    wanted = int(capacity * float(share[1]) / 100) if share else parse_bytes(text, "headroom")
    if wanted >= capacity:
        allowed = (f"less than {format_bytes(capacity)}", "percentages below 100, such as 10%")
        raise SpecError("headroom", text, "leaves nothing of the card", allowed=allowed)
    return wanted
