"""What torch.profiler sees of a CPU step and a dispatch mode cannot: the named table.

An exemption can never hide a tensor that lives past its operator: `exemption_of` asks that it is
freed inside the call that made it, or is a single number, or (one row) has one exact size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

SCALAR_BYTES = 8
RANDOM_STATE_BYTES = torch.get_rng_state().numel()
FP32_GAMMA_AND_BETA = (2 * 4 * 96, 2 * 4 * 56)
"""For the widths of norms in `CONFIGS`."""


@dataclass(slots=True)
class Event:
    """A birth, or (with `born` set) the death of an earlier one."""

    op: str
    num_bytes: int
    born: Event | None = None
    path: tuple[str, ...] = ()
    """Profiler only: the operators inside the call of `op`, down to the allocator."""
    scratch: bool = False
    """Profiler only: freed inside the same call of `op`."""


@dataclass(frozen=True, slots=True)
class Exemption:
    """What the profiler sees and a dispatch mode cannot; never a tensor that outlives its call."""

    name: str
    reason: str
    applies: Callable[[Event], bool]
    outlives: bool = False
    """The one kind that need not be freed in its call: it has an exact size and no operator."""


def _any_of(*rules: Callable[[Event], bool]) -> Callable[[Event], bool]:
    return lambda event: any(rule(event) for rule in rules)


def _in(*operators: str) -> Callable[[Event], bool]:
    return lambda event: event.op in operators


def _under(*operators: str) -> Callable[[Event], bool]:
    """An allocation below one of the operators, inside the call."""
    return lambda event: any(name in operators for name in event.path)


def _both(*rules: Callable[[Event], bool]) -> Callable[[Event], bool]:
    return lambda event: all(rule(event) for rule in rules)


EXEMPTIONS: tuple[Exemption, ...] = (
    Exemption(
        "scalar",
        "a Python number that C++ wraps as a tensor of one element, below dispatch"
        " (`scalar_to_tensor` of c10/core/ScalarOps.h, `wrapped_scalar_tensor`)",
        lambda event: event.num_bytes <= SCALAR_BYTES,
    ),
    Exemption(
        "conversion",
        "a CPU kernel converts operands of another dtype itself, the one it writes included"
        " (`TensorIteratorBase::compute_types` of ATen/TensorIterator.cpp, ATen/native/ReduceOps)",
        _any_of(
            _under("aten::_to_copy"),
            _both(_in("aten::add_", "aten::cat", "aten::mul_"), _under("aten::empty_like")),
        ),
    ),
    Exemption(
        "sums of bf16 in fp32",
        "gather, scatter_add and some sums work in a float copy of what they write, index_add with"
        " a row of floats a thread (`create_acc_buffer`, `cpu_scatter_reduce_expanded_index` of"
        " ATen/native/cpu/ScatterGatherKernel.cpp, `should_use_acc_buffer` of"
        " ATen/native/ReduceOps.cpp)",
        _any_of(
            _both(
                _in("aten::gather", "aten::scatter_add_", "aten::sum"),
                lambda event: event.path == ("aten::empty",),
            ),
            _both(
                _in("aten::scatter_add_", "aten::index_add_"),
                lambda event: event.path[-2:] == ("aten::zeros", "aten::empty"),
            ),
        ),
    ),
    Exemption(
        "contiguous argument",
        "a kernel copies an argument that is not laid out as it wants it"
        " (`indices.reshape`, `grad.contiguous()` of ATen/native/Embedding.cpp; BLAS operands)",
        _under("aten::contiguous", "aten::reshape", "aten::clone"),
    ),
    Exemption(
        "packed matrices",
        "MKL and oneDNN repack operands of a product (`mkldnn_bf16_gemm` of"
        " ATen/native/mkldnn/Matmul.cpp, scratchpads of oneDNN)",
        _in("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
    ),
    Exemption(
        "attention on CPU",
        "tiles and row sums of the CPU's flash kernel"
        " (`cpu_flash_attention` of ATen/native/cpu/FlashAttentionKernel.cpp)",
        _in(
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        ),
    ),
    Exemption(
        "rows that are all masked",
        "`_safe_softmax` looks for rows of minus infinity (ATen/native/SoftMax.cpp)",
        _both(_in("aten::_safe_softmax"), _under("aten::isneginf", "aten::eq", "aten::all")),
    ),
    Exemption(
        "inside composite kernels",
        "`repeat` and `histc` work out positions and bins by other operators"
        " (ATen/native/TensorShape.cpp, ATen/native/cpu/HistogramKernel.cpp), `sort` an index",
        _in("aten::repeat", "aten::histc", "aten::sort"),
    ),
    Exemption(
        "convolution on CPU",
        "oneDNN reorders weights and inputs (`mkldnn_convolution` of ATen/native/mkldnn/Conv.cpp)",
        _in("aten::convolution", "aten::convolution_backward"),
    ),
    Exemption(
        "partial sums of a norm",
        "one row of gamma and beta gradients for each thread, and gamma and beta in fp32 for bf16"
        " inputs (`LayerNormBackwardKernelImplInternal`, `LayerNormKernelImplInternal` of"
        " ATen/native/cpu/layer_norm_kernel.cpp)",
        _any_of(
            _both(_in("aten::native_layer_norm_backward"), _under("aten::resize_")),
            _both(_in("aten::native_layer_norm"), lambda e: e.num_bytes in FP32_GAMMA_AND_BETA),
        ),
    ),
    Exemption(
        "rows of a mask",
        "indexing by a mask finds its rows with `nonzero`, whose index dies with the call"
        " (`expandTensors` of ATen/native/IndexingUtils.h)",
        _under("aten::nonzero"),
    ),
    Exemption(
        "random state",
        "checkpoint keeps the CPU generator's state, on a GPU too (`get_rng_state` of"
        " torch/utils/checkpoint.py): host memory that no operator makes",
        lambda event: not event.op and event.num_bytes == RANDOM_STATE_BYTES,
        outlives=True,
    ),
)
"""Each is also held to `exemption_of`: freed inside the call that made it, or one number."""


def exemption_of(birth: Event) -> str | None:
    """The name of the rule that lets a profiler event be absent from the trace."""
    may_go = birth.scratch or birth.num_bytes <= SCALAR_BYTES
    for rule in EXEMPTIONS:
        if rule.applies(birth) and (may_go or rule.outlives):
            return rule.name
    return None
