"""Operators that a GPU runs as one kernel, but that torch would take apart on a new backend.

An operator with kernels for CUDA and a composite fallback for everyone else dispatches to the
fallback on the fake accelerator, and the trace shows its inner steps: five more tensors of
feed-forward width for each SwiGLU. The list is what ATen's headers give: operators with both a
`*_cuda_dispatch.h` and a `*_compositeimplicitautograd_dispatch.h` of the same signature that a
language model meets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import _meta_registrations

FUSED = ("silu_backward", "mish_backward", "_fused_rms_norm")

_libraries: list[torch.library.Library] = []


def register() -> None:
    """Gives each a kernel of its own; FakeTensorMode answers before it runs."""
    library = torch.library.Library("aten", "IMPL")
    for name in FUSED:
        library.impl(name, no_kernel, "PrivateUse1")
    _libraries.append(library)
    _allow_grouped_products()


def _allow_grouped_products() -> None:
    """Experts' grouped product in fp32 and fp16, which the real operator takes.

    `_grouped_mm_validate_inputs` of ATen/native/GroupedMMUtils.h allows Float32, BFloat16 and
    Float16, torch's meta function only the second; one output is all that any of them allocates
    (`_grouped_mm_fallback` there writes into it, group by group).
    """
    registrations: Any = _meta_registrations
    original = registrations._meta_grouped_mm_common

    def common(mat_a: torch.Tensor, mat_b: torch.Tensor, **rest: Any) -> Any:
        if rest.get("scale_a") is not None or mat_a.dtype not in (torch.float32, torch.float16):
            return original(mat_a, mat_b, **rest)
        dtype = rest.pop("out_dtype", None) or mat_a.dtype
        return original(mat_a.bfloat16(), mat_b.bfloat16(), **rest, out_dtype=None).to(dtype)

    registrations._meta_grouped_mm_common = common


def no_kernel(*_args: Any) -> Any:  # pragma: no cover
    """Stands where a kernel would; nothing is computed on the fake accelerator."""
    raise RuntimeError("the fake accelerator computes nothing")
