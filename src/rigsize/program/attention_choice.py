"""Which attention kernel CUDA or ROCm takes, and why not those it tries first.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, torch 2.13.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rigsize.program import attention_rocm
from rigsize.program.attention_node import AttentionNode

Kernel = Literal["flash", "cudnn", "efficient", "math"]
Capability = tuple[int, int]

CUDNN_PREFERRED_ABOVE = (9, 15, 0)
"""cuDNN is tried first above this run-time version, on compute capability 9.x and 10.x."""
LAST_FUSED_CAPABILITY = (12, 1)


class _Situation(NamedTuple):
    node: AttentionNode
    capability: Capability
    torch_version: tuple[int, int]
    cudnn_version: tuple[int, ...] | None
    deterministic: bool
    gfx: str


def choose_kernel(
    node: AttentionNode,
    *,
    compute_capability: Capability,
    torch_version: tuple[int, int],
    cudnn_version: tuple[int, ...] | None,
    deterministic: bool = False,
    gfx: str = "",
) -> Kernel:
    """Which kernel CUDA takes (cuda/sdp_utils.cpp `select_sdp_backend`).

    `cudnn_version` is that of the library found at run time, None if there is none. A build for
    CUDA 12 prefers cuDNN on capability 9.x and 10.x only for minor 0 and 3, which covers Hopper
    and data-centre Blackwell; that difference is left out. `gfx` is an AMD architecture, whose own
    rules then hold.
    """
    situation = _Situation(
        node, compute_capability, torch_version, cudnn_version, deterministic, gfx
    )
    return next(kernel for kernel, reason in _verdicts(situation) if reason is None)


def explain_choice(
    node: AttentionNode,
    *,
    compute_capability: Capability,
    torch_version: tuple[int, int],
    cudnn_version: tuple[int, ...] | None,
    deterministic: bool = False,
    gfx: str = "",
) -> str:
    """One line: the kernel taken and why those tried before it were not."""
    situation = _Situation(
        node, compute_capability, torch_version, cudnn_version, deterministic, gfx
    )
    refused: list[str] = []
    for kernel, reason in _verdicts(situation):
        if reason is None:
            because = "; ".join(refused)
            return f"{kernel} ({because})" if because else f"{kernel} (first in order)"
        refused.append(f"no {kernel}: {reason}")
    raise AssertionError("math is never refused")


def _verdicts(situation: _Situation) -> list[tuple[Kernel, str | None]]:
    """Kernels in order of preference, each with the reason against it."""
    if situation.gfx:
        node, gfx = situation.node, situation.gfx
        return [
            ("flash", attention_rocm.against_flash(node, gfx)),
            ("efficient", attention_rocm.against_efficient(node, gfx)),
            ("math", None),
        ]
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
