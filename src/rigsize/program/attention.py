"""Attention on CUDA: which kernel `scaled_dot_product_attention` takes, and what it allocates.

In the trace attention is one node, because the kernel depends on the accelerator; here the node
becomes an ordered list of allocations and frees. Sources, all in pytorch/pytorch under
aten/src/ATen/native/transformers: cuda/sdp_utils.cpp (choice), cuda/attention.cu and
cuda/attention_backward.cu, cuda/flash_attn/flash_api.cpp, cuda/mem_eff_attention/kernel_forward.h,
kernel_backward.h and kernels/cutlassB.h, attention.cpp (math), torch 2.13.

Left out: nested tensors, a mask that requires a gradient, misaligned storage offsets, batches of
65,536 and more, CUDA graphs, ROCm, device scalars of a few bytes that die at once.

Legend: B batch, H heads, K heads of keys and values, Q query length, S key length, D head
dimension of queries and keys, V head dimension of values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from rigsize.provenance import Basis

Kernel = Literal["flash", "cudnn", "efficient", "math"]
Action = Literal["alloc", "free"]
Role = Literal["output", "saved", "scratch", "gradient"]
Capability = tuple[int, int]

FP32_BYTES = 4
CUDNN_PREFERRED_ABOVE = (9, 15, 0)
"""cuDNN is tried first above this run-time version, on compute capability 9.x and 10.x."""
LAST_FUSED_CAPABILITY = (12, 1)

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
_SMALL_SHARED_MEMORY = "memory-efficient backward: 64 x 64 blocks where shared memory is short"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNode:
    """One call of scaled dot-product attention as the model makes it."""

    batch: int
    heads: int
    """Query heads."""
    kv_heads: int
    """Heads of keys and values as handed over (after `repeat_kv` where the model calls it)."""
    query_length: int
    key_length: int
    head_dim: int
    value_head_dim: int
    element_bytes: int
    """Of queries, keys and values."""
    dtype: Literal["float32", "float16", "bfloat16"]
    mask: Literal["none", "bool", "float"] = "none"
    mask_elements: int = 0
    """Elements of the mask in its own shape, before it is broadcast over the heads."""
    causal: bool = False
    """The `is_causal` flag, not a causal mask."""
    dropout: float = 0.0
    needs_grad: bool
    enable_gqa: bool = False

    def __post_init__(self) -> None:
        if (self.dtype == "float32") != (self.element_bytes == FP32_BYTES):
            raise ValueError(f"element_bytes {self.element_bytes} does not fit {self.dtype}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads are no multiple of {self.kv_heads}")
        if (self.mask == "none") != (self.mask_elements == 0):
            raise ValueError(f"mask {self.mask!r} with {self.mask_elements} elements")

    @property
    def is_half(self) -> bool:
        """Whether queries, keys and values are fp16 or bf16."""
        return self.element_bytes < FP32_BYTES

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share a head of keys and values."""
        return self.heads != self.kv_heads

    @property
    def query_elements(self) -> int:
        """B * Q * H * D."""
        return self.batch * self.query_length * self.heads * self.head_dim

    @property
    def key_elements(self) -> int:
        """B * S * K * D."""
        return self.batch * self.key_length * self.kv_heads * self.head_dim

    @property
    def value_elements(self) -> int:
        """B * S * K * V."""
        return self.batch * self.key_length * self.kv_heads * self.value_head_dim

    @property
    def out_elements(self) -> int:
        """B * Q * H * V."""
        return self.batch * self.query_length * self.heads * self.value_head_dim

    @property
    def score_elements(self) -> int:
        """B * H * Q * S."""
        return self.batch * self.heads * self.query_length * self.key_length


class Event(NamedTuple):
    """One allocation or free, in the order of the CUDA code."""

    action: Action
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
    forward: tuple[Event, ...]
    backward: tuple[Event, ...]
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


def _allocated(events: tuple[Event, ...]) -> dict[str, int]:
    return {event.name: event.num_bytes for event in events if event.action == "alloc"}


def _left_over(events: tuple[Event, ...]) -> dict[str, int]:
    freed = {event.name for event in events if event.action == "free"}
    return {name: size for name, size in _allocated(events).items() if name not in freed}


def _scratch(events: tuple[Event, ...]) -> tuple[Buffer, ...]:
    kept = _left_over(events)
    made = _allocated(events)
    return tuple(Buffer(name, size, "scratch") for name, size in made.items() if name not in kept)


