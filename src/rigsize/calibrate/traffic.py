"""Operators that only move bytes, one of each class, and the optimizer's step.

Bytes are counted as `trace.work_costs` counts them: every operand that is read or written, of a
table the rows that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from rigsize.calibrate.kernels import Task, random_values

__all__ = ["adamw_step", "traffic"]

_ROW = 1024
"""Elements of a row that softmax and LayerNorm go over."""
_TABLE_ROWS = 8192
_TENSOR = 2**20
"""Parameters of one tensor that AdamW steps on."""

Call = Callable[[], Any]


def traffic(device: str, *, quick: bool) -> Iterator[Task]:
    """One operator of each memory-bound class over fp32, on a GPU too large for any cache."""
    sizes = (2**26, 2**28) if device == "cuda" else (2**21, 2**24)
    for n in sizes[:1] if quick else sizes:
        for kind, (words, operator) in _OPERATORS.items():

            def make(operator: Callable[[str, int], Call] = operator, n: int = n) -> Call:
                return operator(device, n)

            what = f"{kind} operators"
            yield Task(what, "memory", kind, "", (round(4 * n * words),), make)


def adamw_step(device: str, parameters: int, *, fused: bool) -> Call:
    """A call that makes one step over fp32 parameters, in tensors of a million."""
    each = min(parameters, _TENSOR)
    tensors = [
        torch.nn.Parameter(random_values((each,), device, "fp32"))
        for _ in range(max(1, parameters // each))
    ]
    for tensor in tensors:
        tensor.grad = random_values((each,), device, "fp32")
    step: Call = torch.optim.AdamW(tensors, fused=fused).step
    step()  # which makes the states
    return step


def _rows(device: str, n: int) -> torch.Tensor:
    return random_values((n // _ROW, _ROW), device, "fp32")


def _copy(device: str, n: int) -> Call:
    source, target = _rows(device, n), _rows(device, n)
    return lambda: target.copy_(source)


def _elementwise(device: str, n: int) -> Call:
    a, b, out = (_rows(device, n) for _ in range(3))
    return lambda: torch.add(a, b, out=out)


def _reduction(device: str, n: int) -> Call:
    a = _rows(device, n)
    return lambda: a.sum(-1)


def _softmax(device: str, n: int) -> Call:
    a = _rows(device, n)
    return lambda: functional.softmax(a, -1)


def _softmax_backward(device: str, n: int) -> Call:
    grad, out = _rows(device, n), functional.softmax(_rows(device, n), -1)
    backward = torch.ops.aten._softmax_backward_data
    return lambda: backward(grad, out, -1, torch.float32)


def _layernorm(device: str, n: int) -> Call:
    a, (weight, bias) = _rows(device, n), _affine(device)
    return lambda: functional.layer_norm(a, (_ROW,), weight, bias)


def _layernorm_backward(device: str, n: int) -> Call:
    grad, a, (weight, bias) = _rows(device, n), _rows(device, n), _affine(device)
    _, mean, rstd = torch.ops.aten.native_layer_norm(a, (_ROW,), weight, bias, 1e-5)
    backward, wanted = torch.ops.aten.native_layer_norm_backward, (True, True, True)
    return lambda: backward(grad, a, (_ROW,), mean, rstd, weight, bias, wanted)


def _affine(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(_ROW, device=device), torch.zeros(_ROW, device=device)


def _embedding(device: str, n: int) -> Call:
    table, words = random_values((_TABLE_ROWS, _ROW), device, "fp32"), _words(device, n)
    return lambda: functional.embedding(words, table)


def _embedding_backward(device: str, n: int) -> Call:
    grad, words = _rows(device, n), _words(device, n)
    backward = torch.ops.aten.embedding_dense_backward
    return lambda: backward(grad, words, _TABLE_ROWS, -1, False)


def _words(device: str, n: int) -> torch.Tensor:
    return torch.randint(0, _TABLE_ROWS, (n // _ROW,), device=device)


def _optimizer(device: str, n: int) -> Call:
    return adamw_step(device, n // 4, fused=True)


# By class: fp32 words that the call moves for each of n elements, and the call.
_OPERATORS: dict[str, tuple[float, Callable[[str, int], Call]]] = {
    "copy": (2, _copy),
    "elementwise": (3, _elementwise),
    "reduction": (1, _reduction),
    "softmax": (2, _softmax),
    "softmax-backward": (3, _softmax_backward),
    "layernorm": (2, _layernorm),
    "layernorm-backward": (3, _layernorm_backward),
    "embedding": (2, _embedding),
    "embedding-backward": (3, _embedding_backward),
    "optimizer": (7 / 4, _optimizer),
}
