"""The accelerator table: one row a device as torch sees it, each figure with its source.

Rates are dense (no sparsity), bandwidths decimal, memory what PyTorch can really use. An empty
cell of ``data/accelerators.csv`` is unknown and stays None; no neighbour's figure is put there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from rigsize.provenance import Basis, Sourced
from rigsize.units import GIB

__all__ = [
    "Accelerator",
    "Band",
    "load_accelerators",
    "native_dtypes",
    "packaged_accelerators",
    "take_accelerators",
    "with_headroom",
]

TABLE = Path(__file__).parent / "data" / "accelerators.csv"

# Out-of-memory messages name a capacity 0.4 to 1.6 % below what the driver reports.
TORCH_SHARE_OF_DRIVER = 0.985

RATES = {
    "fp32": "fp32_tflops",
    "tf32": "tf32_tflops",
    "fp16": "fp16_tflops",
    "bf16": "bf16_tflops",
    "fp8": "fp8_tflops",
    "int8": "int8_tops",
    "fp4": "fp4_tflops",
}
"""Column of the table by dtype."""


class Band(NamedTuple):
    """A figure with its low and high bound."""

    low: int
    mid: int
    high: int


# Context, loaded kernels and library state together, where nobody measured them on the card:
# published figures run from 274 to 636 MiB.
START_CONTEXT = Sourced(
    value=Band(int(0.35 * GIB), int(0.5 * GIB), int(0.65 * GIB)),
    source="start value 0.5 GiB +- 0.15 over published observations (pytorch#86509, #107667)",
    as_of="2026-11-22",
    basis="assumed",
)


ROCM_CONTEXT = Sourced(
    value=Band(int(0.3 * GIB), int(0.7 * GIB), int(1.5 * GIB)),
    source="nobody published what a HIP process takes: CUDA's start value, widened for the code"
    " objects of hipBLASLt and AOTriton",
    as_of="2026-11-25",
    basis="assumed",
)


# Rows are compared by identity: there is one object a row, and it may key a cache.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Accelerator:
    """One device of a product; a board with two dies is two of these."""

    id: str
    vendor: str
    name: str
    aliases: tuple[str, ...]
    form_factor: str
    arch: str
    """As the vendor's tools write it: sm_80, gfx942, cpu."""
    compute_capability: tuple[int, int] | None
    """CUDA devices only."""
    sm_count: int | None
    """Streaming multiprocessors (compute units on ROCm)."""
    max_threads_per_sm: int | None
    sm_source: str
    memory_nominal_gb: float | None
    """The label on the box, for the whole product."""
    memory_driver_mib: int | None
    """What the driver reports, for the whole product."""
    devices: int
    """How many devices torch sees for one product; every capacity below is per device."""
    capacity: Sourced[int] | None
    """Bytes that torch reports as total memory; None where nobody published enough."""
    context_bytes: Sourced[Band]
    """Driver memory outside the allocator once a step has run."""
    memory_kind: str
    memory_bytes_per_s: float | None
    peak_flops_per_s: Mapping[str, float]
    """Dense peak by dtype; a dtype without a published rate is absent."""
    dtypes: tuple[str, ...]
    """The dtypes that the hardware computes natively."""
    link_kind: str
    link_bytes_per_s: float | None
    """To one direction, over all peers."""
    link_max_peers: int | None
    pcie_bytes_per_s: float | None
    tdp_w: float | None
    software_stack: str
    """cuda, rocm, cpu, ..."""
    training_capable: str
    pytorch_support: str
    seed_ref: str
    check: str
    """V2 two sources opened, V1 one, R recalled: show it as unverified."""
    basis: Basis
    as_of: str
    source: str
    note: str
    table: str = ""
    """The user's file that it is a row of; empty of the packaged table."""

    @property
    def capacity_bytes(self) -> int | None:
        """What torch reports as total memory of one device, None if unknown."""
        return self.capacity.value if self.capacity else None

    @property
    def supports_bf16(self) -> bool:
        """Whether bfloat16 is native; older CUDA cards emulate it slowly."""
        return "bf16" in self.dtypes

    @property
    def gfx(self) -> str:
        """AMD's name of the architecture, `gfx942`; empty for every other vendor."""
        return self.arch.split()[0] if self.software_stack == "rocm" else ""

    @property
    def lacks_tf32(self) -> bool:
        """Whether it is an AMD card without TF32 products."""
        return bool(self.gfx) and "tf32" not in self.dtypes

    @property
    def is_verified(self) -> bool:
        """Whether at least one source was opened for its figures."""
        return self.check != "R"

    @property
    def is_cpu(self) -> bool:
        """Whether this is the host itself, which has no reserved and no device memory."""
        return self.software_stack == "cpu"


@cache
def with_headroom(accelerator: Accelerator, headroom_bytes: int) -> Accelerator:
    """The same card with less memory, so that every replay keeps the headroom.

    One object a card and size, for rows are compared by identity.
    """
    capacity = accelerator.capacity
    if not headroom_bytes or capacity is None:
        return accelerator
    left = max(0, capacity.value - headroom_bytes)
    return replace(accelerator, capacity=replace(capacity, value=left))


_own: tuple[Accelerator, ...] = ()


def load_accelerators() -> tuple[Accelerator, ...]:
    """All rows of the table, in its order (parsed at the first call), behind them one's own."""
    return (*packaged_accelerators(), *_own) if _own else packaged_accelerators()


@lru_cache(maxsize=1)
def packaged_accelerators() -> tuple[Accelerator, ...]:
    """The table that ships with rigsize."""
    from rigsize.hardware.accelerators_file import read_accelerators

    return read_accelerators(TABLE)


def take_accelerators(file: Path | None) -> None:
    """From now on the rows of a user's file count too; None takes them away again.

    Raises:
        SpecError: the file is wrong, row and column named.
    """
    # Names are looked up everywhere, and a command has one table.
    global _own
    _own = ()
    if file is not None:
        from rigsize.hardware.accelerators_file import read_accelerators

        _own = read_accelerators(file, beside=packaged_accelerators())


def compute_capability(arch: str) -> tuple[int, int] | None:
    """(8, 0) of `sm_80`; None of what is no CUDA device."""
    if not arch.startswith("sm_"):
        return None
    digits = arch.split()[0].removeprefix("sm_")
    return int(digits[:-1]), int(digits[-1])


def native_dtypes(
    stack: str, capability: tuple[int, int] | None, rates: Mapping[str, float]
) -> tuple[str, ...]:
    """The dtypes that a device computes natively, by its compute capability where it has one."""
    if stack == "cpu":
        return ("fp32", "fp16", "bf16")
    if capability is None:
        return tuple(rates)
    since = {"fp32": (1, 0), "tf32": (8, 0), "fp16": (5, 3), "bf16": (8, 0), "fp8": (8, 9)}
    since |= {"int8": (7, 5), "fp4": (10, 0)}
    return tuple(dtype for dtype, first in since.items() if capability >= first)
