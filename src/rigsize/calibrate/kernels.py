"""What a device computes: products by dtype and layout, and fused attention.

Sizes are those of XLM-R and its like. Backward products are the forward's with the roles changed:
dX[m, n] = dY[m, k] W[k, n] is `nn`, dW[m, n] = dY[k, m]^T X[k, n] is `tn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from rigsize.run.calibrated import Sample

__all__ = ["Task", "attentions", "misaligned_products", "products", "random_values"]

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
_TEXTS = 4096
"""Rows of a product: 32 texts of 128 tokens."""
_LAYERS = ((768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 1024), (1024, 4096))
_LARGE_LAYERS = ((2560, 2560), (10240, 2560), (2560, 10240))
_HOST_ROWS, _HOST_LAYERS = 256, ((768, 768), (3072, 768))
_VOCABULARY, _ALIGNED_VOCABULARY = 250_002, 250_112
_HEAD_ROWS, _HEAD_WIDTH = 2048, 1024


class Task(NamedTuple):
    """One measurement that can be made: what of, and the call to time."""

    what: str
    """As `Calibrated.unmeasured` names it."""
    kind: str
    key: str
    detail: str
    sizes: tuple[int, ...]
    make: Callable[[], Callable[[], Any]]
    """Makes the operands and returns the call; may run out of memory."""

    def sample(self, times_s: tuple[float, ...]) -> Sample:
        """With its times."""
        return Sample(
            kind=self.kind, key=self.key, detail=self.detail, sizes=self.sizes, times_s=times_s
        )


def products(device: str, dtype: str, *, quick: bool) -> Iterator[Task]:
    """Products in one dtype, all three layouts of a training step."""
    rows = _TEXTS if device == "cuda" else _HOST_ROWS
    layers = (_LAYERS + _LARGE_LAYERS) if device == "cuda" else _HOST_LAYERS
    for out, width in layers[:3] if quick else layers:
        for layout, (m, n, k) in {
            "nt": (rows, out, width),
            "nn": (rows, width, out),
            "tn": (out, width, rows),
        }.items():
            yield _product("gemm", device, dtype, layout, (m, n, k))


def misaligned_products(dtype: str) -> Iterator[Task]:
    """The head over XLM-R's 250,002 words, whose rows start off 16 bytes, and over 110 more."""
    for kind, words in (("misaligned", _VOCABULARY), ("aligned", _ALIGNED_VOCABULARY)):
        for layout, sizes in {
            "nt": (_HEAD_ROWS, words, _HEAD_WIDTH),
            "nn": (_HEAD_ROWS, _HEAD_WIDTH, words),
            "tn": (words, _HEAD_WIDTH, _HEAD_ROWS),
        }.items():
            yield _product(kind, "cuda", dtype, layout, sizes)


def _product(kind: str, device: str, dtype: str, layout: str, sizes: tuple[int, int, int]) -> Task:
    m, n, k = sizes

    def make() -> Callable[[], Any]:
        shape_a = (k, m) if layout == "tn" else (m, k)
        shape_b = (n, k) if layout == "nt" else (k, n)
        a, b = (random_values(shape, device, dtype) for shape in (shape_a, shape_b))
        left = a.t() if layout == "tn" else a
        right = b.t() if layout == "nt" else b
        out = torch.empty(m, n, device=device, dtype=_DTYPES[dtype])
        high = "high" if dtype == "tf32" else "highest"

        def call() -> None:
            torch.mm(left, right, out=out)

        torch.set_float32_matmul_precision(high)
        return call

    return Task(f"products in {dtype}", kind, dtype, layout, sizes, make)


def attentions(device: str, dtype: str, *, quick: bool) -> Iterator[Task]:
    """Fused attention and its backward pass, without and with a causal mask."""
    shapes: tuple[tuple[int, ...], ...] = ((2, 128, 12, 64),)
    if device == "cuda":
        shapes = ((128, 128, 16, 64), (16, 512, 16, 64), (8, 2048, 16, 64))
    for shape in shapes[:1] if quick else shapes:
        for causal in (False, True):
            for backward in (False, True):
                yield _attention(device, dtype, shape, causal=causal, backward=backward)


def _attention(
    device: str, dtype: str, shape: tuple[int, ...], *, causal: bool, backward: bool
) -> Task:
    batch, length, heads, head_dim = shape

    def make() -> Callable[[], Any]:
        whole = (batch, heads, length, head_dim)
        q, k, v = (random_values(whole, device, dtype).requires_grad_(backward) for _ in range(3))

        def forward() -> torch.Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        if not backward:
            return forward
        out = forward()
        grad = torch.ones_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

    words = ["backward" if backward else "forward", *(["causal"] if causal else [])]
    return Task("fused attention", "attention", dtype, " ".join(words), shape, make)


def random_values(shape: tuple[int, ...], device: str, dtype: str) -> torch.Tensor:
    """Small numbers; bits that are all alike would draw less power, and so run faster."""
    scale = 1 / math.sqrt(shape[-1])
    return torch.randn(shape, device=device, dtype=torch.float32).mul_(scale).to(_DTYPES[dtype])
