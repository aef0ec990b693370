"""What the recorder adds to a plain dispatch mode, each against a real run or by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.tiers import thinned
from tests.trace.referee import compare, profile_once, signature, trace_events, without_scalars
from tests.trace.tiny import CONFIGS, SIZES, Case

from rigsize.trace import fake_accelerator
from rigsize.trace.capture import Traced
from rigsize.trace.masks import KnownOnes, answered
from rigsize.trace.model import load_config
from rigsize.trace.ownership import counts_of_sole_owner
from rigsize.trace.recorder import (
    ALLOC,
    ATTENTION,
    ATTENTION_BACKWARD,
    FREE,
    GRADIENT,
    Layers,
    RawTrace,
    Recorder,
    join_additions,
)

# Gradients that meet: small graphs, each run for real under the profiler and traced.

Step = Callable[[Callable[[str], None]], None]
Graph = tuple[list[torch.Tensor], Step]
"""What lives before the step, and the step."""


def leaf(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(shape))


def tied_embedding() -> Graph:
    weight, ids = leaf(50, 24), torch.zeros(40, dtype=torch.int64)

    def step(phase: Callable[[str], None]) -> None:
        loss = (torch.nn.functional.embedding(ids, weight) @ weight.t()).sum()
        phase("backward")
        loss.backward()
        weight.grad = None

    return [weight, ids], step


def fan_in(through_views: bool) -> Graph:
    """One tensor used by three branches, as a normalised input by q, k and v."""
    start, weights = leaf(3, 5, 24), [leaf(24, 24) for _ in range(3)]

    def step(phase: Callable[[str], None]) -> None:
        x = start.sin()
        branches = [x @ w if through_views else (x * w[0]).cos() for w in weights]
        loss = (branches[0] + branches[1] + branches[2]).sum()
        phase("backward")
        loss.backward()
        for parameter in (start, *weights):
            parameter.grad = None

    return [start, *weights], step


def elementwise(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Graph]:
    def make() -> Graph:
        start = leaf(37, 24)

        def step(phase: Callable[[str], None]) -> None:
            loss = function(start.sin()).sum()
            phase("backward")
            loss.backward()
            start.grad = None

        return [start], step

    return make


def shared_three_times() -> Graph:
    """ALBERT's layer: one weight used by call after call."""
    start, weight = leaf(40, 24), leaf(24, 24)

    def step(phase: Callable[[str], None]) -> None:
        x = start.sin()
        for _ in range(4):
            x = torch.tanh(torch.nn.functional.linear(x, weight))
        loss = x.sum()
        phase("backward")
        loss.backward()
        start.grad = weight.grad = None

    return [start, weight], step


def bias_for_all() -> Graph:
    """T5's position bias: one tensor, expanded over the batch, used by every layer."""
    table, scores = leaf(1, 4, 9, 9), [leaf(3, 4, 9, 9) for _ in range(3)]

    def step(phase: Callable[[str], None]) -> None:
        bias = table.sin()
        parts = [torch.softmax(score + bias, -1) for score in scores]
        loss = (parts[0] * parts[1] * parts[2]).sum()
        phase("backward")
        loss.backward()
        for parameter in (table, *scores):
            parameter.grad = None

    return [table, *scores], step


def indexed() -> Graph:
    """`index`, `gather` and `topk` fill fresh zeros in their backward formulas."""
    start = leaf(40, 24)
    rows = torch.tensor([1, 2, 2, 7])
    columns = torch.zeros(40, 3, dtype=torch.int64)

    def step(phase: Callable[[str], None]) -> None:
        x = start.sin()
        loss = x[rows].sum() + x.gather(1, columns).sum() + x.topk(2).values.sum()
        phase("backward")
        loss.backward()
        start.grad = None

    return [start, rows, columns], step


def attention() -> Graph:
    """Plain attention with dropout off: one tensor is query, key and value."""
    start, mask = leaf(2, 6, 4, 24), torch.zeros(2, 1, 6, 6)

    def step(phase: Callable[[str], None]) -> None:
        x = start.sin().transpose(1, 2)
        loss = torch.nn.functional.scaled_dot_product_attention(x, x, x, mask, 0.5).sin().sum()
        phase("backward")
        loss.backward()
        start.grad = None

    return [start, mask], step


