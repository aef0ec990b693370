"""The real optimizers take a step, and master weights train as fp32 weights do."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from rigsize.errors import MeasurementFailed, UnsupportedCombination
from rigsize.program.optimizer_sizes import paged_sizes, state_bytes
from rigsize.run.optimizers import MasterWeights, make_torch_optimizer, stepped_parameters
from rigsize.spec.optimizers import OPTIMIZERS, PACKAGES
from rigsize.spec.strategy import Strategy

COMPILED = {"adamw-8bit-torchao", "adamw-4bit", "adamw-fp8", "adamw-sr"}


def toy(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 320), nn.LayerNorm(320), nn.Linear(320, 1)).to(dtype)


@pytest.mark.filterwarnings(  # bitsandbytes' own; paging is tested apart
    "ignore:Paged optimizers are not supported on CPU:UserWarning"
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-master"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in COMPILED])
def test_every_name_takes_a_step(name: str, precision: str) -> None:
    take_a_step(name, precision)


@pytest.mark.filterwarnings(  # Inductor's own, at its first import
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)
@pytest.mark.exhaustive  # it compiles a graph a shape
def test_a_compiled_step_leaves_the_same_states() -> None:
    take_a_step("adamw-8bit-torchao", "bf16")


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_compiled_names_without_the_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step in eager mode: what it leaves is what the compiled one leaves."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for precision in ("bf16",) if name == "adamw-sr" else ("fp32", "bf16", "fp16-master"):
        take_a_step(name, precision)


def take_a_step(name: str, precision: str) -> None:
    """Every weight moves, gradients go, and the states are those of `state_bytes`, exactly."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16-master": torch.float16}[precision]
    model = toy(dtype)
    strategy = Strategy(optimizer=name, precision=precision)
    optimizer = make_torch_optimizer(model.named_parameters(), strategy, lr=3e-2)
    before = [parameter.clone() for parameter in model.parameters()]
    model(torch.ones(4, 16, dtype=dtype)).square().mean().backward()
    optimizer.step()
    assert all(not a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in stepped_parameters(optimizer))
    assert all(parameter.grad is None for parameter in model.parameters())
    names = [name for name, _ in model.named_parameters()]
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    itemsize = 2 if precision == "bf16" else 4
    expected = state_bytes(name, shapes, itemsize, device="cpu", names=names)
    assert held_bytes(optimizer) == expected


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors, those inside torchao's low-bit ones too, each storage once."""
    storages: dict[int, int] = {}
    queue = [value for state in optimizer.state.values() for value in state.values()]
    while queue:
        value = queue.pop()
        if hasattr(value, "__tensor_flatten__"):
            queue += [getattr(value, part) for part in value.__tensor_flatten__()[0]]
        elif isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["fp32", "8bit"])
def test_bitsandbytes_pages_what_we_say(kind: str) -> None:
    """Which states it would page on a card: its own rule, on a device that is no CPU."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    name = {"fp32": "paged-adamw", "8bit": "paged-adamw-8bit"}[kind]
    shapes = [(99_999,), (100_000,), (4095,), (400, 250)]
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    optimizer: Any = make_torch_optimizer(parameters, Strategy(optimizer=name))
    paged: dict[tuple[int, ...], int] = {}

    def get_paged(*shape: int, dtype: torch.dtype, device: object) -> torch.Tensor:
        paged[shape] = paged.get(shape, 0) + torch.empty(shape, dtype=dtype, device="meta").nbytes
        return torch.empty(shape, dtype=dtype, device="meta")

    functional = bitsandbytes.functional
    with (
        mock.patch.object(functional, "get_paged", get_paged),
        mock.patch.object(functional, "fill"),
    ):
        for index, parameter in enumerate(parameters):
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    assert paged == {
        shape: sum(sizes) for shape in shapes if (sizes := paged_sizes(name, shape)) != []
    }
    whole = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not key.startswith("qmap")
    )
    tables = 2048 if kind == "8bit" else 0
    assert whole - sum(paged.values()) == state_bytes(name, shapes, 4) - tables


def test_muon_leaves_embeddings_heads_and_vectors_to_adamw() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(8, 4), "layers": nn.ModuleList([nn.Linear(4, 4)]), "head": toy()}
    )
    del model["head"]
    optimizer = make_torch_optimizer(model.named_parameters(), Strategy(optimizer="muon"), lr=0.5)
    muon, adamw = optimizer.param_groups
    assert [p.shape for p in muon["params"]] == [(4, 4)]
    assert [p.shape for p in adamw["params"]] == [(8, 4), (4,)]
    assert (muon["lr"], adamw["lr"], adamw["fused"]) == (0.5, 0.5, True)


def test_muon_without_a_matrix_is_refused() -> None:
    vectors = [("layers.0.scale", torch.nn.Parameter(torch.ones(4)))]
    with pytest.raises(UnsupportedCombination, match="no matrix"):
        make_torch_optimizer(vectors, Strategy(optimizer="muon"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw-foreach", {"foreach": True, "fused": None}),
        ("adamw-fused", {"foreach": None, "fused": True}),
        ("adamw-loop", {"foreach": False, "fused": False}),
        ("sgd", {"foreach": True, "momentum": 0}),
        ("sgd-momentum", {"foreach": True, "momentum": 0.9}),
        ("adafactor", {"foreach": False}),
        ("adafactor-foreach", {"foreach": True}),
        ("rmsprop", {"foreach": True}),
        ("adafactor-hf", {"relative_step": False, "scale_parameter": False}),
    ],
)
def test_the_implementation_is_explicit(name: str, expected: dict[str, Any]) -> None:
    optimizer = make_torch_optimizer(toy().parameters(), Strategy(optimizer=name), lr=0.5)
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected
    assert group["lr"] == 0.5


def test_without_package_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MeasurementFailed, match="pip install bitsandbytes"):
        make_torch_optimizer(toy().parameters(), Strategy(optimizer="adamw-8bit"))


def test_frozen_parameters_are_left_alone() -> None:
    model = toy(torch.float16)
    next(model.parameters()).requires_grad_(False)
    strategy = Strategy(precision="fp16-master")
    optimizer = make_torch_optimizer(model.parameters(), strategy)
    assert isinstance(optimizer, MasterWeights)
    assert len(optimizer.masters) == len(list(model.parameters())) - 1


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, scaled: bool) -> list[float]:
    """The train step's order: collect, unscale, clip, step, update, zero_grad."""
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=scaled)
    dtype = next(model.parameters()).dtype
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    y = x[:, :1] * 0.5 - x[:, 1:2]
    losses = []
    for _ in range(40):
        loss = (model(x.to(dtype)) - y.to(dtype)).float().square().mean()
        scaler.scale(loss).backward()
        if isinstance(optimizer, MasterWeights):
            optimizer.collect_gradients()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(stepped_parameters(optimizer), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["adamw-foreach", "adamw-fused", "sgd-momentum"])
