"""The machine a run is made on, as far as it can be read without starting CUDA or importing torch.

`with_cuda` adds what only a started CUDA can tell.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import rigsize
from rigsize.run.record import Hardware, Versions
from rigsize.units import KIB, MIB

__all__ = [
    "available_host_bytes",
    "cgroup_peak_bytes",
    "gpu_used_bytes",
    "hardware",
    "peak_host_bytes",
    "pinned_peak_bytes",
    "pss_bytes",
    "versions",
]

_DRIVER_ANSWERS_WITHIN_S = 10
_CGROUP_PEAKS = (
    "/sys/fs/cgroup/memory.peak",
    "/sys/fs/cgroup/memory/memory.max_usage_in_bytes",
)
"""Of cgroup v2 (Linux 5.19) and v1."""


def versions() -> Versions:
    """Installed versions, from the packages' metadata: nothing is imported."""
    return Versions(
        python=platform.python_version(),
        rigsize=rigsize.__version__,
        torch=_installed("torch"),
        transformers=_installed("transformers"),
    )


def hardware(device: str) -> Hardware:
    """Host figures, and for cuda what nvidia-smi says of the first visible card."""
    gpu = _nvidia_smi() if device == "cuda" else None
    return Hardware(
        gpu=gpu[0] if gpu else None,
        driver=gpu[1] if gpu else None,
        cpu=_cpu_name(),
        cores=_cores(),
        host_memory_bytes=_meminfo("MemTotal"),
    )


def with_cuda(found: Hardware, software: Versions, torch: Any) -> tuple[Hardware, Versions]:
    """The same with what a started CUDA knows of its current device."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    cudnn = torch.backends.cudnn.version()
    return (
        replace(
            found,
            gpu=card.name,
            gpu_memory_bytes=card.total_memory,
            sm_count=card.multi_processor_count,
            compute_capability=f"{card.major}.{card.minor}",
        ),
        replace(software, cuda=torch.version.cuda, cudnn=str(cudnn) if cudnn else None),
    )


def gpu_used_bytes() -> int | None:
    """What others hold of the card now, by the driver; None where nvidia-smi does not answer.

    Asked before CUDA starts here, so that this process's context is not part of it.
    """
    found = _nvidia_smi()
    return found[2] if found else None


def peak_host_bytes() -> int:
    """Peak resident set of this process: ru_maxrss, or the kernel's VmHWM where it is higher.

    A forked child inherits neither: Linux resets VmHWM at exec only, so a forked child's
    figure includes what its parent had resident (shared pages, counted once in truth).
    """
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB on Linux, bytes on macOS (getrusage(2) of each).
    peak = usage if platform.system() == "Darwin" else usage * KIB
    return max(peak, _status("VmHWM") or 0)


def available_host_bytes() -> int | None:
    """Memory that can be taken without swapping; a container's limit counts if it is lower."""
    free = _meminfo("MemAvailable")
    limit = _cgroup_left()
    known = [value for value in (free, limit) if value is not None]
    return min(known) if known else None


def pss_bytes() -> int | None:
    """This process's proportional set size now: shared pages count in parts; Linux only."""
    return _kib_line("/proc/self/smaps_rollup", "Pss")


def pinned_peak_bytes() -> tuple[int | None, str]:
    """(peak of page-locked memory by torch's host allocator, why it is unknown)."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None, "not on CPU"
    if not hasattr(torch.cuda, "host_memory_stats"):
        return None, f"torch {torch.__version__} does not count it"
    return int(torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0)), ""


def cgroup_peak_bytes() -> tuple[int | None, str]:
    """(peak of all that runs in this container, why it is unknown)."""
    for path in _CGROUP_PEAKS:
        found = _number(path)
        if found is not None:
            return found, ""
    return None, "no memory cgroup that keeps a peak"


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> tuple[str, str, int] | None:
    """Name, driver and used bytes of the first card that CUDA_VISIBLE_DEVICES shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    command = [
        "nvidia-smi",
        f"--id={visible}",
        "--query-gpu=name,driver_version,memory.used",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_DRIVER_ANSWERS_WITHIN_S, check=True
        )
        name, driver, used_mib = answer.stdout.strip().splitlines()[0].rsplit(",", 2)
        return name.strip(), driver.strip(), int(used_mib) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


@lru_cache(maxsize=1)
def _cpu_name() -> str | None:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _meminfo(key: str) -> int | None:
    return _kib_line("/proc/meminfo", key)


def _status(key: str) -> int | None:
    return _kib_line("/proc/self/status", key)


def _kib_line(path: str, key: str) -> int | None:
    for line in _lines(path):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * KIB
    return None


def _cgroup_left() -> int | None:
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return None if limit is None or used is None else max(limit - used, 0)


def _number(path: str) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