def recorded(make: Callable[[], Graph]) -> RawTrace:
    with fake_accelerator.fake_mode():
        before, step = make()
        recorder = Recorder({}, Layers({}, frozenset()), "cpu")
        for tensor in before:
            recorder.adopt(tensor, "input:")
        recorder.set_phase("forward")
        with recorder.watch_modules(), recorder:
            step(recorder.set_phase)
        recorder.close()
    return join_additions(recorder.trace)


GRAPHS: dict[str, Callable[[], Graph]] = {
    "tied embedding": tied_embedding,
    "three branches": lambda: fan_in(through_views=False),
    "three branches through views": lambda: fan_in(through_views=True),
    "residual": elementwise(lambda x: x + (x.cos() * 2).sin()),
    "the gradient of a residual goes two ways": elementwise(lambda x: (x + x).sin()),
    "both edges of one node": elementwise(lambda x: x * x),
    "parallel residuals": elementwise(lambda x: x + x.cos().sin() + x.tanh().sin()),
    "an expanded gradient meets another": elementwise(lambda x: x.sum() + x.cos().sum()),
    "a weight used four times": shared_three_times,
    "a bias for all layers": bias_for_all,
    "indices": indexed,
    "attention in plain operators": attention,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_meet_as_in_a_real_run(name: str) -> None:
    _, real = GRAPHS[name]()
    real(lambda _: None)
    tree = profile_once(lambda: real(lambda _: None))
    found = compare(recorded(GRAPHS[name]), tree)
    assert not str(found), str(found)


def test_a_gradient_that_waits_alone_has_one_owner_beyond_the_machinery() -> None:
    assert counts_of_sole_owner() == counts_of_sole_owner()
    assert min(counts_of_sole_owner()) >= 1


# Whole models.


def trace_of(case: Case, device: str = "accelerator") -> RawTrace:
    options = case.options()
    model = Traced(load_config(CONFIGS[case.family], options), options, device)
    return model.record(SIZES, padded=case.padded, hold_output=case.hold_output)


def test_every_gradient_is_ready_once_and_outlives_the_step() -> None:
    trace = trace_of(Case(family="gpt2", task="causal-lm"))
    sizes = {name.removeprefix("parameter:"): n for n, name in trace.persistent.items()}
    ready = {event.label[0]: event.storage for event in trace.events if event.kind == GRADIENT}
    parameters = {name for name in sizes if name.startswith(("transformer", "lm_head"))}
    assert set(ready) == {name for name in parameters if not name.startswith("buffer:")}
    born = {event.storage: event.num_bytes for event in trace.events if event.kind == ALLOC}
    freed = {event.storage for event in trace.events if event.kind == FREE}
    for name, storage in ready.items():
        assert born[storage] == trace.persistent_bytes[sizes[name]]
        assert storage not in freed


def test_nothing_dies_before_it_is_born_nor_twice() -> None:
    trace = trace_of(Case(family="t5", task="seq2seq-lm", compute="amp", recompute="block"))
    alive = set(trace.persistent)
    for event in trace.events:
        if event.kind in (ALLOC, ATTENTION):
            assert event.storage not in alive
            alive.add(event.storage)
        elif event.kind == ATTENTION_BACKWARD:
            alive.update(storage for storage in event.outputs if storage >= 0)
        elif event.kind == FREE:
            alive.remove(event.storage)


def test_layers_and_phases() -> None:
    trace = trace_of(Case(family="llama", task="causal-lm", recompute="block"))
    phases = [event.phase for event in trace.events]
    assert list(dict.fromkeys(phases)) == ["forward", "backward", "after_backward"]
    births = [event for event in trace.events if event.kind == ALLOC]
    forward = [event.group for event in births if event.phase == "forward"]
    assert list(dict.fromkeys(forward)) == [0, 1, 2]  # embeddings, two layers, (0 again) the head
    backward = [event.group for event in births if event.phase == "backward"]
    assert list(dict.fromkeys(backward)) == [0, 2, 1]
    # Recomputation runs modules of the layer whose backward asked for it.
    assert any(e.module.startswith("model.layers.1.") for e in births if e.phase == "backward")


@pytest.mark.parametrize("device", ["accelerator", "cpu"])
def test_a_second_record_is_the_same(device: str) -> None:
    options = Case(family="xlm-roberta", task="masked-lm", compute="amp").options()
    model = Traced(load_config(CONFIGS["xlm-roberta"], options), options, device)
    first, second = (model.record(SIZES, padded=True, hold_output=True) for _ in range(2))
    assert first.events == second.events
    assert first.persistent == second.persistent
    other = model.record(SIZES | {"S": 33}, padded=False, hold_output=False)
    assert other.events != first.events
    assert model.record(SIZES, padded=True, hold_output=True).events == first.events


def patched() -> list[Any]:
    """All that a recording replaces for a while."""
    from transformers import masking_utils

    return [
        torch.nn.Module.__call__,
        torch.nn.functional.scaled_dot_product_attention,
        masking_utils.find_packed_sequence_indices,
        masking_utils._ignore_causal_mask_sdpa,
        masking_utils._ignore_bidirectional_mask_sdpa,
    ]


def test_patches_are_undone_when_the_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    before = patched()
    options = Case(family="gpt2", task="causal-lm").options()
    model = Traced(load_config(CONFIGS["gpt2"], options), options)
    first = model.record(SIZES, padded=True, hold_output=True)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model.transformer), "forward", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            model.record(SIZES, padded=True, hold_output=True)
    assert patched() == before
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    assert all(p.grad is None for p in model.model.parameters())
    assert model.record(SIZES, padded=True, hold_output=True).events == first.events


