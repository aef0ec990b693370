"""The recorder: every storage's birth and death, in order, with operator, module and phase.

A birth is seen at the operator that returns a new storage, a death by a weak reference; both are
exact under FakeTensorMode because the Python and autograd references are the real ones. What the
recorder notes beside them (kernels with scratch, attention nodes, gradients that became ready) is
what a Program needs to add what no dispatch mode sees.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rigsize.trace import values as token_values
from rigsize.trace.masks import KnownOnes, answered
from rigsize.trace.ownership import counts_of_sole_owner, engine_may_add_into
from rigsize.trace.taken_apart import kernels_of
from rigsize.trace.work import WorkLog, WorkNote

ALLOC, FREE, KERNEL, ATTENTION, ATTENTION_BACKWARD, GRADIENT, CARRY = range(7)
KIND_NAMES = ("alloc", "free", "kernel", "attention", "attention_backward", "gradient", "carry")

LEAF_SEQUENCE_NUMBER = 1 << 62
"""AccumulateGrad nodes carry the largest sequence number there is, to run as early as possible."""


@dataclass(slots=True)
class RawEvent:
    """One event of a concrete trace."""

    kind: int
    storage: int
    """Storage id; the output's for ATTENTION*, the gradient's for GRADIENT, -1 for KERNEL."""
    group: int
    """0 outside the layers, else the number of the layer whose code runs."""
    phase: str
    op: str = ""
    module: str = ""
    num_bytes: int = 0
    numbers: tuple[int, ...] = ()
    """Sizes that depend on the batch: fitted like bytes."""
    label: tuple[Any, ...] = ()
    """What does not: kernel name, dtype, mask kind, parameter name."""
    outputs: tuple[int, ...] = ()
    """ATTENTION_BACKWARD: storages of dq, dk, dv, dbias (-1: none)."""
    meets: int = -1
    """ALLOC of a sum that is made in place where no dispatch mode looks: the storage of that."""


@dataclass(slots=True)
class RawTrace:
    """The events of one step at one concrete size."""

    events: list[RawEvent] = field(default_factory=list)
    persistent: dict[int, str] = field(default_factory=dict)
    """Storages that lived before the step: id to `parameter:NAME`, `buffer:NAME`, `input:NAME`,
    `state:NAME`."""
    persistent_groups: dict[int, int] = field(default_factory=dict)
    """The layer of each of them that a pass before left in it."""
    persistent_bytes: dict[int, int] = field(default_factory=dict)
    work: list[WorkNote] = field(default_factory=list)
    """The dispatches and kernels of the same step, in order."""


class Layers:
    """Which layer a module call or a backward node belongs to.

    Autograd numbers the nodes of the forward pass; the ranges of numbers in which each layer ran
    tell to which layer a node belongs when the backward pass reaches it.
    """

    def __init__(self, numbers: dict[torch.nn.Module, int], last_of_stack: frozenset[int]) -> None:
        self.numbers = numbers
        self.last_of_stack = last_of_stack
        self.current = 0
        self._inside = 0
        self._starts, self._groups, self._modules = [0], [0], [""]

    def enter(self, module: torch.nn.Module) -> None:
        """A module is called; a layer within a layer counts for the outer one."""
        if module in self.numbers:
            if not self._inside:
                self.current = self.numbers[module]
            self._inside += 1

    def leave(self, module: torch.nn.Module, *, forward: bool) -> None:
        """What runs between two layers counts for the earlier: one segment a layer."""
        if module in self.numbers:
            self._inside -= 1
            if not self._inside and (not forward or self.current in self.last_of_stack):
                self.current = 0

    def mark(self, module: str) -> None:
        """From the present sequence number on, forward nodes belong to here."""
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if self._starts[-1] == number:
            self._groups[-1], self._modules[-1] = self.current, module
        else:
            self._starts.append(number)
            self._groups.append(self.current)
            self._modules.append(module)

    def of_node(self, node: Any) -> tuple[int, str] | None:
        """(group, module) of a backward node; None for accumulation into a leaf."""
        number = node._sequence_nr()
        if number >= LEAF_SEQUENCE_NUMBER:
            return None
        index = bisect.bisect_right(self._starts, number) - 1
        return self._groups[index], self._modules[index]


class Recorder(TorchDispatchMode):
    """Records one step; enter it inside the FakeTensorMode, with `watch_modules` around both."""

    def __init__(
        self,
        names: dict[torch.nn.Module, str],
        layers: Layers,
        device: str,
        *,
        saves_on_host: bool = False,
        checked_value: bool | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saves_on_host = saves_on_host and device != "cpu"
        self.checked_value = checked_value
        self.work = WorkLog(layers, device)
        self.trace = RawTrace(work=self.work.notes)
        self.names = names
        self.layers = layers
        self.device = device
        self.phase = "setup"
        self._stack: list[torch.nn.Module] = []
        self._live: dict[int, int] = {}
        self._refs: dict[int, Any] = {}
        self._next = 0
        self._backward_at: tuple[int, str] = (0, "")
        self._node_serial = 0
        self._last_node: Any = None
        self._born_at: dict[int, int] = {}
        self._gemm_seen: set[str] = set()
        self._packed: dict[int, int] = {}
        """By the address of a host copy: the storage it was made of."""
        self._copy_of: dict[int, int] = {}
        """Of what came back from the host: the storage that was sent there."""
        self._math_attention_since = -1
        self._ones = KnownOnes()
        self._apart = kernels_of(device)
        self._sole_owner = counts_of_sole_owner()  # before the step: it runs a small one itself

    def set_phase(self, phase: str) -> None:
        """Called by the step function at its own seams."""
        self.phase = phase
        self._last_node = None  # else the graph's last node would hold its leaf beyond the step

    def _place(self) -> tuple[int, str]:
        module = self.names.get(self._stack[-1], "") if self._stack else ""
        if self.phase != "backward":
            return self.layers.current, module
        node = torch._C._current_autograd_node()
        if node is not None and node is not self._last_node:
            self._last_node = node
            self._node_serial += 1
            self._backward_at = self.layers.of_node(node) or self._backward_at
        # A module on the stack means recomputation, asked for by a node of the same layer.
        return self._backward_at[0], module or self._backward_at[1]

    def enter_module(self, module: torch.nn.Module) -> None:
        """Called before each module's forward."""
        self._stack.append(module)
        self.layers.enter(module)
        if self.phase == "forward":
            self.layers.mark(self.names.get(module, ""))

    def leave_module(self, module: torch.nn.Module) -> None:
        """Called after it, errors included."""
        self._stack.pop()
        self.layers.leave(module, forward=self.phase == "forward")
        if self.phase == "forward":
            self.layers.mark(self.names.get(self._stack[-1], "") if self._stack else "")

    def stand_in(self, layer: torch.nn.Module | None) -> None:
        """What runs from here on is that layer's though no module of it is called."""
        self.layers.current = self.layers.numbers[layer] if layer is not None else 0
        self.layers.mark(self.names.get(layer, "") if layer is not None else "")

    @contextlib.contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Tells the recorder of every module call; hooks would show in the modules themselves."""
        original = torch.nn.Module.__call__

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.enter_module(module)
            try:
                return original(module, *args, **kwargs)
            finally:
                self.leave_module(module)

        torch.nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with self._watch_math_attention(), answered(self._is_ones, self._is_given):
                yield
        finally:
            torch.nn.Module.__call__ = original  # type: ignore[method-assign]

    @contextlib.contextmanager
    def _watch_math_attention(self) -> Iterator[None]:
        """Attention in plain operators adds its mask in place, but not under a dispatch mode.

        `_scaled_dot_product_attention_math` of `aten/src/ATen/native/transformers/attention.cpp`
        asks `areAnyTensorSubclassLike`. What is born after `_math_attention_since` belongs to it.
        """
        functional: Any = torch.nn.functional
        original = functional.scaled_dot_product_attention

        def attention(*args: Any, **kwargs: Any) -> Any:
            self._math_attention_since = self._next
            try:
                return original(*args, **kwargs)
            finally:
                self._math_attention_since = -1

        functional.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original

    def _is_ones(self, mask: torch.Tensor) -> bool:
        return self.storage_of(mask) in self._ones

    def _is_given(self, tensor: torch.Tensor) -> bool:
        return self.storage_of(tensor) in self.trace.persistent

    def adopt(self, tensor: torch.Tensor, label: str) -> None:
        """A tensor that lives before the step: a parameter, a buffer, an input."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._live:
            number = self._follow(storage)
            self.trace.persistent[number] = label
            self.trace.persistent_bytes[number] = storage.nbytes()

    def adopt_state(self, name: str, group: int, tensor: torch.Tensor) -> None:
        """What the pass before left; `group` is its layer, 0 outside. Views count once."""
        if self.storage_of(tensor) < 0:
            self.adopt(tensor, f"state:{name}")
            self.trace.persistent_groups[self.storage_of(tensor)] = group

    def carry(self, name: str, group: int, tensor: torch.Tensor) -> None:
        """Marks what the next pass will know as `name`."""
        self.trace.events.append(
            RawEvent(CARRY, self.storage_of(tensor), group, "carry", label=(f"state:{name}",))
        )

    def storage_of(self, tensor: torch.Tensor | None) -> int:
        """The id of a live tensor's storage, -1 if it was never seen."""
        return -1 if tensor is None else self._live.get(tensor.untyped_storage()._cdata, -1)

    def gradient_ready(self, name: str, parameter: torch.Tensor) -> None:
        """Marks the moment at which `parameter.grad` holds the accumulated gradient."""
        self._append(GRADIENT, self.storage_of(parameter.grad), label=(name,))

    def _append(self, kind: int, storage: int, op: str = "", **fields: Any) -> RawEvent:
        group, module = self._place()
        event = RawEvent(kind, storage, group, self.phase, op, module, **fields)
        self.trace.events.append(event)
        return event

    def _follow(self, storage: Any) -> int:
        number, key = self._next, storage._cdata
        self._next += 1
        self._live[key] = number
        self._refs[number] = weakref.ref(storage, functools.partial(self._died, key, number))
        return number

    def _died(self, key: int, number: int, _ref: Any) -> None:
        if self._live.get(key) == number:
            del self._live[key]
        if self._refs.pop(number, None) is not None:
            self._append(FREE, number)

    def close(self) -> None:
        """Stops listening: what dies from here on is not part of the step."""
        self._refs.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kernel = self._apart.get(func.name())
        if kernel is not None:
            with self:  # what it is taken apart to is recorded in its place
                apart = kernel(*args, **(kwargs or {}))
            self.work.taken_apart(func, args, apart, self.phase)
            return apart
        out = token_values.answered(func.name(), args, self.checked_value)
        if out is NotImplemented:
            out = func(*token_values.with_rows(func.name(), args), **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._record(func, args, kwargs or {}, (out,))
        elif isinstance(out, (tuple, list)):
            self._record(func, args, kwargs or {}, tuple(out))
        else:
            self.work.dispatched(func, args, (), self.phase, in_place=False)
        return out

    def _record(self, func: Any, args: Any, kwargs: Any, outputs: tuple[Any, ...]) -> None:
        name = func.name()
        if name in ATTENTIONS:
            figures = ATTENTIONS[name](args)
            event = self._append(ATTENTION, self._birth(outputs[0], name), name, **figures)
            self.work.attended(event.storage, figures, self.phase)
            return
        if name == "rigsize::attention_backward":
            births = tuple(self._birth(tensor, name) for tensor in outputs)
            out = self.storage_of(args[5])
            out = self._copy_of.get(out, out)
            self._append(ATTENTION_BACKWARD, out, name, outputs=births)
            self.work.attended_back(out, self.phase)
            return
        for tensor in outputs:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self._allocate(tensor, name, args)
        if name == "aten::copy_":
            self._note_save(*args[:2])
        scratch = KERNELS.get(name)
        if scratch is not None and (found := scratch(args, kwargs)) is not None:
            self._kernel(name, *found)
        fills = name.partition(".")[0] in WRITTEN_IN_PLACE and self._written_into(args[0])
        self.work.dispatched(func, args, outputs, self.phase, in_place=fills)

    def _birth(self, tensor: torch.Tensor, _op: str) -> int:
        """The id of an attention output; -1 for the empty stand-in of a gradient not asked for."""
        if tensor.numel() == 0:
            return -1
        self._place()  # lets the node serial advance before the birth is dated
        number = self._follow(tensor.untyped_storage())
        self._born_at[number] = self._node_serial
        return number

    def _allocate(self, tensor: torch.Tensor, name: str, args: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            if name.partition(".")[0].endswith("_"):
                self._ones.written(self._live[storage._cdata])
            return
        num_bytes = storage.nbytes()
        if name == "aten::native_layer_norm" and self.device == "cpu":
            num_bytes = _bytes_on_cpu(tensor, args)
        figures = SIZED[name](args) if name in SIZED else {}
        event = self._append(ALLOC, self._follow(storage), name, num_bytes=num_bytes, **figures)
        if name == "aten::_to_copy" and args[0].untyped_storage()._cdata in self._packed:
            self._copy_of[event.storage] = self._packed[args[0].untyped_storage()._cdata]
        self._born_at[event.storage] = self._node_serial
        operator = name.partition(".")[0]
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        self._ones.born(operator, self.storage_of(first), event.storage)
        if name == "aten::add.Tensor":
            event.meets = self._added_into(args[0], args[1], tensor)
        elif operator in WRITTEN_IN_PLACE and self._written_into(args[0]):
            event.meets = self.storage_of(args[0])

    def _note_save(self, host: torch.Tensor, device: torch.Tensor) -> None:
        """A copy to the host in the forward pass: what `save_on_cpu` packs.

        Source: `save_on_cpu` of torch/autograd/graph.py, the branch for pinned memory.
        """
        to_host = host.device.type == "cpu" and device.device.type == self.device
        if not to_host or self.phase != "forward" or not self._saves_on_host:
            return
        source = self.storage_of(device)
        weight = self.trace.persistent.get(source, "").startswith("parameter:")
        label = "save_weight" if weight else "save"
        num_bytes = host.numel() * host.element_size()
        self._append(KERNEL, -1, "save_on_cpu", label=(label,), numbers=(num_bytes,))
        self._packed[host.untyped_storage()._cdata] = source

    def _added_into(self, first: Any, second: Any, total: torch.Tensor) -> int:
        """The storage that a real run adds into where this run made a new one, else -1."""
        if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
            return -1  # a Python number takes part (`torch.add(0.3, mask)` of Phi-MoE)
        if first.shape != total.shape:
            return -1
        number = self.storage_of(first)
        if number >= self._math_attention_since >= 0:
            return number
        if self.phase != "backward" or self._stack or not self._came_earlier(number):
            return -1
        return number if engine_may_add_into(first, self._sole_owner) else -1

    def _written_into(self, zeros: torch.Tensor) -> bool:
        """Whether a derivative's formula fills a tensor that the same node has just made."""
        number = self.storage_of(zeros)
        in_formula = self.phase == "backward" and not self._stack
        return in_formula and self._born_at.get(number, 0) == self._node_serial

    def _came_earlier(self, number: int) -> bool:
        """Whether a gradient came from a node before, or from this node by another edge.

        The engine adds what two edges deliver; a formula of a derivative adds what it has just
        made itself. A node has two edges to the same input after `x * x`.
        """
        if 0 < self._born_at.get(number, 0) < self._node_serial:
            return True
        edges = getattr(torch._C._current_autograd_node(), "next_functions", ())
        return number in self._born_at and len(set(edges)) < len(edges)

    def _kernel(self, op: str, label: str, numbers: tuple[int, ...]) -> None:
        if label == "gemm":
            # One cuBLAS workspace a thread, made at its first product: the forward's and the
            # autograd thread's.
            side = "backward" if self.phase == "backward" else "forward"
            if side in self._gemm_seen:
                return
            self._gemm_seen.add(side)
        self._append(KERNEL, -1, op, label=(label,), numbers=numbers)


def _bytes_on_cpu(output: torch.Tensor, args: Any) -> int:
    """Mean and rstd are kept in the weight's type where it is wider than the input's.

    `layer_norm_cpu` of ATen/native/layer_norm.cpp (`param_scalar_type`); torch's own fake kernel
    gives them the input's, on the CPU alone.
    """
    values, weight = args[0], args[2]
    is_statistic = output.shape[-1] == 1 and output.numel() * math.prod(args[1]) == values.numel()
    wider = weight is not None and weight.element_size() > output.element_size()
    return output.numel() * (weight if is_statistic and wider else output).element_size()


def _attention(args: Any) -> dict[str, Any]:
    """The figures of an attention node, split in what varies with the batch and what does not."""
    q, k, v, mask, dropout, causal, gqa, needs_grad = args
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "float"
    mask_shape = (0, 0, 0, 0) if mask is None else (1,) * (4 - mask.dim()) + tuple(mask.shape)
    numbers = (*q.shape, k.shape[1], k.shape[2], v.shape[3], *mask_shape)
    dtype = str(q.dtype).removeprefix("torch.")
    label = (dtype, kind, bool(causal), float(dropout), bool(gqa), bool(needs_grad))
    return {"numbers": tuple(int(n) for n in numbers), "label": label}


def _packed_attention(args: Any) -> dict[str, Any]:
    """The same figures with B texts of at most S tokens and no mask, and N behind them."""
    q, k, v, offsets, longest, dropout, causal, needs_grad = args
    tokens, heads, width = q.shape
    B, no_mask = offsets.shape[0] - 1, (0, 0, 0, 0)
    numbers = (B, heads, longest, width, k.shape[1], longest, v.shape[2], *no_mask, tokens)
    dtype = str(q.dtype).removeprefix("torch.")
    label = (dtype, "none", bool(causal), float(dropout), heads != k.shape[1], bool(needs_grad))
    return {"numbers": tuple(int(n) for n in numbers), "label": label}


ATTENTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rigsize::attention": _attention,
    "rigsize::packed_attention": _packed_attention,
}


def _product_4bit(args: Any) -> dict[str, Any]:
    """Rows and the weight's shape; bytes an element, and whether the scales are packed too."""
    values, _, (outputs, inputs), *_ = args
    nested = len(args) > NESTED_SCALES and args[NESTED_SCALES] is not None
    numbers = (values.numel() // inputs, outputs, inputs)
    return {"numbers": numbers, "label": (values.itemsize, nested)}


NESTED_SCALES = 7
"""Of `bitsandbytes::gemm_4bit`'s arguments, `absmax_8bit`."""


SIZED: dict[str, Callable[[Any], dict[str, Any]]] = {"bitsandbytes::gemm_4bit": _product_4bit}
"""Operators with one output whose kernel depends on the size (`program.four_bit`)."""


def _gemm(_args: Any, _kwargs: Any) -> tuple[str, tuple[int, ...]]:
    return "gemm", ()


def _column_sum(args: Any, _kwargs: Any) -> tuple[str, tuple[int, ...]] | None:
    """A sum over the leading dimensions, which is what a bias gradient is."""
    tensor, dims = args[0], args[1] or []
    reduced = sorted(d % tensor.dim() for d in dims)
    if not reduced or reduced != list(range(len(reduced))) or len(reduced) == tensor.dim():
        return None
    rows = math.prod(tensor.shape[: len(reduced)])
    return "column_sum", (rows, tensor.numel() // max(rows, 1))


def _embedding_backward(args: Any, _kwargs: Any) -> tuple[str, tuple[int, ...]]:
    grad, indices, num_weights = args[0], args[1], args[2]
    return "embedding_backward", (indices.numel(), int(num_weights), grad.shape[-1])


def _layer_norm_backward(args: Any, _kwargs: Any) -> tuple[str, tuple[int, ...]]:
    width = math.prod(args[2])
    return "layer_norm_backward", (args[1].numel() // width, width)


WRITTEN_IN_PLACE = frozenset(
    {
        "aten::index_put",
        "aten::index_add",
        "aten::scatter",
        "aten::scatter_add",
        "aten::masked_scatter",
    }
)
"""Formulas of derivatives fill fresh zeros by these in place, but not under a dispatch mode.

`index_backward`, `value_selecting_reduction_backward` of torch/csrc/autograd/FunctionsManual.cpp,
`gather_backward` of ATen/native/TensorAdvancedIndexing.cpp, `index_select_backward_symint` of
ATen/native/TensorShape.cpp: `areAnyTensorSubclassLike`, `isTensorSubclassLike`.
"""

KERNELS: dict[str, Callable[[Any, Any], tuple[str, tuple[int, ...]] | None]] = {
    "aten::mm": _gemm,
    "aten::addmm": _gemm,
    "aten::bmm": _gemm,
    "aten::baddbmm": _gemm,
    "aten::sum.dim_IntList": _column_sum,
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::native_layer_norm_backward": _layer_norm_backward,
}
"""Operators whose CUDA kernels allocate what no dispatch mode sees (`memory.kernel_scratch`)."""


def join_additions(trace: RawTrace) -> RawTrace:
    """Undoes the additions that only a dispatch mode makes out of place.

    Such a sum is a birth followed at once by the death of what it was added to; both go, and the
    sum keeps the storage of the first.
    """
    joined: dict[int, int] = {}
    events: list[RawEvent] = []
    skip = -1
    for index, event in enumerate(trace.events):
        if index == skip:
            continue
        if event.meets >= 0 and _dies_at(trace.events, index + 1, event.meets):
            joined[event.storage] = joined.get(event.meets, event.meets)
            skip = index + 1
            continue
        event.storage = joined.get(event.storage, event.storage)
        event.outputs = tuple(joined.get(s, s) for s in event.outputs)
        events.append(event)
    trace.events = events
    return trace


def _dies_at(events: list[RawEvent], index: int, storage: int) -> bool:
    return index < len(events) and events[index].kind == FREE and events[index].storage == storage
