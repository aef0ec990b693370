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

FUSED = ("silu_backward", "mish_backward", "_fused_rms_norm")

_libraries: list[torch.library.Library] = []


def register() -> None:
    """Gives each a kernel of its own; FakeTensorMode answers before it runs."""
    library = torch.library.Library("aten", "IMPL")
    for name in FUSED:
        library.impl(name, no_kernel, "PrivateUse1")
    _libraries.append(library)


def no_kernel(*_args: Any) -> Any:  # pragma: no cover
    """Stands where a kernel would; nothing is computed on the fake accelerator."""
    raise RuntimeError("the fake accelerator computes nothing")
