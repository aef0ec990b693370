"""The offloaded optimizer: the same numbers, and the same bytes as torchao's own class."""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

from rigsize.memory.host_items import optimizer_items
from rigsize.memory.host_records import Weight
from rigsize.run.optimizers import HostOptimizer, make_torch_optimizer
from rigsize.run.step import StepRecipe, apply_gradients
from rigsize.spec import Strategy

RECIPE = StepRecipe(task="masked-lm", device_type="cpu", max_grad_norm=0.5)


def model() -> torch.nn.Module:
    """Two tensors of 4,096 elements and more, two smaller ones."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 100))


def offloaded(of: torch.nn.Module, build: Any) -> HostOptimizer:
    return HostOptimizer(of.named_parameters(), build)


def build_adamw(named: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for _, p in named], lr=0.1, fused=True)


def build_momentum(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9)


def steps(of: torch.nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        of(torch.randn(3, 64)).square().sum().backward()
        apply_gradients(optimizer, RECIPE)
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("build", [build_adamw, build_momentum])
def test_the_same_steps_to_the_bit(build: Any) -> None:
    plain, moved = model(), model()
    steps(plain, build(list(plain.named_parameters())), range(3))
    steps(moved, offloaded(moved, build), range(3))
    for one, other in zip(plain.parameters(), moved.parameters(), strict=True):
        assert torch.equal(one, other)


def test_small_tensors_are_stepped_on_where_they_are() -> None:
    one = model()
    optimizer = offloaded(one, build_adamw)
    same = [m is w for w, m in zip(optimizer.weights, optimizer.masters, strict=True)]
    assert same == [False, True, False, True]


def test_gradients_of_weight_and_copy_are_both_freed() -> None:
    one = model()
    optimizer = offloaded(one, build_adamw)
    steps(one, optimizer, range(1))
    assert all(p.grad is None for p in [*optimizer.weights, *optimizer.masters])


def test_it_goes_on_from_its_own_state() -> None:
    straight, first = model(), model()
    steps(straight, offloaded(straight, build_adamw), range(4))
    optimizer = offloaded(first, build_adamw)
    steps(first, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    second = copy.deepcopy(first)
    resumed = offloaded(second, build_adamw)
    resumed.load_state_dict(saved)
    steps(second, resumed, range(2, 4))
    for one, other in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_where_the_host_is_the_device_nothing_moves() -> None:
    strategy = Strategy(optimizer="adamw-fused", offload="optimizer")
    assert isinstance(make_torch_optimizer(model().parameters(), strategy), torch.optim.AdamW)


def test_a_frozen_weight_has_no_copy() -> None:
    one = model()
    next(one.parameters()).requires_grad_(False)
    assert len(offloaded(one, build_adamw).masters) == 3


class _Stream:
    """Of a card that is not there."""

    def wait_stream(self, _other: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self) -> _Stream:
        return self


def torchaos(of: torch.nn.Module) -> Any:
    """torchao's `CPUOffloadOptimizer` after a step, on a card's streams that do nothing."""
    offload = pytest.importorskip("torchao.optim.cpu_offload")
    empty_like = torch.empty_like

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return empty_like(*args, **kwargs)

    with ExitStack() as stack:
        for place, name, value in (
            (offload, "get_available_devices", lambda: ["cpu", "cuda"]),
            (torch.cuda, "Stream", _Stream),
            (torch.cuda, "current_stream", _Stream),
            (torch.cuda, "stream", lambda _stream: nullcontext()),
            (torch, "empty_like", unpinned),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        optimizer = offload.CPUOffloadOptimizer(of.parameters(), torch.optim.AdamW, lr=0.1)
        of(torch.randn(3, 64)).square().sum().backward()
        optimizer.step()
    return optimizer


def test_bytes_are_those_of_torchaos_tensors() -> None:
    of = model()
    theirs = torchaos(of)
    copies = list(theirs.param_d2h_map.values())
    weights = [
        Weight(name=name, shape=tuple(p.shape), itemsize=4, trainable=True)
        for name, p in of.named_parameters()
    ]
    strategy = Strategy(optimizer="adamw-fused", offload="optimizer", max_grad_norm=None)
    ours: dict[str, int] = {}
    for item in optimizer_items(weights, strategy):
        ours[item.row] = ours.get(item.row, 0) + item.num_bytes
    states = [
        tensor
        for optimizer in theirs.optim_dict.values()
        for state in optimizer.state.values()
        for tensor in state.values()
    ]
    assert ours["offload.parameters"] == bytes_of(copies)
    assert ours["offload.gradients"] == bytes_of([copied.grad for copied in copies])
    assert ours["offload.optimizer_states"] == bytes_of(states)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
