"""What a trace says a step computes, against torch's own counters of a real step on the CPU.

FlopCounterMode counts products exactly; torch.profiler counts the operators that were dispatched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiers import exhaustive, thinned
from tests.trace.referee import profiled, real_step, traced
from tests.trace.test_profile import KEY, SIZES, deep
from tests.trace.tiny import CONFIGS, Case
from tests.trace.tiny import SIZES as POINT
from torch._C._profiler import _EventType
from torch.utils.flop_counter import FlopCounterMode

from rigsize.trace.capture import Traced
from rigsize.trace.domains import all_labels
from rigsize.trace.fold_work import work_mismatch
from rigsize.trace.model import load_config
from rigsize.trace.profile import pack, unpack
from rigsize.trace.recorder import RawTrace
from rigsize.trace.session import Session
from rigsize.trace.work_costs import Call, Cost, costs_of

aten = torch.ops.aten
HERE = Call("meta")

FAMILIES = (
    ("xlm-roberta", "masked-lm"),
    ("llama", "causal-lm"),
    ("t5", "seq2seq-lm"),
    ("bart", "seq2seq-lm"),
    ("deberta-v2", "masked-lm"),
    ("gpt2", "causal-lm"),
)
CASES = [
    Case(family=family, task=task, attention="eager", compute=compute, recompute=recompute)
    for family, task in FAMILIES
    for compute, recompute in (("fp32", "none"), ("amp", "none"), ("fp32", "block"))
]


def on_the_accelerator(case: Case) -> RawTrace:
    options = case.options()
    model = Traced(load_config(CONFIGS[case.family], options), options)
    return model.record(POINT, padded=case.padded, hold_output=case.hold_output)


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(CASES, every=4), ids=str)
def test_the_flops_of_products_are_those_torch_counts(case: Case) -> None:
    trace = on_the_accelerator(case)
    _, step = real_step(case)
    with FlopCounterMode(display=False) as counter:
        step()
    products = [note for note in trace.work if note.kind == "gemm"]
    assert sum(2 * math.prod(note.numbers) for note in products) == counter.get_total_flops()


NOT_COMPARED = {
    "aten::scalar_tensor": "a Python number becomes a tensor only under a dispatch mode",
    "aten::view": "a composite asks for a view otherwise under a dispatch mode: two to six a step",
    "aten::fill": "part of `aten::full` without a dispatch mode",
}
STOPPED_EARLY = ("aten::mm", "aten::mul")
"""The last operator of a recomputed layer: the profiler saw it called, but when it saves its input
the checkpoint has all it wants and stops it before its kernel runs."""


def _same(names: Iterable[str]) -> Counter[str]:
    """In place or not: gradients that meet are added in place without a dispatch mode."""
    told = (name.partition(".")[0].removesuffix("_") for name in names)
    return Counter(name.replace("new_zeros", "zeros") for name in told)


def _called(nodes: Iterable[Any], known: set[str]) -> Iterator[str]:
    """The outermost operators that the trace knows by name."""
    for node in nodes:
        if node.typed[0] == _EventType.TorchOp and node.name.removesuffix("_") in known:
            yield node.name
        else:
            yield from _called(node.children, known)


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(CASES[:9], every=4), ids=str)
def test_as_many_operators_are_dispatched_as_the_profiler_saw(case: Case) -> None:
    ours = _same(note.op for note in traced(case).work if note.kind == "dispatch")
    real = _same(_called(profiled(case), {*ours, "aten::new_zeros"}))
    differ = {name for name in ours | real if ours[name] != real[name]} - set(NOT_COMPARED)
    if case.recompute == "block":
        late = {n for n in differ & set(STOPPED_EARLY) if 0 < real[n] - ours[n] <= 4}
        differ -= late
    assert differ == set()
    assert ours.total() == pytest.approx(real.total(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "labels"),
    [
        ("xlm-roberta", {"task": "masked-lm", "compute": "amp"}, ["bN.sx.0", "b1.s8.0"]),
        *map(
            exhaustive,
            (
                ("llama", {"compute": "amp", "recompute": "block"}, []),
                ("t5", {"task": "seq2seq-lm", "use": "inference"}, []),
                ("xlm-roberta", {"task": "masked-lm", "unpadded": "flash", "loss": "chunked"}, []),
            ),
        ),
    ],
)
def test_the_work_of_every_size_is_a_fresh_trace(
    family: str, changes: dict[str, Any], labels: list[str]
) -> None:
    session = Session(deep(family, 9), replace(KEY, **changes), 131)
    labels = labels or all_labels(session.limits)
    work = unpack(pack(session.work(labels)))
    assert set(work.domains) == set(labels)
    bodies = [(point, work.body_at(point)) for point in SIZES]
    assert sum(body is not None for _, body in bodies) == len(labels)
    for point, body in bodies:
        if body is not None:
            assert work_mismatch(body, session.record(point), point) == ""
    point, body = next((p, b) for p, b in bodies if b is not None)
    wrong = {**point, "B": point["B"] + 1, "N": point["N"] + 1}
    assert work_mismatch(body, session.record(wrong), point) != ""


def test_work_alone_is_the_work_that_came_along() -> None:
    session = Session(CONFIGS["xlm-roberta"], replace(KEY, task="masked-lm"), 131)
    with_memory = session.profile(["bN.s8.0"])
    along = session.work(["bN.s8.0"])
    alone = Session(CONFIGS["xlm-roberta"], replace(KEY, task="masked-lm"), 131)
    assert alone.work(["bN.s8.0"]) == along
    assert along.tensors == with_memory.tensors
    assert not any(along.bodies[0].births)


def test_int8_rounds_rows_multiplies_and_scales_each_product() -> None:
    pytest.importorskip("bitsandbytes")
    case = Case(
        family="llama", task="causal-lm", compute="half", training=False, quantization="int8"
    )
    notes = on_the_accelerator(case).work
    kinds = Counter(note.kind for note in notes if note.op.startswith("bitsandbytes::"))
    # Seven products a layer; queries, keys and values are rounded one by one.
    assert kinds == {"dispatch": 28, "gemm": 14, "elementwise": 28}
    first = next(note for note in notes if note.kind == "gemm")
    scaled = notes[notes.index(first) + 1]
    _, rows, outputs, _ = first.numbers
    assert (first.label[0], scaled.numbers) == (
        "int8",
        (4 * rows * outputs, 2 * rows * outputs),
    )


# -- one operator ---------------------------------------------------------------------------------


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def costs(function: Any, *args: Any, call: Call = HERE) -> list[Cost]:
    out = function(*args)
    return costs_of(function, args, out if isinstance(out, tuple) else (out,), call)


def test_the_layout_of_a_product_is_told_by_its_strides() -> None:
    a, weight, grad = tensor(6, 4), tensor(5, 4), tensor(6, 5)
    assert costs(aten.mm.default, a, weight.t()) == [Cost("gemm", "float32", (1, 6, 5, 4), "nt")]
    assert costs(aten.mm.default, grad, weight) == [Cost("gemm", "float32", (1, 6, 4, 5), "nn")]
    assert costs(aten.mm.default, grad.t(), a) == [Cost("gemm", "float32", (1, 5, 4, 6), "tn")]


def test_a_vector_is_added_in_the_products_epilogue_and_a_matrix_is_copied_before() -> None:
    a, b = tensor(6, 4), tensor(4, 5)
    (product,) = costs(aten.addmm.default, tensor(5), a, b)
    assert product.kind == "gemm"
    copied, product = costs(aten.addmm.default, tensor(6, 5), a, b)
    assert copied == Cost("copy", "float32", (120, 120))


def test_a_broadcast_operand_is_read_at_its_real_size() -> None:
    # 2 x 3 x 4 floats, a row of four, and one mask for both texts
    values, row = tensor(2, 3, 4), tensor(4)
    (added,) = costs(aten.add.Tensor, values, row)
    assert added == Cost("elementwise", "float32", (96, 16, 96))
    mask = tensor(1, 3, 4).expand(2, 3, 4)
    (added,) = costs(aten.add.Tensor, values, mask)
    assert added.numbers == (96, 48, 96)


def test_a_view_and_an_empty_tensor_are_no_kernel() -> None:
    assert costs(aten.view.default, tensor(6, 4), [24]) == []
    assert costs(aten.transpose.int, tensor(6, 4), 0, 1) == []
    assert costs(aten.new_empty.default, tensor(6, 4), [3]) == []
    assert costs(aten.add.Tensor, tensor(0, 4), tensor(0, 4)) == []


def test_what_is_written_is_not_read() -> None:
    (copied,) = costs(aten.copy_.default, tensor(6), tensor(6, dtype=torch.bfloat16))
    assert copied == Cost("copy", "float32", (12, 24))
    (zeroed,) = costs(aten.zero_.default, tensor(6))
    assert zeroed.numbers == (24,)
    (ones,) = costs(aten.ones_like.default, tensor(6))
    assert ones.numbers == (24,)
    (added,) = costs(aten.add_.Tensor, tensor(6), tensor(6))
    assert added.numbers == (24, 24, 24)


def test_a_table_is_read_where_it_is_looked_up_and_its_gradient_is_zeroed_whole() -> None:
    ids = tensor(2, 3, dtype=torch.int64)  # 48 bytes
    (found,) = costs(aten.embedding.default, tensor(1000, 8), ids)
    assert found == Cost("embedding", "float32", (192, 192, 48))
    zeros, added = costs(
        aten.embedding_dense_backward.default, tensor(2, 3, 8), ids, 1000, -1, False
    )
    assert zeros == Cost("elementwise", "float32", (32_000,))
    assert added == Cost("embedding-backward", "float32", (576, 48))


def test_a_loss_reads_one_logit_a_row_and_its_gradient_is_zeroed_whole() -> None:
    logits, target = tensor(6, 1000), tensor(6, dtype=torch.int64)
    (loss,) = costs(aten.nll_loss_forward.default, logits, target, None, 1, -100)
    assert sum(loss.numbers) == 48 + 24
    back = (tensor(), logits, target, None, 1, -100, tensor())
    zeros, _ = costs(aten.nll_loss_backward.default, *back)
    assert zeros.numbers == (24_000,)


def test_what_a_formula_fills_in_place_is_not_copied_first() -> None:
    # `index_backward`: 3 rows of 4 into zeros of 10 x 4; only a dispatch mode copies the zeros
    args = (tensor(10, 4), [tensor(3, dtype=torch.int64)], tensor(3, 4), True)
    copied, _ = costs(aten.index_put.default, *args)
    assert copied.numbers == (160, 160)
    (filled,) = costs(aten.index_put.default, *args, call=Call("meta", in_place=True))
    (in_place,) = costs(aten.index_put_.default, *args)
    assert filled == in_place == Cost("copy", "float32", (24, 48, 48))


def test_experts_share_out_the_rows_of_a_grouped_product() -> None:
    ends = tensor(3, dtype=torch.int32)
    half = torch.bfloat16
    rows, weights = tensor(16, 8, dtype=half), tensor(3, 8, 32, dtype=half)
    out = tensor(16, 32, dtype=half)
    (found,) = costs_of(aten._grouped_mm.default, (rows, weights, ends), (out,), HERE)
    assert found == Cost("gemm", "bfloat16", (3, 16, 32, 8), "nn:m")