# The choice


class _Situation(NamedTuple):
    node: AttentionNode
    capability: Capability
    torch_version: tuple[int, int]
    cudnn_version: tuple[int, ...] | None
    deterministic: bool


def choose_kernel(
    node: AttentionNode,
    *,
    compute_capability: Capability,
    torch_version: tuple[int, int],
    cudnn_version: tuple[int, ...] | None,
    deterministic: bool = False,
) -> Kernel:
    """Which kernel CUDA takes (cuda/sdp_utils.cpp `select_sdp_backend`).

    `cudnn_version` is that of the library found at run time, None if there is none. A build for
    CUDA 12 prefers cuDNN on capability 9.x and 10.x only for minor 0 and 3, which covers Hopper
    and data-centre Blackwell; that difference is left out.
    """
    situation = _Situation(node, compute_capability, torch_version, cudnn_version, deterministic)
    return next(kernel for kernel, reason in _verdicts(situation) if reason is None)


def explain_choice(
    node: AttentionNode,
    *,
    compute_capability: Capability,
    torch_version: tuple[int, int],
    cudnn_version: tuple[int, ...] | None,
    deterministic: bool = False,
) -> str:
    """One line: the kernel taken and why those tried before it were not."""
    situation = _Situation(node, compute_capability, torch_version, cudnn_version, deterministic)
    refused: list[str] = []
    for kernel, reason in _verdicts(situation):
        if reason is None:
            because = "; ".join(refused)
            return f"{kernel} ({because})" if because else f"{kernel} (first in order)"
        refused.append(f"no {kernel}: {reason}")
    raise AssertionError("math is never refused")


def _verdicts(situation: _Situation) -> list[tuple[Kernel, str | None]]:
    """Kernels in order of preference, each with the reason against it."""
    verdicts: list[tuple[Kernel, str | None]] = [
        ("flash", _against_flash(situation)),
        ("efficient", _against_efficient(situation)),
        ("math", None),
    ]
    preferred = (situation.cudnn_version or (0,)) > CUDNN_PREFERRED_ABOVE
    if preferred and situation.capability[0] in (9, 10):
        verdicts.insert(0, ("cudnn", _against_cudnn(situation)))
    return verdicts


def _against_flash(situation: _Situation) -> str | None:
    """First reason against FlashAttention 2 (sdp_utils.cpp `can_use_flash_attention`)."""
    node, capability = situation.node, situation.capability
    if not (8, 0) <= capability <= LAST_FUSED_CAPABILITY:
        return f"compute capability {_dotted(capability)}"
    if not node.is_half:
        return "fp32"
    if node.mask != "none":
        return "a mask"
    if node.head_dim != node.value_head_dim or node.head_dim > 256:
        return f"head dimensions {node.head_dim} and {node.value_head_dim}"
    if node.causal and node.query_length != node.key_length:
        return "causal with unequal lengths"
    if node.is_grouped and not node.enable_gqa:
        return "unequal head counts"
    # Consumer cards lack the shared memory for the backward of the widest heads.
    consumer = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    backs = node.head_dim <= 192 or (node.head_dim > 224 and not node.dropout)
    if consumer and node.needs_grad and not backs:
        return f"training with head dimension {node.head_dim}"
    return None


def _against_efficient(situation: _Situation) -> str | None:
    """First reason against the memory-efficient kernel (`can_use_mem_efficient_attention`)."""
    node, capability = situation.node, situation.capability
    if not (5, 0) <= capability <= LAST_FUSED_CAPABILITY:
        return f"compute capability {_dotted(capability)}"
    if node.dtype == "bfloat16" and capability < (8, 0):
        return "bf16 before capability 8.0"
    alignment = _minimum_alignment(node, capability)
    if node.head_dim % alignment or node.value_head_dim % alignment:
        return f"head dimension {node.head_dim} is no multiple of {alignment}"
    if node.is_grouped:
        return "grouped queries (2.13; later versions may take them)"
    return None


def _minimum_alignment(node: AttentionNode, capability: Capability) -> int:
    """Elements (sdp_utils.cpp `minimum_gemm_alignment`)."""
    if node.is_half and capability >= (7, 0):
        return 8
    return 4 if capability >= (8, 0) else 1


