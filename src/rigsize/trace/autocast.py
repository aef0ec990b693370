"""Autocast for the fake accelerator: CUDA's own cast lists, weight cache included.

torch registers autocast kernels in C++ for its built-in devices only. The lists and policies are
those of `aten/src/ATen/autocast_mode.h` (AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32,
AT_FORALL_FP32_SET_OPT_DTYPE, AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE, AT_FORALL_PROMOTE); the
cache rule is `cached_cast` of `aten/src/ATen/autocast_mode.cpp`: a cast of an fp32 leaf that
requires grad is kept until the outermost autocast region ends, anything else is cast anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LOWER_PRECISION = (
    "_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d "
    "conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul "
    "einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot "
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    "_scaled_dot_product_flash_attention scaled_dot_product_attention"
).split()
FP32 = (
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan "
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm "
    "rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity "
    "poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div "
    "l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss "
    "soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits "
    "dist pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d "
    "upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bicubic2d_aa"
).split()
# These take a dtype argument; the policy sets it to float32 where the caller gave none.
FP32_SET_OPT_DTYPE = (
    "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm "
    "linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList"
).split()
# These have a second overload with a dtype; the policy calls that one with float32.
FP32_APPEND_DTYPE = {
    "norm.Scalar": "norm.ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
}
PROMOTE = (
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
).split()

_weight_casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
_libraries: list[torch.library.Library] = []


def clear_weight_casts() -> None:
    """Forgets the cached weight casts; torch calls this when the outermost region ends."""
    _weight_casts.clear()


def register(device_type: str) -> None:
    """Installs the kernels and ties the cache's end to torch's own."""
    fallthrough = torch.library.Library("_", "IMPL")
    fallthrough.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    policies: tuple[tuple[list[str], Callable[..., Any]], ...] = (
        (LOWER_PRECISION, _lower_precision),
        (FP32, _float32),
        (FP32_SET_OPT_DTYPE, _float32_set_dtype),
        (PROMOTE, _promote),
    )
    for names, policy in policies:
        for name in names:
            library.impl(name, policy(_overload(name), device_type), "AutocastPrivateUse1")
    for name, with_dtype in FP32_APPEND_DTYPE.items():
        kernel = _float32_append_dtype(_overload(name), _overload(with_dtype), device_type)
        library.impl(name, kernel, "AutocastPrivateUse1")
    _libraries.extend((fallthrough, library))
    _hook_cache_clearing()


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _hook_cache_clearing() -> None:
    original = torch.clear_autocast_cache

    def clear() -> None:
        clear_weight_casts()
        original()

    torch.clear_autocast_cache = clear


def _without_autocast() -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]
    return torch._C._ExcludeDispatchKeyGuard(keys)


def _eligible(value: Any, device_type: str) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.device.type == device_type
        and value.dtype != torch.float64
    )


def _cached_cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if value.dtype == dtype:
        return value
    cacheable = (
        value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not cacheable:
        return value.to(dtype)
    found = _weight_casts.get(id(value))
    if found is None or found[0] is not value:
        found = _weight_casts[id(value)] = (value, value.to(dtype))
    return found[1]


def _map(value: Any, device_type: str, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, device_type, dtype) for item in value)
    return _cached_cast(value, dtype) if _eligible(value, device_type) else value


def _lower_precision(op: Any, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            dtype = torch.get_autocast_dtype(device_type)
            cast = {k: _map(v, device_type, dtype) for k, v in kwargs.items()}
            return op(*(_map(a, device_type, dtype) for a in args), **cast)

    return kernel


def _float32(op: Any, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            cast = {k: _map(v, device_type, torch.float32) for k, v in kwargs.items()}
            return op(*(_map(a, device_type, torch.float32) for a in args), **cast)

    return kernel


def _float32_set_dtype(op: Any, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            first = args[0]
            if _eligible(first, device_type) and not _has_dtype(op, args, kwargs):
                kwargs["dtype"] = torch.float32
            return op(*args, **kwargs)

    return kernel


def _float32_append_dtype(op: Any, with_dtype: Any, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        with _without_autocast():
            if not _eligible(args[0], device_type):
                return op(*args)
            defaults = [argument.default_value for argument in op._schema.arguments]
            return with_dtype(*args, *defaults[len(args) :], dtype=torch.float32)

    return kernel


def _has_dtype(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs.get("dtype") is not None:
        return True
    names = [argument.name for argument in op._schema.arguments]
    position = names.index("dtype")
    return position < len(args) and args[position] is not None


def _promote(op: Any, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            tensors = [a for a in args if _eligible(a, device_type)]
            widest = (
                torch.float32
                if any(t.dtype == torch.float32 for t in tensors)
                else torch.get_autocast_dtype(device_type)
            )
            return op(*(_map(a, device_type, widest) for a in args), **kwargs)

    return kernel