def test_a_child_of_watch_modules_sees_every_call() -> None:
    inner = torch.nn.Linear(2, 2)
    outer = torch.nn.Sequential(inner)
    recorder = Recorder({outer: "outer", inner: "inner"}, Layers({}, frozenset()), "cpu")
    recorder.set_phase("forward")
    with recorder.watch_modules(), recorder:
        outer(torch.ones(1, 2))
    assert {event.module for event in recorder.trace.events if event.op == "aten::addmm"} == {
        "inner"
    }


# Masks.


def attention_nodes(case: Case) -> list[tuple[Any, ...]]:
    """(mask kind, causal) of each attention node."""
    return [e.label[1:3] for e in trace_of(case).events if e.kind == ATTENTION]


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_without_a_padding_mask_attends_causally(training: bool) -> None:
    # Real runs skip the mask; transformers never does so while tracing.
    for family in ("llama", "qwen2", "gpt2"):
        case = Case(family=family, task="causal-lm", padded=False, training=training)
        assert attention_nodes(case) == [("none", True)] * 2


def test_a_decoder_with_padding_keeps_its_mask() -> None:
    assert attention_nodes(Case(family="llama", task="causal-lm")) == [("bool", False)] * 2


def test_a_mask_of_ones_that_the_model_made_itself_masks_nothing() -> None:
    # BART's decoder makes ones where it is given no mask; its two self-attentions are causal.
    nodes = attention_nodes(Case(family="bart", task="seq2seq-lm"))
    assert nodes.count(("none", True)) == 2


# Texts in one row.


@pytest.mark.parametrize(
    ("family", "task", "causal", "kv_heads"),
    [("xlm-roberta", "masked-lm", False, 4), ("llama", "causal-lm", True, 2)],
)
def test_packed_texts_are_one_attention_node(
    family: str, task: str, causal: bool, kv_heads: int
) -> None:
    trace = trace_of(Case(family=family, task=task, compute="half", unpadded=True))
    nodes = [e for e in trace.events if e.kind == ATTENTION]
    assert len(nodes) == 2
    for node in nodes:
        # 2 texts of at most 40 tokens, 61 in all; no mask
        assert node.numbers == (2, 4, 40, 24, kv_heads, 40, 24, 0, 0, 0, 0, 61)
        assert node.label[:3] == ("bfloat16", "none", causal)
    kept = set(trace.persistent.values())
    assert {"input:packing.offsets", "input:packing.grid", "input:position_ids"} <= kept


def test_without_flash_the_texts_lie_on_a_grid() -> None:
    # fp32 has no FlashAttention: SDPA on [2, 40] with a mask of keys.
    trace = trace_of(Case(family="xlm-roberta", task="masked-lm", unpadded=True))
    nodes = [e for e in trace.events if e.kind == ATTENTION]
    assert [n.numbers for n in nodes] == [(2, 4, 40, 24, 4, 40, 24, 2, 1, 1, 40)] * 2


