"""The record of a lowered attention node, and what all kernels' lowerings share.

A buffer's bytes are as requested, before the allocator rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rigsize.program.attention_choice import Capability, Kernel
from rigsize.program.attention_node import AttentionNode
from rigsize.provenance import Basis

BufferAction = Literal["alloc", "free"]
Role = Literal["output", "saved", "scratch", "gradient"]

_ASSUMPTIONS: dict[Kernel, tuple[str, ...]] = {
    "flash": (),
    "cudnn": (
        "cuDNN attention: no forward workspace, in backward an fp32 dQ accumulator and an fp32 "
        "row sum; the real size comes from the cuDNN plan and was not measured",
        "cuDNN attention: seed and offset are two device scalars",
    ),
    "efficient": (),
    "math": ("math attention: half inputs are upcast to fp32, order of temporaries as in eager",),
}


class BufferEvent(NamedTuple):
    """One allocation or free, in the order of the CUDA code."""

    action: BufferAction
    name: str
    num_bytes: int


class Buffer(NamedTuple):
    """A buffer of the lowering; bytes as requested, before the allocator rounds."""

    name: str
    num_bytes: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLowering:
    """What one attention node allocates.

    In `forward` every buffer that is not freed again stays: `out` and what backward needs.
    `backward` frees those when the kernel (for math: its step) is done with them, so that after it
    only `dq`, `dk` and `dv` are left. It is empty where no gradient is needed.
    """

    kernel: Kernel
    forward: tuple[BufferEvent, ...]
    backward: tuple[BufferEvent, ...]
    saved_inputs: tuple[str, ...]
    """Which of 'q', 'k', 'v', 'mask' autograd keeps until the end of `backward`."""
    saves_out: bool
    """Whether autograd keeps `out` until the end of `backward`."""
    out_is_token_major: bool
    """[B, Q, H, V] in memory: the model's transpose and `contiguous` then cost no copy."""
    basis: Basis
    assumptions: tuple[str, ...]

    @property
    def out_bytes(self) -> int:
        """Bytes of the output tensor."""
        return _allocated(self.forward)["out"]

    @property
    def forward_saved(self) -> tuple[Buffer, ...]:
        """Buffers beside `out` that live from forward into backward."""
        kept = _left_over(self.forward)
        return tuple(Buffer(name, size, "saved") for name, size in kept.items() if name != "out")

    @property
    def forward_scratch(self) -> tuple[Buffer, ...]:
        """Buffers made and freed within forward."""
        return _scratch(self.forward)

    @property
    def backward_scratch(self) -> tuple[Buffer, ...]:
        """Buffers made and freed within backward."""
        return _scratch(self.backward)

    @property
    def gradients(self) -> tuple[Buffer, ...]:
        """`dq`, `dk` and `dv`."""
        made = _allocated(self.backward)
        return tuple(Buffer(name, made[name], "gradient") for name in ("dq", "dk", "dv") if made)

    @property
    def backward_peak_bytes(self) -> int:
        """Highest sum of what backward itself makes, the gradients included."""
        saved = {buffer.name for buffer in self.forward_saved}
        total = peak = 0
        for action, name, num_bytes in self.backward:
            if name not in saved:
                total += num_bytes if action == "alloc" else -num_bytes
                peak = max(peak, total)
        return peak


def _allocated(events: tuple[BufferEvent, ...]) -> dict[str, int]:
    return {event.name: event.num_bytes for event in events if event.action == "alloc"}


def _left_over(events: tuple[BufferEvent, ...]) -> dict[str, int]:
    freed = {event.name for event in events if event.action == "free"}
    return {name: size for name, size in _allocated(events).items() if name not in freed}


def _scratch(events: tuple[BufferEvent, ...]) -> tuple[Buffer, ...]:
    kept = _left_over(events)
    made = _allocated(events)
    return tuple(Buffer(name, size, "scratch") for name, size in made.items() if name not in kept)


class BufferTimeline:
    """Collects events; buffers of zero bytes leave no trace."""

    def __init__(self) -> None:
        self.events: list[BufferEvent] = []
        self._live: dict[str, int] = {}

    def alloc(self, name: str, num_bytes: int) -> None:
        """A new buffer; its name must not be in use."""
        assert name not in self._live, name
        if num_bytes:
            self._live[name] = num_bytes
            self.events.append(BufferEvent("alloc", name, num_bytes))

    def free(self, *names: str) -> None:
        """Ends those of the named buffers that live."""
        for name in names:
            if name in self._live:
                self.events.append(BufferEvent("free", name, self._live.pop(name)))

    def free_all_but(self, *names: str) -> None:
        """Ends all others, the latest first."""
        self.free(*(name for name in reversed(list(self._live)) if name not in names))

    def rename(self, old: str, new: str) -> None:
        """Give a live buffer the name under which the rest of the program knows it."""
        self._live[new] = self._live.pop(old)
        self.events = [
            event._replace(name=new) if event.name == old else event for event in self.events
        ]

    @property
    def live(self) -> tuple[str, ...]:
        """Names of the buffers not freed so far."""
        return tuple(self._live)

    def continued(self) -> BufferTimeline:
        """A timeline for backward that starts with what forward left."""
        later = BufferTimeline()
        later._live = {name: size for name, size in self._live.items() if name != "out"}
        return later


class Card(NamedTuple):
    """What of the device and its settings sizes the kernels' buffers."""

    capability: Capability
    sm_count: int
    deterministic: bool


def finish(
    kernel: Kernel,
    node: AttentionNode,
    forward: BufferTimeline,
    backward: BufferTimeline,
    *,
    saved_inputs: tuple[str, ...] = ("q", "k", "v"),
    saves_out: bool = True,
    extra_assumptions: tuple[str, ...] = (),
) -> AttentionLowering:
    """The record of what was collected; backward is dropped where no gradient is needed."""
    assumptions = _ASSUMPTIONS[kernel] + extra_assumptions
    return AttentionLowering(
        kernel=kernel,
        forward=tuple(forward.events),
        backward=tuple(backward.events) if node.needs_grad else (),
        saved_inputs=saved_inputs if node.needs_grad else (),
        saves_out=saves_out and node.needs_grad,
        out_is_token_major=kernel != "math",
        basis="assumed" if assumptions else "derived",
        assumptions=assumptions,
    )


def add_float_mask(timeline: BufferTimeline, node: AttentionNode) -> None:
    """A boolean mask becomes a float one in every call (attention.cpp)."""
    if node.mask == "bool":
        timeline.alloc("bias", node.mask_elements * node.element_bytes)


def inputs_with_mask(node: AttentionNode) -> tuple[str, ...]:
    """What autograd keeps: a float mask only if the kernel reads it as it was handed over."""
    return ("q", "k", "v", "mask") if node.mask == "float" else ("q", "k", "v")


def gradient_elements(node: AttentionNode) -> tuple[tuple[str, int], ...]:
    """The three gradients in the order in which the kernels make them."""
    return (
        ("dq", node.query_elements),
        ("dk", node.key_elements),
        ("dv", node.value_elements),
    )


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-number // multiple) * multiple