def test_master_weights_follow_the_fp32_reference(name: str) -> None:
    strategy = Strategy(optimizer=name)
    reference_model, model = toy(), toy(torch.float16)
    reference = make_torch_optimizer(reference_model.parameters(), strategy, lr=1e-3)
    masters = make_torch_optimizer(
        model.parameters(), Strategy(optimizer=name, precision="fp16-master"), lr=1e-3
    )
    expected = train(reference_model, reference, scaled=False)
    losses = train(model, masters, scaled=True)
    assert losses[-1] < 0.5 * losses[0]
    assert losses == pytest.approx(expected, rel=0.02, abs=0.01)


def test_masters_keep_steps_that_fp16_would_lose() -> None:
    # 1 - 100 x 1e-5: in fp16 each step is lost, the next number below 1 is 1 - 4.9e-4.
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    strategy = Strategy(optimizer="sgd", precision="fp16-master")
    optimizer = make_torch_optimizer([weight], strategy, lr=1e-5)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    assert isinstance(optimizer, MasterWeights)
    assert optimizer.masters[0].item() == pytest.approx(0.999, abs=1e-5)
    assert weight.item() == torch.tensor(0.999, dtype=torch.float16).item()


def test_an_overflow_skips_the_step() -> None:
    model = toy(torch.float16)
    optimizer = make_torch_optimizer(model.parameters(), Strategy(precision="fp16-master"), lr=1.0)
    assert isinstance(optimizer, MasterWeights)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    before = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer.collect_gradients()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_scheduler_drives_the_inner_optimizer() -> None:
    model = toy(torch.float16)
    strategy = Strategy(optimizer="sgd", precision="fp16-master")
    optimizer = make_torch_optimizer(model.parameters(), strategy, lr=1.0)
    assert isinstance(optimizer, MasterWeights)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.5


def test_state_dict_carries_the_masters() -> None:
    strategy = Strategy(optimizer="adamw-fused", precision="fp16-master")
    model, other = toy(torch.float16), toy(torch.float16)
    optimizer = make_torch_optimizer(model.parameters(), strategy, lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    resumed = make_torch_optimizer(other.parameters(), strategy, lr=1e-4)
    resumed.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer, MasterWeights)
    assert isinstance(resumed, MasterWeights)
    pairs = zip(optimizer.masters, resumed.masters, strict=True)
    assert all(a.equal(b) for a, b in pairs)
    assert resumed.state is resumed.inner.state
    assert len(resumed.state) == len(resumed.masters)


def test_zero_grad_to_zeros_and_closures() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float16))
    strategy = Strategy(optimizer="sgd", precision="fp16-master")
    optimizer = make_torch_optimizer([weight], strategy)
    weight.grad = torch.ones_like(weight)
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad.eq(0).all()
    with pytest.raises(UnsupportedCombination, match="closure"):
        optimizer.step(lambda: 0.0)
