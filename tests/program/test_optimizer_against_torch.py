"""The referee: the allocator events of real optimizer steps on the CPU, as torch.profiler saw them.

Every event must be ours, in the same order, births and deaths, after two named exceptions:

* tensors of at most 8 bytes, in which the CPU wraps the Python numbers of its operators (on CUDA
  they are kernel arguments) and which hold the host's step counters. They are counted in the live
  bytes at the end, exactly.
* oneDNN's scratch pad inside a 16-bit matrix product (Adafactor's outer product, Muon's iteration):
  it depends on the processor's instructions, and CUDA has none.

bitsandbytes' CPU kernels are written in torch's operators and torchao's are compiled by another
backend than CUDA's: of these the states are compared, size by size (tests/run/test_optimizers.py).
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from rigsize.program.clipping import LossScaler, clip_events
from rigsize.program.optimizer import make_optimizer, optimizer_phase
from rigsize.program.optimizer_sizes import state_bytes
from rigsize.program.timeline import Parameter, Place, Timeline
from rigsize.run.optimizers import (
    MasterWeights,
    make_torch_optimizer,
    stepped_parameters,
)
from rigsize.spec.strategy import Strategy

CPU_SCALAR_BYTES = 8
# Its first import makes tensors of its own, which a recorded constructor would be charged with.
importlib.import_module("transformers.optimization")
TORCH_OPTIMIZERS = (
    "adamw-foreach",
    "adamw-fused",
    "adamw-loop",
    "sgd",
    "sgd-momentum",
    "rmsprop",
    "adafactor",
    "adafactor-foreach",
    "adafactor-hf",
    "muon",
)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
WEIGHT = Place("weights", "load")
GRADIENT = Place("gradients", "backward")


def tiny(kind: str) -> nn.Module:
    """Parameters above and below 4096 elements, of one dtype or of two that alternate."""
    model = nn.Sequential(
        nn.Embedding(301, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 200)
    )
    if kind == "mixed":
        return nn.Sequential(*(m.bfloat16() if i % 2 else m for i, m in enumerate(model)))
    return model.to(getattr(torch, kind))


def mirrored(model: nn.Module, timeline: Timeline) -> list[Parameter]:
    """The model's parameters on a timeline, as yet without gradients."""
    parameters = []
    for name, tensor in model.named_parameters():
        parameter = Parameter(name, tuple(tensor.shape), tensor.element_size(), True, -1)
        parameter.storage = timeline.alloc(parameter.num_bytes, WEIGHT)
        parameters.append(parameter)
    return parameters


def give_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def give_mirrored_gradients(timeline: Timeline, parameters: list[Parameter]) -> None:
    for parameter in parameters:
        parameter.gradient = timeline.alloc(parameter.num_bytes, GRADIENT)


def recorded(action: Callable[[], object]) -> list[int]:
    """Bytes of every allocator event in order, negative for a free.

    Left out is what a product makes and drops: oneDNN's scratch depends on the host's instructions
    (AVX-512, AMX).
    """
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            action()
    finally:
        gc.enable()
    assert prof.profiler is not None
    events = prof.profiler.kineto_results.events()
    memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    ends = [(e.start_ns(), e.end_ns()) for e in events if e.name() in PRODUCTS]
    sizes: list[int] = []
    lives: dict[int, int] = {}  # by index into sizes, what the product around has made
    for at, size in sorted(memory, key=lambda pair: pair[0]):
        around = next((end for start, end in ends if start <= at <= end), 0)
        lives = {index: end for index, end in lives.items() if end == around}
        born = next((index for index in reversed(lives) if sizes[index] == -size), -1)
        if size < 0 and around and born >= 0:
            del sizes[born]
            del lives[born]
            continue
        if around and size > 0:
            lives[len(sizes)] = around
        sizes.append(size)
    return sizes


def ours(timeline: Timeline, start: int) -> list[int]:
    return [
        event.num_bytes if event.action == "alloc" else -event.num_bytes
        for event in timeline.events(start)
    ]


def peak(sizes: list[int]) -> int:
    live = top = 0
    for size in sizes:
        live += size
        top = max(top, live)
    return top


def tensors(sizes: list[int]) -> list[int]:
    """Without the CPU's scalars."""
    return [size for size in sizes if abs(size) > CPU_SCALAR_BYTES]


