"""What a replay ends with when the card is full."""

from __future__ import annotations


class OutOfMemory(Exception):
    """A segment request did not fit the capacity even after all free segments were returned.

    A result of the replay, not an error of the tool: nobody outside the estimate sees it.
    """

    def __init__(
        self,
        *,
        requested_bytes: int,
        segment_bytes: int,
        allocated_bytes: int,
        reserved_bytes: int,
        capacity_bytes: int,
    ) -> None:
        super().__init__(
            f"{requested_bytes} bytes need a segment of {segment_bytes} bytes: {allocated_bytes} "
            f"allocated, {reserved_bytes} reserved, capacity {capacity_bytes}"
        )
        self.requested_bytes = requested_bytes
        self.segment_bytes = segment_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.capacity_bytes = capacity_bytes
        self.op_index: int | None = None
        """Position in the sequence given to `CachingAllocator.run`."""