def _against_cudnn(situation: _Situation) -> str | None:
    """First reason against cuDNN (`can_use_cudnn_attention`), on capability 9.x and 10.x."""
    node = situation.node
    if situation.deterministic:
        return "deterministic algorithms demanded"
    if not node.is_half:
        return "fp32"
    if node.is_grouped and not node.enable_gqa:
        return "unequal head counts"
    return _against_cudnn_shape(situation) or _against_cudnn_dropout(situation)


def _against_cudnn_shape(situation: _Situation) -> str | None:
    node = situation.node
    if max(node.batch, node.heads) > 65535:
        return "batch or heads above 65,535"
    dims = (node.head_dim, node.value_head_dim)
    if max(dims) > _cudnn_head_limit(situation):
        return f"head dimension {max(dims)}"
    if node.head_dim % 8 or node.value_head_dim % 8:
        return f"head dimension {node.head_dim} is no multiple of 8"
    if node.key_length == 1:
        return "key length 1"
    return None


def _cudnn_head_limit(situation: _Situation) -> int:
    version = situation.cudnn_version or (0,)
    capability = situation.capability
    if capability != (9, 0) and capability[0] != 10:
        return 128
    dims = (situation.node.head_dim, situation.node.value_head_dim)
    # 256 also needs a front end newer than the one bundled with 2.13.
    if version > (9, 22, 0) and situation.torch_version > (2, 13):
        trains = max(dims) <= 128 or dims in ((192, 128), (256, 256))
        return 256 if trains or not situation.node.needs_grad else 128
    return 192 if dims == (192, 128) and version >= (9, 11, 0) else 128


def _against_cudnn_dropout(situation: _Situation) -> str | None:
    node, version = situation.node, situation.cudnn_version or (0,)
    if not node.dropout:
        return None
    if node.query_length == 1:
        return "dropout with query length 1"
    if (9, 11, 0) < version < (9, 14, 0):
        return f"dropout with cuDNN {_dotted(version)}"
    if situation.torch_version >= (2, 12) and not (node.dropout * 16).is_integer():
        return f"dropout {node.dropout:g} is no multiple of 1/16"
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# The lowering


