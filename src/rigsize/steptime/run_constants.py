"""What a run takes beside its steps: constants that depend on the machine, each with its range.

A `Span` is (low, mid, high) in seconds or bytes a second; none of them is tuned on anything.
"""

from __future__ import annotations

from rigsize.provenance import Basis, Sourced
from rigsize.steptime.constants import Span

__all__ = [
    "COLLATE_TOKENS_PER_S",
    "COMPILE_S",
    "DISK_BYTES_PER_S",
    "DOWNLOAD_BYTES_PER_S",
    "FIRST_STEP_S",
    "POWER_SHARE",
    "PROCESS_START_S",
    "TOKENS_PER_S",
    "USD_PER_KWH",
]


def _span(low: float, mid: float, high: float, source: str, basis: Basis) -> Sourced[Span]:
    return Sourced(value=Span(low, mid, high), source=source, as_of="2026-11-28", basis=basis)


PROCESS_START_S = _span(
    15,
    30,
    90,
    "Python, torch and transformers imported, the CUDA context, process groups; from a warm disk"
    " to a cold network disk. Booting a rented machine comes before it and is not counted",
    "assumed",
)
FIRST_STEP_S = _span(
    1,
    5,
    20,
    "the first step beyond a usual one: kernels are loaded one by one, cuBLAS and NCCL made ready,"
    " the allocator grows",
    "assumed",
)
COMPILE_S = _span(
    20,
    60,
    600,
    "torch.compile of forward and backward in the first step; minutes for deep models",
    "assumed",
)
DISK_BYTES_PER_S = _span(
    0.15e9,
    0.8e9,
    2.5e9,
    "write and fsync of a checkpoint, or a read from it, by node: 190 MB/s on the shared disk of"
    " docs/checkpoints.md, 2.5 GB/s on a local NVMe drive",
    "assumed",
)
DOWNLOAD_BYTES_PER_S = _span(
    10e6,
    100e6,
    500e6,
    "from the hub: a line of 100 Mbit/s, of 1 Gbit/s, and a data centre's",
    "assumed",
)
TOKENS_PER_S = _span(
    0.2e6,
    1e6,
    4e6,
    "a fast tokenizer's tokens, all cores of a machine together; each text once, before training",
    "assumed",
)
COLLATE_TOKENS_PER_S = _span(
    1e6,
    10e6,
    50e6,
    "tokens that one rank's process pads and copies into batches, beside the steps",
    "assumed",
)
POWER_SHARE = _span(
    0.4,
    0.75,
    1.0,
    "mean power over the card's limit (TDP): idle in between, a usual training step, at the limit",
    "assumed",
)
USD_PER_KWH = _span(
    0.08,
    0.15,
    0.35,
    "what a kilowatt-hour costs a business, from cheap hydropower to Central Europe",
    "assumed",
)
