"""What one dispatched operator costs a device: its kernels, as `trace.work` notes them.

Counted is what a real run does: an operand that is broadcast is read at its real size, a table is
read where it is looked up, and what only a dispatch mode makes out of place is filled in place.
One operator is one kernel, but for those that `_SEVERAL` takes apart; views, empty tensors and the
host's own are dispatches without a kernel, and so is what crosses between host and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from rigsize.trace.quantized import packed

__all__ = ["Call", "Cost", "costs_of"]


class Cost(NamedTuple):
    """One kernel."""

    kind: str
    """gemm, gemm_4bit, or a `steptime.memory_bound.MemoryClass`."""
    dtype: str
    numbers: tuple[int, ...]
    """Of a product (batch, m, n, k); else the bytes of each operand that is read or written."""
    detail: str = ""
    """Of a product its layout, and of a grouped one behind a colon which of its sizes is that of
    all groups together."""


def costs_of(func: Any, args: Any, outputs: tuple[Any, ...], call: Call) -> list[Cost]:
    """The kernels of one call; none of a view or of what touches no tensor of the device."""
    rule = _rule(func)
    if not rule.has_kernel:
        return []
    made = [t for t in outputs if call.holds(t)]
    if not made or any(t.numel() == 0 for t in made[:1]):
        return []
    if rule.name in _PRODUCTS:
        return list(_PRODUCTS[rule.name](args, made[0], call))
    read = [t for t in _tensors(args) if isinstance(t, torch.Tensor)]
    if rule.kind == "copy" and any(not call.holds(t) and t.dim() for t in read):
        return []  # between host and device
    if rule.name in _SEVERAL:
        call = call._replace(in_place=call.in_place or rule.in_place)
        return list(_SEVERAL[rule.name](args, made[0], call))
    moved = [_bytes(t) for t in rule.read(args) if call.holds(t)]
    numbers = tuple(n for n in (*moved, *(_bytes(t) for t in made)) if n)
    return [Cost(rule.kind, _dtype(made[0]), numbers)]


class Call(NamedTuple):
    """What an operator alone does not tell."""

    device: str
    in_place: bool = False
    """A derivative's formula that a real run applies in place (`WRITTEN_IN_PLACE`)."""

    def holds(self, value: Any) -> bool:
        """Whether it is a tensor of the device."""
        return isinstance(value, torch.Tensor) and value.device.type == self.device


class _Rule(NamedTuple):
    name: str
    """Without namespace of aten, overload and the underscore of what works in place."""
    kind: str
    has_kernel: bool
    in_place: bool
    reads_nothing: bool
    written: tuple[int, ...]
    """Arguments that are written and not read."""

    def read(self, args: Any) -> list[torch.Tensor]:
        """The tensors whose values the kernel reads."""
        if self.reads_nothing:
            return []
        kept = [value for i, value in enumerate(args) if i not in self.written]
        return list(_tensors(kept))


@lru_cache(maxsize=4096)
def _rule(func: Any) -> _Rule:
    full = func.name().partition(".")[0]
    name = full.removeprefix("aten::").removesuffix("_") if full.startswith("aten::") else full
    mutable = func._schema.is_mutable
    view = func.is_view or name in _NO_KERNEL or full.startswith("prim::")
    view = view or name.removeprefix("new_").startswith("empty")
    fills = name in _WRITES_ONLY
    return _Rule(
        name=name,
        kind=_KINDS.get(name, "elementwise"),
        has_kernel=not view,
        in_place=mutable,
        reads_nothing=not mutable and (name.startswith("new_") or name.endswith("_like")),
        written=(0,) if mutable and fills else (),
    )


