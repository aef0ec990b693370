"""What moves between devices: pinned copies, and collectives between the GPUs of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from rigsize.calibrate.kernels import Task

__all__ = ["collectives", "copies"]

_COPIED_BYTES = 2**28
_SENT_BYTES = (2**22, 2**25, 2**28)


def copies() -> Iterator[Task]:
    """Page-locked host memory to the device and back."""
    for key in ("to_device", "to_host"):

        def make(back: bool = key == "to_host") -> Callable[[], Any]:
            host = torch.empty(_COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
            device = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
            target, source = (host, device) if back else (device, host)
            return lambda: target.copy_(source, non_blocking=True)

        yield Task("pinned copies", "copy", key, "", (_COPIED_BYTES,), make)


def collectives(devices: int, *, quick: bool) -> Iterator[Task]:
    """NCCL between all GPUs of this process, each with fp32 buffers; bytes are one rank's whole."""
    for num_bytes in _SENT_BYTES[-1:] if quick else _SENT_BYTES:
        for op in ("all_reduce", "all_gather", "reduce_scatter"):

            def make(op: str = op, n: int = num_bytes // 4) -> Callable[[], Any]:
                return _collective(op, n // devices * devices, devices)

            what = "collectives between the GPUs"
            yield Task(what, "collective", op, "", (num_bytes, devices), make)


def _collective(op: str, elements: int, devices: int) -> Callable[[], Any]:
    from torch.cuda import nccl

    def buffers(each: int) -> list[torch.Tensor]:
        return [torch.zeros(each, device=f"cuda:{rank}") for rank in range(devices)]

    whole, part = buffers(elements), buffers(elements // devices)
    if op == "all_reduce":
        return lambda: nccl.all_reduce(whole)
    if op == "all_gather":
        return lambda: nccl.all_gather(part, whole)
    return lambda: nccl.reduce_scatter(whole, part)
