"""NCCL collectives: this chip's table within a node, latency and bandwidth where there is none.

`total_bytes` is the unsharded buffer of one rank: what is all-reduced or exchanged, what an
all-gather ends with, what a reduce-scatter starts from. Traffic a rank sends is w = bytes x
2 (N-1)/N for all-reduce and bytes x (N-1)/N for the others. Between nodes an all-reduce is a
reduce-scatter in the node, a ring over nodes with the node's network, and an all-gather in the
node (NCCL's two-level ring); the other collectives likewise, once over the network.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator
from rigsize.steptime.constants import NETWORK_BYTES_PER_S, NETWORK_HOP_S, PCIE_SHARE
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.tables import tables_of

__all__ = ["Collective", "collective", "sent_share"]

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "alltoall"]
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")

_SIGMA_TABLE = 0.12
_SIGMA_LINKS = 0.3
_SIGMA_NETWORK = 0.4
# A hop over NVLink or PCIe: the tables start at 7 to 12 us for two ranks, 17 to 28 for eight.
_START_S = 6e-6
_START_A_DOUBLING_S = 5e-6
# Large messages reach about .72 of the datasheet's NVLink rate on A100 and H100 nodes.
_LINK_SHARE = 0.72
# Ranks on PCIe share root ports: an L40S node's all-reduce reaches 20 GB/s with two ranks of
# 32 GB/s links, an RTX PRO 6000 node's 39 of 64, and 25 to 26 with four and eight. The L40S node
# is not followed beyond two: 5 GB/s with four, 1.4 with eight.
_PCIE_PAIR_SHARE = 0.6
_PCIE_MANY_SHARE = 0.35
_BROKEN_SHARE = 0.1
"""Of the links' rate: a table below it looks like the topology of the one node it was taken on."""
_BROKEN = "the collectives' table looks like one node's broken topology: others may be faster"


