"""Page-locked host memory, as torch hands it out."""

from __future__ import annotations

__all__ = ["pinned_bytes"]


def pinned_bytes(num_bytes: int) -> int:
    """What one pinned tensor takes: the next power of two, cached for ever.

    Source: `CachingHostAllocatorImpl::allocate` of ATen/core/CachingHostAllocator.h (`roundSize`,
    `PowerOf2Ceil`), at its default of no threshold. Left out: cudaHostAlloc's pages of 4 KiB.
    """
    return 1 << (num_bytes - 1).bit_length() if num_bytes > 0 else 0
