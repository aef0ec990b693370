"""The work of a step: tiled to full depth, lowered for a device, against sums by hand."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from tests.program.stored_work import stored
from tests.program.tiny_profile import A100
from tests.tiers import exhaustive
from tests.trace.test_profile import KEY, deep
from tests.trace.tiny import CONFIGS

from rigsize.errors import TraceFailed
from rigsize.hardware import find_accelerator
from rigsize.models import ModelSource, resolve_model
from rigsize.program.attention_node import AttentionNode
from rigsize.program.attention_work import attention_kernels
from rigsize.program.work import Kernel, kernel_flops
from rigsize.program.work_build import build_work, decode_work_for
from rigsize.spec import Strategy, Workload
from rigsize.trace.profile import DISPATCHES, Body, Event, Profile
from rigsize.trace.session import Session
from rigsize.trace.sizes import Expression
from rigsize.trace.work import WorkNote


@pytest.mark.parametrize(
    ("model", "layers", "width", "inner", "vocabulary", "gflop"),
    [
        ("FacebookAI/xlm-roberta-base", 12, 768, 3072, 250_002, 215),
        ("FacebookAI/xlm-roberta-large", 24, 1024, 4096, 250_002, 434),
        ("facebook/xlm-roberta-xl", 36, 2560, 10_240, 250_880, 2691),
        ("facebook/xlm-roberta-xxl", 48, 4096, 16_384, 250_880, 8262),
    ],
)
def test_the_flops_of_a_text_are_those_by_hand(
    model: str, layers: int, width: int, inner: int, vocabulary: int, gflop: int
) -> None:
    # A product and its two gradients: six FLOPs a weight and token, over four matrices of
    # attention, two of the feed-forward, the head's dense layer and the vocabulary. Attention is
    # 4 S S H forward and, with the scores made again, 10 S S H backward in every layer.
    weights = layers * (4 * width**2 + 2 * width * inner) + width**2 + width * vocabulary
    attention = layers * 14 * 128 * 128 * width
    work = stored(model)
    assert work.flops == 6 * 128 * weights + attention
    # The plain path (eager) has 12 S S H: the figure of the time model's notes.
    assert round((work.flops - attention / 7) / 1e9) == gflop


def test_recompute_runs_every_layer_forward_twice() -> None:
    once, twice = (
        stored("FacebookAI/xlm-roberta-base"),
        stored("FacebookAI/xlm-roberta-base", recompute="block"),
    )
    layers = sum(
        kernel_flops(kernel)
        for segment in once.segments
        if segment.layer and segment.phase == "forward"
        for kernel in segment.kernels
    )
    assert 0.9 < (twice.flops - once.flops) / layers <= 1  # the last product of each stops early


def test_segments_are_layers_in_order_and_share_their_kernels() -> None:
    work = stored("FacebookAI/xlm-roberta-base")
    forward = [s.layer for s in work.segments if s.phase == "forward"]
    backward = [s.layer for s in work.segments if s.phase == "backward" and s.layer]
    assert forward == [0, *range(1, 13), 0]
    assert backward == [*range(12, 0, -1)]
    fifth, sixth = (s.kernels for s in work.segments if s.layer in (5, 6) and s.phase == "forward")
    assert fifth is sixth
    assert {s.phase for s in work.segments} == {"forward", "backward"}


def test_parameters_are_told_by_layer() -> None:
    work = stored("FacebookAI/xlm-roberta-base")
    assert sum(work.parameters) == 278_295_186  # the published checkpoint's
    assert set(work.parameters[1:]) == {12 * 768 * 768 + 13 * 768}  # 9 x 768 of biases, 4 of norms
    assert work.trainable == work.parameters
    assert sum(work.weight_bytes) == 4 * 278_295_186


def test_modules_that_hold_parameters_are_told_by_layer() -> None:
    # A layer: itself, attention, attention.self, query, key, value, attention.output, its dense
    # layer and normalisation, intermediate and its dense layer, output, its two.
    first, second = stored("FacebookAI/xlm-roberta-base").modules[1:3]
    assert first == second
    assert (first.modules, len(first.shapes)) == (14, 16)
    assert sum(map(prod, first.shapes)) == 12 * 768**2 + 13 * 768
    assert first.trained == first.shapes


@pytest.mark.slow
def test_modules_are_those_of_the_real_model() -> None:
    import torch

    from rigsize.trace.model import BuildOptions, build, load_config

    options = BuildOptions(task="masked-lm", compute="fp32")
    source = resolve_model("FacebookAI/xlm-roberta-base", allow_network=False)
    model = build(load_config(source.config, options), options)
    holding = [
        module
        for module in model.modules()
        if next(module.parameters(), None) is not None
        and not isinstance(module, torch.nn.ModuleList)
    ]
    work = stored("FacebookAI/xlm-roberta-base")
    # The head's decoder has no parameter but the embedding's and the head's own bias.
    assert sum(held.modules for held in work.modules) == len(holding) - 1
    assert sum(len(held.shapes) for held in work.modules) == len(list(model.parameters()))


def test_stored_work_is_built_without_torch() -> None:
    stored("FacebookAI/xlm-roberta-base")
    code = (
        "import sys\n"
        "from tests.program.stored_work import stored\n"
        "assert stored('FacebookAI/xlm-roberta-base').flops\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_half_products_have_the_dtype_that_was_asked_for() -> None:
    for precision, dtype in (("amp-bf16", "bfloat16"), ("amp-fp16", "float16")):
        work = stored("FacebookAI/xlm-roberta-base", precision=precision)
        kernels = [k for s in work.segments for k in s.kernels if k.kind in ("gemm", "attention")]
        assert {kernel.dtype for kernel in kernels} == {dtype}


# -- depth ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("xlm-roberta", {"task": "masked-lm"}),
        exhaustive(("llama", {"compute": "amp", "recompute": "block"})),
        exhaustive(("t5", {"task": "seq2seq-lm"})),
    ],
)
def test_what_is_tiled_is_a_trace_of_every_layer(family: str, changes: dict[str, Any]) -> None:
    session = Session(deep(family, 9), replace(KEY, **changes), 131)
    profile = session.work(["bN.sx.0"])
    point = {"B": 3, "S": 53, "T": 19}
    notes = session.record(point, full_depth=True).work
    work = build_work(profile, point, A100)
    assert sum(profile.traced_depths) < len(profile.full_layers())
    assert [(s.phase, s.layer) for s in work.segments] == _stretches(notes)
    assert sum(s.dispatches for s in work.segments) == sum(n.kind == "dispatch" for n in notes)
    tiled: Counter[tuple[Any, ...]] = Counter()
    for kernel in (k for s in work.segments for k in s.kernels):
        if not kernel.kind.startswith("attention"):
            tiled[kernel.kind, kernel.op, kernel.sizes] += kernel.launches
    assert tiled == Counter(_plain(note) for note in notes if _is_plain(note))


def _stretches(notes: list[WorkNote]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    told: list[tuple[str, int]] = []
    for note in notes:
        if not told or told[-1] != (note.phase, note.group):
            told.append((note.phase, note.group))
            found.append((note.phase.removeprefix("after_"), note.group))
    return found


def _is_plain(note: WorkNote) -> bool:
    return note.kind != "dispatch" and not note.kind.startswith("attention")


def _plain(note: WorkNote) -> tuple[Any, ...]:
    op = note.op.removeprefix("aten::").partition(".")[0]
    return note.kind, op, note.numbers if note.kind == "gemm" else (sum(note.numbers),)


def test_a_size_outside_the_proved_domains_is_refused(hand_made: Profile) -> None:
    with pytest.raises(TraceFailed):
        build_work(hand_made, {"B": 2, "S": 9, "T": 0}, A100)


@pytest.fixture
def hand_made() -> Profile:
    """One grouped product of three experts, B S rows in all, and six dispatches."""
    events = (
        Event(DISPATCHES, None, label=(6,)),
        Event(
            "kernel",
            None,
            "_grouped_mm",
            numbers=(((3, "1"),), ((1, "BS"),), ((32, "1"),), ((8, "1"),)),
            label=("gemm", "bfloat16", "nn:m", 2),
        ),
    )
    return Profile(
        key=KEY,
        versions={},
        representative=(),
        traced_depths=(),
        stack_paths=(),
        tensors=(),
        bodies=(Body((events,), (0,), (("after_forward", 0, 0),)),),
        domains={"bN.s8.0": 0},
        limits=(),
    )


def test_rows_of_all_experts_are_shared_out(hand_made: Profile) -> None:
    # 16 rows among 3 experts: six each, rounded up
    work = build_work(hand_made, {"B": 2, "S": 8, "T": 0}, A100, half_dtype="float16")
    (segment,) = work.segments
    assert segment.kernels == (
        Kernel("gemm", "float16", (3, 6, 32, 8), "nn", "_grouped_mm", launches=2),
    )
    assert (segment.phase, segment.layer, segment.dispatches) == ("forward", 0, 6)
    assert work.flops == 2 * 2 * 3 * 6 * 32 * 8


# -- attention ------------------------------------------------------------------------------------

NODE = AttentionNode(
    batch=2,
    heads=4,
    kv_heads=4,
    query_length=8,
    key_length=16,
    head_dim=32,
    value_head_dim=32,
    element_bytes=4,
    dtype="float32",
    mask="float",
    mask_elements=2 * 8 * 16,
    dropout=0.1,
    needs_grad=True,
)


def test_a_fused_call_is_one_kernel() -> None:
    (forward,) = attention_kernels(NODE, fused=True, backward=False)
    assert forward.sizes == (2, 8, 4, 32, 16, 4)
    assert kernel_flops(forward) == 4 * 2 * 4 * 8 * 16 * 32
    (backward,) = attention_kernels(replace(NODE, causal=True), fused=True, backward=True)
    assert (backward.kind, backward.detail) == ("attention_backward", "causal")


def test_packed_texts_count_as_of_equal_lengths() -> None:
    packed = replace(
        NODE, query_length=8, key_length=8, mask="none", mask_elements=0, packed_tokens=11
    )
    (kernel,) = attention_kernels(packed, fused=True, backward=False)
    assert kernel.sizes == (2, 6, 4, 32, 6, 4)  # 11 tokens of two texts


def test_plain_attention_is_two_products_forward_and_four_backward() -> None:
    for backward, products in ((False, 2), (True, 4)):
        kernels = attention_kernels(NODE, fused=False, backward=backward)
        found = [k for k in kernels if k.kind == "gemm"]
        assert len(found) == products
        assert sum(map(kernel_flops, found)) == products * 2 * 2 * 4 * 8 * 16 * 32
        assert sum(k.kind.startswith("softmax") for k in kernels) == 1
    # A mask, dropout and half inputs each add what they move.
    bare = replace(NODE, mask="none", mask_elements=0, dropout=0.0)
    plain = len(attention_kernels(bare, fused=False, backward=False))
    assert len(attention_kernels(NODE, fused=False, backward=False)) == plain + 2
    half = replace(bare, element_bytes=2, dtype="float16")
    assert len(attention_kernels(half, fused=False, backward=False)) == plain + 5


@pytest.mark.parametrize(("capability", "fused"), [((8, 0), True), ((7, 5), False)])
def test_a_card_without_a_fused_kernel_computes_plainly(
    hand_made: Profile, capability: tuple[int, int], fused: bool
) -> None:
    # Eight heads on two of keys and values, in half: FlashAttention's, which a T4 has not.
    shape: list[Expression] = [((1, "B"),), ((8, "1"),), ((1, "S"),), ((32, "1"),), ((2, "1"),)]
    shape += [((1, "S"),), ((32, "1"),), (), (), (), ()]
    label = ("bfloat16", "none", True, 0.0, True, True, 1)
    events = (Event(DISPATCHES, None, label=(1,)), Event("attention", None, "", "", (), (), label))
    called = replace(events[1], numbers=tuple(shape))
    body = replace(hand_made.bodies[0], templates=((events[0], called),))
    device = replace(A100, compute_capability=capability)
    point = {"B": 2, "S": 8, "T": 0}
    work = build_work(replace(hand_made, bodies=(body,)), point, device, half_dtype="float16")
    kinds = {kernel.kind for kernel in work.segments[0].kernels}
    assert (kinds == {"attention"}) == fused
    assert ("gemm" in kinds) != fused


@pytest.mark.slow
def test_a_decoding_step_attends_to_all_keys(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = ModelSource(
        name="tiny",
        origin="config",
        config=CONFIGS["llama"],
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )
    workload = Workload(
        model="tiny", task="causal-lm", use="inference", max_length=40, max_new_tokens=8
    )
    point = {"B": 2, "S": 32, "T": 0, "C": 40}
    strategy = Strategy(micro_batch=2, precision="bf16")
    work = decode_work_for(source, workload, strategy, find_accelerator("A100-40GB"), point)
    kernels = [kernel for segment in work.segments for kernel in segment.kernels]
    calls = {kernel.sizes for kernel in kernels if kernel.kind == "attention"}
    # The two query heads of a head of keys are handed over as two queries.
    assert calls == {(2, 2, 2, 24, 40, 2)}
    assert {kernel.sizes[1] for kernel in kernels if kernel.kind == "gemm"} == {2}


@pytest.mark.parametrize(
    ("method", "launches", "dispatches"), [("nf4", 2, 7), ("nf4-double", 4, 10)]
)
def test_a_4_bit_layer_is_what_bitsandbytes_launches(
    hand_made: Profile, method: str, launches: int, dispatches: int
) -> None:
    # 2,048 rows: the whole weight beforehand; one operator is dispatched around it all.
    sizes: tuple[Expression, ...] = (((1, "1"),), ((1, "BS"),), ((32, "1"),), ((64, "1"),))
    label = ("gemm_4bit", "bfloat16", "nt", 1)
    product = Event("kernel", None, "bitsandbytes::gemm_4bit", numbers=sizes, label=label)
    events = (Event(DISPATCHES, None, label=(1,)), product)
    body = replace(hand_made.bodies[0], templates=(events,))
    key = replace(hand_made.key, quantization=method)
    profile = replace(hand_made, key=key, bodies=(body,))
    work = build_work(profile, {"B": 256, "S": 8, "T": 0}, A100)
    segment = work.segments[0]
    assert sum(kernel.launches for kernel in segment.kernels) == launches
    assert segment.dispatches == dispatches
    assert {kernel.kind for kernel in segment.kernels} >= {"copy", "gemm"}