def test_known_ones_follow_copies_and_end_with_a_write() -> None:
    ones = KnownOnes()
    ones.born("aten::ones", -1, 1)
    ones.born("aten::_to_copy", 1, 2)
    ones.born("aten::add", 1, 3)
    ones.born("aten::clone", 3, 4)
    assert [storage in ones for storage in (1, 2, 3, 4)] == [True, True, False, False]
    ones.written(2)
    assert 2 not in ones


def test_positions_that_were_given_stay_packed() -> None:
    from transformers import masking_utils

    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with answered(lambda _: False, is_given=lambda _: True):
        packed = masking_utils.find_packed_sequence_indices(positions)
        assert packed is not None
        assert packed.tolist() == [[0, 0, 0, 1, 1]]
    with answered(lambda _: False, is_given=lambda _: False):
        assert masking_utils.find_packed_sequence_indices(positions) is None


# The fake accelerator.

FREE_OF_DROPOUT = ("albert", "modernbert", "llama", "gemma3_text", "falcon", "mamba")
ALL = {
    family: "seq2seq-lm"
    if family in ("t5", "mt5", "bart", "m2m_100")
    else "masked-lm"
    if "num_key_value_heads" not in config
    and family not in ("gpt2", "bloom", "falcon", "mamba", "gpt_neox")
    else "causal-lm"
    for family, config in CONFIGS.items()
}


@pytest.mark.parametrize("family", FREE_OF_DROPOUT)
def test_the_accelerator_dispatches_as_the_cpu_where_the_kernels_are_the_same(family: str) -> None:
    # Without fused attention and dropout a GPU runs the CPU's operators one for one, and those are
    # held to the profiler. A composite fallback (SwiGLU's backward) would show here.
    case = Case(family=family, task=ALL[family], attention="eager")
    ours, cpu = (
        signature(without_scalars(trace_events(trace_of(case, device))))
        for device in ("accelerator", "cpu")
    )
    assert ours == cpu


def test_operators_with_a_kernel_for_cuda_are_not_taken_apart() -> None:
    # aten::silu_backward has CUDA and CPU kernels and a composite fallback for other backends.
    trace = trace_of(Case(family="llama", task="causal-lm"))
    ops = [event.op for event in trace.events if event.kind == ALLOC]
    assert ops.count("aten::silu_backward") == 2
    device = fake_accelerator.register()
    with fake_accelerator.fake_mode(), seen() as names:
        x = torch.empty(2, 24, device=device, requires_grad=True)
        torch.nn.functional.mish(torch.nn.functional.rms_norm(x, (24,))).sum().backward()
    assert {"aten::mish_backward", "aten::_fused_rms_norm_backward"} <= names
    assert "aten::rsqrt" not in names


@contextlib.contextmanager
def seen() -> Iterator[set[str]]:
    """The names of all operators dispatched meanwhile."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.add(func.name().partition(".")[0])
            return func(*args, **(kwargs or {}))

    with Names():  # type: ignore[no-untyped-call]
        yield names


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("compute", ["amp", "half"])
@pytest.mark.parametrize("family", thinned(list(ALL), every=2))
def test_every_family_traces_on_the_accelerator(family: str, compute: str, training: bool) -> None:
    if family == "mixtral" and compute == "amp":
        compute = "half"  # torch's fake grouped product takes bf16 only
    case = Case(family=family, task=ALL[family], compute=compute, training=training)
    trace = trace_of(case)
    births = [event for event in trace.events if event.kind in (ALLOC, ATTENTION)]
    assert len(births) > 20
    gradients = [event for event in trace.events if event.kind == GRADIENT]
    assert bool(gradients) == training


def test_events_are_plain_data() -> None:
    trace = trace_of(Case(family="gpt2", task="causal-lm", training=False))
    for event in trace.events:
        for value in dataclasses.astuple(event):
            assert isinstance(value, (int, str, tuple))


def test_a_process_that_ran_autograd_before_is_told_so() -> None:
    # Or torch dies with an internal assertion of its engine, in the first backward pass.
    script = (
        "import torch; torch.ones(1, requires_grad=True).sum().backward()\n"
        "from rigsize.errors import TraceFailed\n"
        "from rigsize.trace import fake_accelerator\n"
        "for _ in range(2):\n"
        "    try: fake_accelerator.register()\n"
        "    except TraceFailed as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.count("autograd does not know the fake accelerator") == 2