_NO_KERNEL = frozenset(
    "_unsafe_view _reshape_alias lift_fresh lift set resize record_stream is_pinned _pin_memory"
    " _local_scalar_dense is_same_size alias detach sym_size sym_stride sym_numel"
    " sym_storage_offset item _assert_scalar _assert_tensor_metadata".split()
)
_WRITES_ONLY = frozenset("copy fill zero normal uniform bernoulli random exponential".split())
_BY_KIND = {
    "softmax": "_softmax _log_softmax _safe_softmax",
    "softmax-backward": "_softmax_backward_data _log_softmax_backward_data",
    "layernorm": "native_layer_norm native_group_norm _fused_rms_norm native_batch_norm",
    "layernorm-backward": "native_layer_norm_backward native_group_norm_backward"
    " _fused_rms_norm_backward native_batch_norm_backward",
    "reduction": "sum mean amax amin max min var var_mean std std_mean norm linalg_vector_norm"
    " argmax argmin any all prod logsumexp cumsum cumprod cummax topk sort histc bincount nonzero"
    " dot vdot count_nonzero aminmax",
    "copy": "_to_copy clone copy cat stack constant_pad_nd roll flip repeat repeat_interleave"
    " index_copy slice_scatter select_scatter tril triu im2col",
}
_KINDS = {name: kind for kind, names in _BY_KIND.items() for name in names.split()}


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: torch.Tensor) -> int:
    """Of the elements that are there: a broadcast dimension has one."""
    held = packed(tensor)
    sizes = zip(held.shape, held.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * held.element_size()


def _all_bytes(values: Any, call: Call) -> int:
    return sum(_bytes(t) for t in _tensors(values) if call.holds(t))


# -- products -----------------------------------------------------------------------------------

_Costs = Iterator[Cost]
_Taken = Callable[[Any, torch.Tensor, Call], _Costs]


def layout_of(a: torch.Tensor, b: torch.Tensor) -> str:
    """How A and B of C = A B lie, as `steptime.gemm.Layout` calls it.

    Where both are transposed, B's place is not told: no layout of the time model has both.
    """
    first, second = _is_transposed(a), _is_transposed(b)
    return "tn" if first else "nt" if second else "nn"


def _is_transposed(matrix: torch.Tensor) -> bool:
    return matrix.stride(-1) != 1 and matrix.stride(-2) == 1


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.Tensor | None = None) -> _Costs:
    """C[.., m, n] = A[.., m, k] B[.., k, n]; a weight of torchao's is unpacked before."""
    unpacked = packed(b)
    if unpacked is not b:
        whole = math.prod(b.shape) * a.element_size()
        yield Cost("elementwise", _dtype(a), (_bytes(unpacked), whole))
    batch = math.prod(a.shape[:-2])
    numbers = (batch, a.shape[-2], b.shape[-1], a.shape[-1])
    yield Cost("gemm", _dtype(a if dtype is None else dtype), numbers, layout_of(a, b))


def _mm(args: Any, _out: torch.Tensor, _call: Call) -> _Costs:
    yield from _product(args[0], args[1])