@lru_cache(maxsize=65_536)
def collective(
    gpu: Accelerator,
    op: Collective,
    total_bytes: int,
    ranks: int,
    *,
    nodes: int = 1,
    network_bytes_per_s: float | None = None,
) -> KernelTime:
    """The time of one collective over `ranks` devices spread evenly over `nodes`.

    Args:
        gpu: the device of every rank.
        op: what is done.
        total_bytes: one rank's unsharded buffer (see the module).
        ranks: devices taking part, over all nodes.
        nodes: machines they stand in.
        network_bytes_per_s: what one node sends; None takes an assumed 100 Gbit/s.
    """
    if op not in _COLLECTIVES:
        raise UnsupportedCombination("collective", op, "unknown", allowed=_COLLECTIVES)
    if nodes < 1 or ranks < 1 or ranks % nodes:
        raise UnsupportedCombination("ranks", ranks, f"not the same number on {nodes} nodes")
    if ranks == 1 or total_bytes == 0:
        return KernelTime(seconds=0.0, sigma=0.0, basis="derived")
    if nodes == 1:
        return _in_node(gpu, op, total_bytes, ranks)
    return _over_nodes(gpu, op, total_bytes, ranks // nodes, nodes, network_bytes_per_s)


def sent_share(op: Collective, ranks: int) -> float:
    """What a rank sends in a ring, as a share of its unsharded buffer."""
    return (2.0 if op == "all_reduce" else 1.0) * (ranks - 1) / ranks


def _in_node(gpu: Accelerator, op: Collective, total_bytes: int, ranks: int) -> KernelTime:
    tables = tables_of(gpu)
    by_ranks = tables.collectives.get(op, {}) if tables else {}
    if ranks in by_ranks:
        seconds = _interpolated(by_ranks[ranks], total_bytes)
        note = _BROKEN if _looks_broken(gpu, op, by_ranks[ranks], ranks) else ""
        return KernelTime(seconds=seconds, sigma=_SIGMA_TABLE, basis="measured", note=note)
    if by_ranks and min(by_ranks) < ranks < max(by_ranks):
        return _between_counts(gpu, by_ranks, op, total_bytes, ranks)
    return _by_links(gpu, op, total_bytes, ranks)


def _interpolated(points: tuple[tuple[float, float], ...], total_bytes: float) -> float:
    """Linear in logarithms between sizes; the last bandwidth above, the first time below."""
    if total_bytes <= points[0][0]:
        return points[0][1]
    if total_bytes >= points[-1][0]:
        return points[-1][1] * total_bytes / points[-1][0]
    at = bisect_left(points, (total_bytes, 0.0))
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    share = math.log(total_bytes / x0) / math.log(x1 / x0)
    return float(y0 * (y1 / y0) ** share)


def _looks_broken(
    gpu: Accelerator, op: Collective, points: tuple[tuple[float, float], ...], ranks: int
) -> bool:
    """Whether its largest message travels at next to nothing of what the card's links carry."""
    largest_bytes, seconds = points[-1]
    links = max(gpu.link_bytes_per_s or 0.0, gpu.pcie_bytes_per_s or 0.0)
    return largest_bytes * sent_share(op, ranks) / seconds < _BROKEN_SHARE * links


def _between_counts(
    gpu: Accelerator,
    by_ranks: Mapping[int, tuple[tuple[float, float], ...]],
    op: Collective,
    total_bytes: int,
    ranks: int,
) -> KernelTime:
    """Time for each byte sent, between the nearest measured numbers of ranks."""
    low = max(count for count in by_ranks if count < ranks)
    high = min(count for count in by_ranks if count > ranks)
    share = math.log(ranks / low) / math.log(high / low)
    a, b = (
        _interpolated(by_ranks[count], total_bytes) / sent_share(op, count) for count in (low, high)
    )
    seconds = a ** (1 - share) * b**share * sent_share(op, ranks)
    note = _BROKEN if _looks_broken(gpu, op, by_ranks[high], high) else ""
    return KernelTime(seconds=seconds, sigma=1.5 * _SIGMA_TABLE, basis="derived", note=note)


def _by_links(gpu: Accelerator, op: Collective, total_bytes: int, ranks: int) -> KernelTime:
    start_s = _START_S + _START_A_DOUBLING_S * math.log2(ranks)
    rate, note = _link_rate(gpu, ranks)
    seconds = start_s + total_bytes * sent_share(op, ranks) / rate
    return KernelTime(seconds=seconds, sigma=_SIGMA_LINKS, basis="assumed", note=note)


def _link_rate(gpu: Accelerator, ranks: int) -> tuple[float, str]:
    """What one rank sends: over its own links if they join all ranks, else over PCIe."""
    if gpu.link_bytes_per_s and (gpu.link_max_peers or 0) >= ranks:
        return gpu.link_bytes_per_s * _LINK_SHARE, f"{gpu.link_kind} at {_LINK_SHARE:.0%}"
    if not gpu.pcie_bytes_per_s:
        raise UnsupportedCombination("gpus", gpu.id, "no published link between two of them")
    share = _PCIE_PAIR_SHARE if ranks == 2 else _PCIE_MANY_SHARE
    share = min(share, PCIE_SHARE.value.mid)
    return gpu.pcie_bytes_per_s * share, f"PCIe at {share:.0%}, through the host"


def _over_nodes(
    gpu: Accelerator,
    op: Collective,
    total_bytes: int,
    per_node: int,
    nodes: int,
    network_bytes_per_s: float | None,
) -> KernelTime:
    rate = network_bytes_per_s or NETWORK_BYTES_PER_S.value.mid
    hops = math.ceil(math.log2(nodes)) * (2 if op == "all_reduce" else 1)
    between_s = hops * NETWORK_HOP_S.value.mid + total_bytes * sent_share(op, nodes) / rate
    if op == "alltoall":
        # Every rank's share for other nodes leaves through the node's one network.
        between_s *= per_node
    inside = _inside_steps(op)
    inside_s = sum(
        _in_node(gpu, step, total_bytes, per_node).seconds for step in inside if per_node > 1
    )
    given = network_bytes_per_s is not None
    note = "" if given else "100 Gbit/s between nodes"
    return KernelTime(
        seconds=inside_s + between_s,
        sigma=_SIGMA_LINKS if given else _SIGMA_NETWORK,
        basis="derived" if given else "assumed",
        note=note,
    )


def _inside_steps(op: Collective) -> tuple[Collective, ...]:
    return ("reduce_scatter", "all_gather") if op == "all_reduce" else (op,)
