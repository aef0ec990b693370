"""A weight, and what is kept of it in host memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rigsize.memory.pinned import pinned_bytes

__all__ = ["HostItem", "Weight"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter, whole, as the device would hold it."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trainable: bool

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def shard(self, ranks: int) -> Weight:
        """A rank's `cdiv(dim0, ranks)` rows (FSDP2's `padded_sharded_param_size`)."""
        if not self.shape:
            return self
        rows = -(-self.shape[0] // ranks)
        return replace(self, shape=(rows, *self.shape[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostItem:
    """One host allocation, or several that are never pinned."""

    row: str
    """The ledger's row."""
    num_bytes: int
    """As requested."""
    pinned: bool = False

    @property
    def rounding_bytes(self) -> int:
        """What pinning adds."""
        return pinned_bytes(self.num_bytes) - self.num_bytes if self.pinned else 0