def _addmm(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """A vector is added in the product's own epilogue, anything else is copied to C before."""
    added, a, b = args[:3]
    if added.dim() > 1:
        yield Cost("copy", _dtype(out), (_bytes(added), _bytes(out)))
    yield from _product(a, b)


def _mv(args: Any, _out: torch.Tensor, _call: Call) -> _Costs:
    matrix, vector = args[-2:] if len(args) == 2 else args[1:3]
    yield Cost("gemm", _dtype(matrix), (1, matrix.shape[0], 1, vector.shape[0]), "nn")


def _linear(args: Any, _out: torch.Tensor, _call: Call) -> _Costs:
    values, weight = args[:2]
    yield from _product(values.reshape(-1, values.shape[-1]), weight.t())


def _rows(values: torch.Tensor) -> int:
    return values.numel() // values.shape[-1]


def _packed_weight(kind: str) -> _Taken:
    """Of a product whose weight is no matrix that torch knows: n is the output's width."""

    def costs(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
        values = args[0]
        numbers = (1, _rows(values), out.shape[-1], values.shape[-1])
        yield Cost(kind, _dtype(values), numbers, "nt" if kind == "gemm" else "")

    return costs


def _int8_product(args: Any, out: torch.Tensor, call: Call) -> _Costs:
    """Whole numbers, and the kernel that scales them to 16 bit (`int8_mm_dequant`)."""
    yield from _packed_weight("gemm")(args, out, call)
    yield Cost("elementwise", "float16", (_bytes(out), _bytes(out) // 2))


def _grouped(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """Experts' products: the rows of all groups lie one after another, in A or B or between."""
    a, b = args[:2]
    layout = layout_of(a, b)
    if a.dim() == b.dim() == 3:
        yield from _product(a, b)
    elif b.dim() == 3:
        numbers = (b.shape[0], a.shape[0], b.shape[2], a.shape[1])
        yield Cost("gemm", _dtype(a), numbers, f"{layout}:m")
    elif a.dim() == 3:
        numbers = (a.shape[0], a.shape[1], b.shape[1], a.shape[2])
        yield Cost("gemm", _dtype(a), numbers, f"{layout}:n")
    else:
        numbers = (out.shape[0], a.shape[0], b.shape[1], a.shape[1])
        yield Cost("gemm", _dtype(a), numbers, f"{layout}:k")


def _convolution(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """As the product it is: positions by output channels over the window."""
    values, weight, groups = args[0], args[1], args[8]
    places = math.prod(values.shape[2:]) if args[6] else math.prod(out.shape[2:])
    channels, window = weight.shape[0] // groups, math.prod(weight.shape[1:])
    numbers = (groups, values.shape[0] * places, channels, window)
    yield Cost("gemm", _dtype(values), numbers, "nt")


def _convolution_backward(args: Any, _out: torch.Tensor, call: Call) -> _Costs:
    grad, values, weight, groups, wanted = args[0], args[1], args[2], args[9], args[10]
    places = math.prod(values.shape[2:]) if args[7] else math.prod(grad.shape[2:])
    rows = values.shape[0] * places
    channels, window = weight.shape[0] // groups, math.prod(weight.shape[1:])
    if wanted[0]:
        yield Cost("gemm", _dtype(grad), (groups, rows, window, channels), "nn")
    if wanted[1]:
        yield Cost("gemm", _dtype(grad), (groups, channels, window, rows), "tn")
    if wanted[2]:
        yield Cost("reduction", _dtype(grad), (_all_bytes([grad], call),))


_PRODUCTS: dict[str, _Taken] = {
    "mm": _mm,
    "bmm": _mm,
    "_int_mm": _mm,
    "_scaled_mm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "mv": _mv,
    "addmv": _mv,
    "linear": _linear,
    "_grouped_mm": _grouped,
    "_scaled_grouped_mm": _grouped,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "bitsandbytes::int8_linear_matmul": _int8_product,
    "_weight_int8pack_mm": _packed_weight("gemm"),
    "_weight_int4pack_mm": _packed_weight("gemm_4bit"),
    "bitsandbytes::gemm_4bit": _packed_weight("gemm_4bit"),
}


# -- operators of several kernels, or that read less than they are given --------------------------


def _looked_up(kind: str) -> _Taken:
    """Reads as many elements of its table as it writes, and the indices."""

    def costs(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
        indices = [t for t in _tensors(args[1:]) if not t.is_floating_point()]
        yield Cost(kind, _dtype(out), (_bytes(out), _bytes(out), *map(_bytes, indices)))

    return costs


def _scattered(args: Any, out: torch.Tensor, call: Call) -> _Costs:
    """A copy of what is written into, unless it is done in place; then the values, read-modified.

    `new_zeros` of a derivative's formula is its own operator before.
    """
    if not call.in_place:
        yield Cost("copy", _dtype(out), (_bytes(args[0]), _bytes(out)))
    values = [_bytes(t) for t in _tensors(args[1:])]
    whole = max(values, default=0)
    yield Cost("copy", _dtype(out), (*(n for n in values if n), *((whole,) if whole else ())))


def _embedding_backward(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """Zeros as large as the table, then the gradient's rows added to some of them."""
    grad, indices = args[:2]
    yield Cost("elementwise", _dtype(out), (_bytes(out),))
    yield Cost("embedding-backward", _dtype(out), (3 * _bytes(grad), _bytes(indices)))


def _part_backward(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """`slice_backward`, `select_backward`: zeros, then a copy into a part of them."""
    yield Cost("elementwise", _dtype(out), (_bytes(out),))
    yield Cost("copy", _dtype(out), (_bytes(args[0]), _bytes(args[0])))


def _nll(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """Reads one log-probability a row."""
    target = args[1]
    yield Cost("reduction", _dtype(out), (_bytes(target), target.numel() * out.element_size()))


def _nll_backward(args: Any, out: torch.Tensor, _call: Call) -> _Costs:
    """Zeros as large as the logits, then one element a row."""
    target = args[2]
    yield Cost("elementwise", _dtype(out), (_bytes(out),))
    yield Cost("elementwise", _dtype(out), (_bytes(target), target.numel() * out.element_size()))


_SEVERAL: dict[str, _Taken] = {
    "embedding": _looked_up("embedding"),
    "index": _looked_up("copy"),
    "index_select": _looked_up("copy"),
    "gather": _looked_up("copy"),
    "take": _looked_up("copy"),
    "index_put": _scattered,
    "index_add": _scattered,
    "scatter": _scattered,
    "scatter_add": _scattered,
    "scatter_reduce": _scattered,
    "masked_scatter": _scattered,
    "embedding_dense_backward": _embedding_backward,
    "slice_backward": _part_backward,
    "select_backward": _part_backward,
    "nll_loss_forward": _nll,
    "nll_loss_backward": _nll_backward,
}