class _Timeline:
    """Collects events; buffers of zero bytes leave no trace."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._live: dict[str, int] = {}

    def alloc(self, name: str, num_bytes: int) -> None:
        assert name not in self._live, name
        if num_bytes:
            self._live[name] = num_bytes
            self.events.append(Event("alloc", name, num_bytes))

    def free(self, *names: str) -> None:
        for name in names:
            if name in self._live:
                self.events.append(Event("free", name, self._live.pop(name)))

    def free_all_but(self, *names: str) -> None:
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

    def continued(self) -> _Timeline:
        """A timeline for backward that starts with what forward left."""
        later = _Timeline()
        later._live = {name: size for name, size in self._live.items() if name != "out"}
        return later


def lower_attention(
    node: AttentionNode,
    kernel: Kernel,
    *,
    compute_capability: Capability,
    sm_count: int,
    deterministic: bool = False,
) -> AttentionLowering:
    """The allocations of forward and backward with this kernel, in order.

    The incoming gradient is taken to be token-major, as it is behind the model's transpose, so no
    kernel copies it (math does).
    """
    lower = _LOWERINGS[kernel]
    place = _Place(compute_capability, sm_count, deterministic)
    return lower(node, place)


class _Place(NamedTuple):
    capability: Capability
    sm_count: int
    deterministic: bool


def _finish(
    kernel: Kernel,
    node: AttentionNode,
    forward: _Timeline,
    backward: _Timeline,
    *,
    saved_inputs: tuple[str, ...] = ("q", "k", "v"),
    saves_out: bool = True,
    extra_assumptions: tuple[str, ...] = (),
) -> AttentionLowering:
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


def _float_mask(timeline: _Timeline, node: AttentionNode) -> None:
    """A boolean mask becomes a float one in every call (attention.cpp)."""
    if node.mask == "bool":
        timeline.alloc("bias", node.mask_elements * node.element_bytes)


def _lower_flash(node: AttentionNode, place: _Place) -> AttentionLowering:
    """flash_api.cpp `mha_fwd` and `mha_bwd`."""
    forward = _Timeline()
    wide = replace(node, head_dim=_up(node.head_dim, 8), value_head_dim=_up(node.value_head_dim, 8))
    padded = wide != node
    if padded:
        forward.alloc("q_padded", wide.query_elements * node.element_bytes)
        forward.alloc("k_padded", wide.key_elements * node.element_bytes)
        forward.alloc("v_padded", wide.value_elements * node.element_bytes)
    forward.alloc("out", wide.out_elements * node.element_bytes)
    rows = node.batch * node.heads * node.query_length
    forward.alloc("logsumexp", rows * FP32_BYTES)
    splits = _flash_splits(wide, place.sm_count)
    if splits > 1:
        forward.alloc("logsumexp_accum", splits * rows * FP32_BYTES)
        forward.alloc("out_accum", splits * rows * _flash_width(wide) * FP32_BYTES)
    forward.alloc("rng_state", 16)
    forward.alloc("rng_unused", 8)
    if node.dropout:  # made a second time, the first one dies
        forward.alloc("rng_state_used", 16)
        forward.free("rng_state")
    forward.free("logsumexp_accum", "out_accum")
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    _flash_backward(backward, node, wide, place)
    inputs = () if padded else ("q", "k", "v")
    return _finish("flash", node, forward, backward, saved_inputs=inputs)


def _flash_backward(
    backward: _Timeline, node: AttentionNode, wide: AttentionNode, place: _Place
) -> None:
    padded = wide != node
    saved = backward.live
    suffix = "_padded" if padded else ""
    if padded:
        backward.alloc("grad_out_padded", wide.out_elements * node.element_bytes)
    backward.alloc("dq" + suffix, wide.query_elements * node.element_bytes)
    backward.alloc("dk" + suffix, wide.key_elements * node.element_bytes)
    backward.alloc("dv" + suffix, wide.value_elements * node.element_bytes)
    rows = node.batch * node.heads * _up(node.query_length, 128)
    backward.alloc("softmax_d", rows * FP32_BYTES)
    splits = 1
    if place.deterministic:
        splits = _ceil_div(place.sm_count, node.batch * node.heads)
    backward.alloc("dq_accum", splits * rows * _flash_width(wide) * FP32_BYTES)
    if node.is_grouped:
        full = wide.batch * wide.key_length * wide.heads * wide.head_dim * node.element_bytes
        backward.alloc("dk_expanded", full)
        backward.alloc("dv_expanded", full)
    backward.free("dv_expanded", "dk_expanded", "dq_accum", "softmax_d", "grad_out_padded")
    backward.free(*saved)
    if padded:  # the padding's own backward copies the part in use
        for name, elements in _gradient_elements(node):
            backward.alloc(name, elements * node.element_bytes)
            backward.free(name + suffix)


def _gradient_elements(node: AttentionNode) -> tuple[tuple[str, int], ...]:
    return (
        ("dq", node.query_elements),
        ("dk", node.key_elements),
        ("dv", node.value_elements),
    )


def _flash_width(node: AttentionNode) -> int:
    return _up(node.head_dim, 32 if node.head_dim <= 128 else 64)


def _flash_splits(node: AttentionNode, sm_count: int) -> int:
    """Splits of the keys in forward (flash_api.cpp `num_splits_heuristic`); 1 with dropout."""
    if node.dropout:
        return 1
    heads, length = node.heads, node.query_length
    if length == 1 and node.is_grouped:  # the group takes the place of the query length
        heads, length = node.kv_heads, node.heads // node.kv_heads
    block = 256 if node.head_dim <= 64 else 128 if node.head_dim <= 128 else 64
    tiles, processors = node.batch * heads * _ceil_div(length, 64), 2 * sm_count
    key_blocks = _ceil_div(node.key_length, block)
    if tiles >= 0.8 * processors:
        return 1
    efficiency = {}
    for splits in range(1, min(128, processors, key_blocks) + 1):
        per_split = _ceil_div(key_blocks, splits)
        if splits == 1 or per_split != _ceil_div(key_blocks, splits - 1):
            waves = tiles * splits / processors
            efficiency[splits] = waves / _ceil_div(tiles * splits, processors)
    best = max(efficiency.values())
    return next(splits for splits, value in efficiency.items() if value >= 0.85 * best)


def _lower_cudnn(node: AttentionNode, place: _Place) -> AttentionLowering:
    """attention.cu `_cudnn_attention_forward`, attention_backward.cu, cudnn/MHA.cpp."""
    del place
    forward = _Timeline()
    _float_mask(forward, node)
    forward.alloc("rng_seed", 8)
    forward.alloc("rng_offset", 8)
    forward.alloc("out", node.out_elements * node.element_bytes)
    rows = node.batch * node.heads * node.query_length
    if node.needs_grad:
        forward.alloc("logsumexp", rows * FP32_BYTES)
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    saved = backward.live
    for name, elements in _gradient_elements(node):
        backward.alloc(name, elements * node.element_bytes)
    backward.alloc("workspace", (node.query_elements + rows) * FP32_BYTES)
    backward.free("workspace", *saved)
    return _finish("cudnn", node, forward, backward, saved_inputs=_with_mask(node))


def _with_mask(node: AttentionNode) -> tuple[str, ...]:
    """What autograd keeps: a float mask only if the kernel reads it as it was handed over."""
    return ("q", "k", "v", "mask") if node.mask == "float" else ("q", "k", "v")


def _lower_efficient(node: AttentionNode, place: _Place) -> AttentionLowering:
    """attention.cu `_efficient_attention_forward`, attention_backward.cu."""
    forward = _Timeline()
    _float_mask(forward, node)
    pads = node.mask != "none" and node.key_length % 8 != 0
    if pads:  # `preprocess_mask`: row strides must be multiples of 8 elements
        rows = node.mask_elements // node.key_length
        forward.alloc("bias_padded", rows * _up(node.key_length, 8) * node.element_bytes)
        forward.free("bias")
    forward.alloc("out", node.out_elements * node.element_bytes)
    if node.needs_grad:
        rows = node.batch * node.heads * _up(node.query_length, 32)
        forward.alloc("logsumexp", rows * FP32_BYTES)
    if node.is_half and max(node.head_dim, node.value_head_dim) > 128:
        forward.alloc("out_accum", node.out_elements * FP32_BYTES)
        forward.free("out_accum")
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    saved = backward.live
    tile = _backward_tile(node, place.capability)
    _efficient_backward(backward, node, place, tile)
    backward.free(*saved)
    return _finish(
        "efficient",
        node,
        forward,
        backward,
        saved_inputs=("q", "k", "v") if pads else _with_mask(node),
        extra_assumptions=(_SMALL_SHARED_MEMORY,) if tile.is_fallback else (),
    )


class _Tile(NamedTuple):
    """Block of the backward kernel: queries x keys, and the widest head it was built for."""

    queries: int
    keys: int
    max_width: int
    is_fallback: bool

    def keeps_output(self, node: AttentionNode) -> bool:
        """Whether dK and dV stay in registers (kernel_backward.h `kOutputInRF`)."""
        return node.is_half and self.max_width <= self.queries


def _backward_tile(node: AttentionNode, capability: Capability) -> _Tile:
    """First kernel of kernels/cutlassB.h that takes the node and fits into shared memory."""
    width = max(node.head_dim, node.value_head_dim)
    max_width = next(limit for limit in (32, 64, 128, 65536) if width <= limit)
    if max_width <= 64 or capability < (7, 0) or (capability < (8, 0) and not node.is_half):
        return _Tile(64, 64, max_width, False)
    if node.is_half and width <= 96 and capability in ((8, 6), (8, 9)) and not node.dropout:
        return _Tile(128, 64, 96, False)
    # Turing has 64 KiB a block, consumer Ampere and later 99 KiB: the large blocks do not fit.
    if capability == (7, 5) or capability in ((8, 6), (8, 9)) or capability[0] == 12:
        return _Tile(64, 64, max_width, True)
    square = node.is_half and capability >= (8, 0) and max_width == 128
    return _Tile(128, 128 if square else 64, max_width, False)


def _efficient_backward(
    backward: _Timeline, node: AttentionNode, place: _Place, tile: _Tile
) -> None:
    for name, elements in _gradient_elements(node):
        backward.alloc(name, elements * node.element_bytes)
    rows = node.batch * node.heads * node.query_length
    computes_delta = node.is_half and (
        tile.keeps_output(node) or not (7, 0) <= place.capability < (7, 5)
    )
    if not computes_delta:
        _delta_outside(backward, node, rows)
    else:
        backward.alloc("delta", rows * FP32_BYTES)
    backward.alloc("workspace", _efficient_workspace_bytes(node, place, tile))
    backward.free("delta", "row_sums", "workspace")


def _delta_outside(backward: _Timeline, node: AttentionNode, rows: int) -> None:
    """Row sums of gradient times output by ordinary operators, before the workspace exists."""
    if node.is_half:
        backward.alloc("grad_out_fp32", node.out_elements * FP32_BYTES)
        backward.alloc("out_fp32", node.out_elements * FP32_BYTES)
    backward.alloc("product", node.out_elements * FP32_BYTES)
    backward.alloc("row_sums", rows * FP32_BYTES)
    copies = node.heads > 1 and node.query_length > 1
    if copies:
        backward.alloc("delta", rows * FP32_BYTES)
        backward.free("row_sums")
    backward.free("product", "out_fp32", "grad_out_fp32")


def _efficient_workspace_bytes(node: AttentionNode, place: _Place, tile: _Tile) -> int:
    """kernel_backward.h `workspace_size`; the number of key splits from attention_backward.cu."""
    split_keys = place.capability >= (7, 0)
    elements = 0
    if split_keys or node.is_half:
        tiles = _ceil_div(node.query_length, tile.queries) * _ceil_div(node.head_dim, tile.keys)
        # each tile carries a lock, a counter and padding: 16 bytes
        elements += tiles * (16 // FP32_BYTES + tile.queries * tile.keys)
    if node.is_half and not tile.keeps_output(node):
        splits = _key_splits(node, place, tile) if split_keys else 1
        width = _up(node.head_dim, tile.queries) + _up(node.value_head_dim, tile.queries)
        elements += splits * tile.keys * width
    return node.batch * node.heads * _up(elements, 4) * FP32_BYTES


def _key_splits(node: AttentionNode, place: _Place, tile: _Tile) -> int:
    parallel = node.batch * node.heads
    if place.deterministic or (parallel >= 256 and node.key_length <= 2 * tile.keys):
        return 1
    return max(1, min(_ceil_div(node.key_length, tile.keys), 200 // parallel))


def _lower_math(node: AttentionNode, place: _Place) -> AttentionLowering:
    """attention.cpp `_scaled_dot_product_attention_math`, as ordinary operators run it."""
    del place
    forward = _Timeline()
    _float_mask(forward, node)
    kept = _math_scores(forward, node)
    kept += _math_softmax(forward, node)
    kept += _math_output(forward, node)
    if node.needs_grad:
        forward.free_all_but("out", *kept)
    else:
        forward.free_all_but("out")
    backward = forward.continued()
    _math_backward(backward, node)
    keeps_value = bool({"v_copy", "v_expanded", "v_fp32"} & set(kept))
    inputs = () if keeps_value else ("v",)
    return _finish("math", node, forward, backward, saved_inputs=inputs, saves_out=False)


def _copies_heads(node: AttentionNode) -> bool:
    """Whether folding batch and heads of a token-major tensor into one axis needs a copy."""
    return node.batch > 1 and node.heads > 1


def _math_scores(forward: _Timeline, node: AttentionNode) -> list[str]:
    """Scaled queries and keys and their product; returns what autograd keeps."""
    if node.is_half:
        forward.alloc("q_fp32", node.query_elements * FP32_BYTES)
        forward.alloc("k_fp32", node.key_elements * FP32_BYTES)
        forward.alloc("v_fp32", node.value_elements * FP32_BYTES)
    forward.alloc("q_scaled", node.query_elements * FP32_BYTES)
    if node.causal:
        square = node.query_length * node.key_length
        forward.alloc("causal_ones", square)
        forward.alloc("causal_triangle", square)
        forward.free("causal_ones")
        forward.alloc("bias", square * node.element_bytes)
        forward.free("causal_triangle")
    groups = node.heads // node.kv_heads
    if groups > 1:
        forward.alloc("k_expanded", node.key_elements * groups * FP32_BYTES)
        forward.alloc("v_expanded", node.value_elements * groups * FP32_BYTES)
    forward.alloc("k_scaled", node.key_elements * groups * FP32_BYTES)
    copies = _copies_heads(node)
    if copies:
        forward.alloc("q_copy", node.query_elements * FP32_BYTES)
    if copies and groups == 1:
        forward.alloc("k_copy", node.key_elements * FP32_BYTES)
    forward.alloc("scores", node.score_elements * FP32_BYTES)
    kept = ["q_copy" if copies else "q_scaled"]
    kept.append("k_copy" if copies and groups == 1 else "k_scaled")
    if "k_scaled" not in kept:
        forward.free("k_scaled")
    return kept


def _math_softmax(forward: _Timeline, node: AttentionNode) -> list[str]:
    """`_safe_softmax`: rows that are masked throughout become zero, out of place."""
    forward.alloc("softmax", node.score_elements * FP32_BYTES)
    forward.alloc("is_masked", node.score_elements)
    forward.alloc("row_is_masked", node.batch * node.heads * node.query_length)
    forward.alloc("probabilities", node.score_elements * FP32_BYTES)
    forward.free("row_is_masked", "is_masked", "softmax", "scores")
    if not node.dropout:
        return ["probabilities"]
    forward.alloc("dropped", node.score_elements * FP32_BYTES)
    forward.alloc("dropout_mask", node.score_elements)
    if not node.needs_grad:
        forward.free("probabilities", "dropout_mask")
    return ["probabilities", "dropped", "dropout_mask"]


def _math_output(forward: _Timeline, node: AttentionNode) -> list[str]:
    """Product with the values; half inputs get half copies of output and probabilities."""
    kept = ["v_expanded"] if node.is_grouped else ["v_fp32"] if node.is_half else []
    if _copies_heads(node) and not node.is_grouped:
        forward.alloc("v_copy", node.value_elements * FP32_BYTES)
        kept = ["v_copy"]
    out = "out_fp32" if node.is_half else "out"
    forward.alloc(out, node.out_elements * FP32_BYTES)
    if node.is_half:
        forward.alloc("out", node.out_elements * node.element_bytes)
        forward.alloc("probabilities_half", node.score_elements * node.element_bytes)
    return kept


def _math_backward(backward: _Timeline, node: AttentionNode) -> None:
    """Autograd's nodes in reverse, each releasing what it saved."""
    groups = node.heads // node.kv_heads
    full_keys, full_values = node.key_elements * groups, node.value_elements * groups
    if node.is_half:
        backward.alloc("grad_out_fp32", node.out_elements * FP32_BYTES)
    if _copies_heads(node):
        backward.alloc("grad_out_copy", node.out_elements * FP32_BYTES)
        backward.free("grad_out_fp32")
    grad = "d_dropped" if node.dropout else "d_probabilities"
    backward.alloc(grad, node.score_elements * FP32_BYTES)
    backward.alloc("dv_product", full_values * FP32_BYTES)
    backward.free("grad_out_copy", "grad_out_fp32", "dropped")
    backward.free("v_copy", "v_expanded", "v_fp32")
    if node.dropout:
        backward.alloc("d_probabilities", node.score_elements * FP32_BYTES)
        backward.free("d_dropped", "dropout_mask")
    backward.alloc("d_scores", node.score_elements * FP32_BYTES)
    backward.free("d_probabilities", "probabilities")
    backward.alloc("dq_product", node.query_elements * FP32_BYTES)
    backward.alloc("dk_product", full_keys * FP32_BYTES)
    backward.free("d_scores", "q_copy", "q_scaled", "k_copy", "k_scaled")
    backward.alloc("dk_scaled", full_keys * FP32_BYTES)
    backward.free("dk_product")
    backward.alloc("dq_scaled", node.query_elements * FP32_BYTES)
    backward.free("dq_product")
    # What is grouped is summed over the group, what was upcast is cast back.
    for name, elements in _gradient_elements(node):
        source = "dv_product" if name == "dv" else f"{name}_scaled"
        _math_gradient(backward, node, name, source, elements)


def _math_gradient(
    backward: _Timeline, node: AttentionNode, name: str, source: str, elements: int
) -> None:
    if node.is_grouped and name != "dq":
        backward.alloc(f"{name}_grouped", elements * FP32_BYTES)
        backward.free(source)
        source = f"{name}_grouped"
    if node.is_half:
        backward.alloc(name, elements * node.element_bytes)
        backward.free(source)
    else:
        backward.rename(source, name)


_LOWERINGS: dict[Kernel, Callable[[AttentionNode, _Place], AttentionLowering]] = {
    "flash": _lower_flash,
    "cudnn": _lower_cudnn,
    "efficient": _lower_efficient,
    "math": _lower_math,
}


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