def assert_equal(predicted: list[int], seen: list[int]) -> None:
    assert tensors(predicted) == tensors(seen)
    assert peak(tensors(predicted)) == peak(tensors(seen))
    assert sum(predicted) == sum(seen)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_steps(name: str, kind: str) -> None:
    model, timeline = tiny(kind), Timeline()
    real = make_torch_optimizer(model.named_parameters(), Strategy(optimizer=name))
    optimizer, parameters = make_optimizer(Strategy(optimizer=name)), mirrored(model, timeline)
    give_gradients(model)
    give_mirrored_gradients(timeline, parameters)
    for _ in range(3):
        start = len(timeline.operations)
        optimizer.step(timeline, parameters, device="cpu")
        seen = recorded(real.step)
        assert_equal(ours(timeline, start), seen)
    storages = [
        tensor.untyped_storage().nbytes()
        for state in real.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    ]
    assert sum(storages) == sum(
        timeline.sizes[storage] for states in optimizer.state.states.values() for storage in states
    )
    if kind != "mixed":
        shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        itemsize = next(model.parameters()).element_size()
        names = [parameter.name for parameter in parameters]
        assert sum(storages) == state_bytes(name, shapes, itemsize, device="cpu", names=names)


@pytest.mark.parametrize(
    "name",
    ["adafactor", "adafactor-foreach", "adafactor-hf", "adamw-foreach", "adamw-loop", "rmsprop"],
)
def test_parameters_of_no_and_of_three_dimensions(name: str) -> None:
    model = nn.ParameterDict(
        {
            "scale": nn.Parameter(torch.ones(())),
            "convolution": nn.Parameter(torch.ones(40, 30, 7)),
            "sixteen": nn.Parameter(torch.ones(16, 30, 5, dtype=torch.bfloat16)),
        }
    )
    timeline = Timeline()
    real = make_torch_optimizer(model.named_parameters(), Strategy(optimizer=name))
    optimizer, parameters = make_optimizer(Strategy(optimizer=name)), mirrored(model, timeline)
    give_gradients(model)
    give_mirrored_gradients(timeline, parameters)
    for _ in range(2):
        start = len(timeline.operations)
        optimizer.step(timeline, parameters, device="cpu")
        seen = recorded(real.step)
        assert_equal(ours(timeline, start), seen)


@pytest.mark.parametrize("kind", ["float32", "mixed"])
def test_clipping(kind: str) -> None:
    model, timeline = tiny(kind), Timeline()
    parameters = mirrored(model, timeline)
    give_gradients(model)
    give_mirrored_gradients(timeline, parameters)
    start = len(timeline.operations)
    clip_events(timeline, parameters, device="cpu")
    seen = recorded(lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    assert_equal(ours(timeline, start), seen)
    assert tensors(seen) != []  # the stack of norms


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float32"), ("fp16-master", "float16")])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_whole_phase(name: str, precision: str, kind: str, scaled: bool) -> None:
    """Gradients, (collect,) unscale, clip, step, update, zero_grad: three times."""
    strategy = Strategy(optimizer=name, precision=precision)
    model, timeline = tiny(kind), Timeline()
    optimizer, parameters = make_optimizer(strategy), mirrored(model, timeline)
    real: list[torch.optim.Optimizer] = []
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    mirrored_scaler = LossScaler() if scaled else None

    def build() -> None:
        real.append(make_torch_optimizer(model.named_parameters(), strategy))

    def phase() -> None:
        give_gradients(model)
        if isinstance(real[0], MasterWeights):
            real[0].collect_gradients()
        scaler.unscale_(real[0])
        nn.utils.clip_grad_norm_(stepped_parameters(real[0]), 1.0)
        scaler.step(real[0])
        scaler.update()
        real[0].zero_grad()

    start = len(timeline.operations)
    optimizer.setup(timeline, parameters)
    assert_equal(ours(timeline, start), recorded(build))
    scaler.scale(torch.ones(()))
    for _ in range(3):
        start = len(timeline.operations)
        give_mirrored_gradients(timeline, parameters)
        optimizer_phase(
            timeline, optimizer, parameters, device="cpu", clip=True, scaler=mirrored_scaler
        )
        seen = recorded(phase)
        assert_equal(ours(timeline, start), seen)


def test_scaler_scalars() -> None:
    """The scaler's own tensors are all CPU scalars; those that stay are counted."""
    scaler, mirrored_scaler, timeline = torch.amp.GradScaler("cpu"), LossScaler(), Timeline()
    loss = torch.ones(())
    held: list[torch.Tensor] = []
    seen = recorded(lambda: held.append(scaler.scale(loss)))
    mirrored_scaler.scale(timeline)
    assert sum(seen) == sum(ours(timeline, 0)) == 12
