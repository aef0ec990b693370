"""Attention on CUDA: which kernel `scaled_dot_product_attention` takes, and what it allocates.

In the trace attention is one node, because the kernel depends on the accelerator; here the node
becomes an ordered list of allocations and frees. Sources, all in pytorch/pytorch under
aten/src/ATen/native/transformers, stand in the modules: `attention_choice` the kernel,
`attention_flash`, `attention_cudnn`, `attention_efficient` and `attention_math` its buffers.

Left out: nested tensors, a mask that requires a gradient, misaligned storage offsets, batches of
65,536 and more, CUDA graphs, device scalars of a few bytes that die at once.
"""

from __future__ import annotations

from collections.abc import Callable

from rigsize.program.attention_choice import Capability, Kernel, choose_kernel, explain_choice
from rigsize.program.attention_cudnn import lower_cudnn
from rigsize.program.attention_efficient import lower_efficient
from rigsize.program.attention_flash import lower_flash
from rigsize.program.attention_lowering import AttentionLowering, BufferEvent, Card
from rigsize.program.attention_math import lower_math
from rigsize.program.attention_node import AttentionNode

__all__ = [
    "AttentionLowering",
    "AttentionNode",
    "BufferEvent",
    "Kernel",
    "choose_kernel",
    "explain_choice",
    "lower_attention",
]

_LOWERINGS: dict[Kernel, Callable[[AttentionNode, Card], AttentionLowering]] = {
    "flash": lower_flash,
    "cudnn": lower_cudnn,
    "efficient": lower_efficient,
    "math": lower_math,
}


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
    return lower(node, Card(compute_capability, sm_count, deterministic))
