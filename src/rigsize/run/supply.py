"""Inputs on the device, step by step, and the names of everything that lives there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rigsize.run.feeds import Feed
from rigsize.run.meters import storages
from rigsize.run.tally import named
from rigsize.trace.model import named_tensors
from rigsize.trace.quantized import named_statistics

__all__ = ["Namer", "Supply", "lasting"]


class Supply:
    """Hands the feed's micro-batches over, each on the device when its turn comes."""

    def __init__(self, feed: Feed, device: torch.device, arguments: Mapping[str, Any]) -> None:
        self._feed, self._device, self._arguments = feed, device, arguments
        self._current: dict[str, Any] = {}
        if feed.resident:
            self._current = feed.windows[0][0].to(device)

    @property
    def resident(self) -> list[torch.Tensor]:
        """What is on the device now."""
        return list(named_tensors(self._current).values())

    def inputs(self, number: int) -> Iterator[Mapping[str, Any]]:
        """The model's arguments for each micro-batch of step `number`."""
        for batch in self._feed.step(number):
            if not self._feed.resident:
                self._current = _moved(batch.inputs, self._device)
            yield self._current | dict(self._arguments)
        if not self._feed.resident:
            self._current = {}

    def shares(self, number: int) -> list[float]:
        """Each micro-batch's part of what the step predicts."""
        labelled = [batch.sizes.labelled for batch in self._feed.step(number)]
        return [one / sum(labelled) for one in labelled]


def _moved(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copies, also where the device is the host: a card would hold copies too."""
    return {name: _copied(value, device) for name, value in inputs.items()}


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    return value.to(device) if hasattr(value, "to") else value


def lasting(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[torch.Tensor]:
    """Weights, buffers, and the optimizer's states and master copies as far as it has them."""
    yield from _weights(model)
    if optimizer is not None:
        yield from _states(optimizer)


def _weights(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters with the scales of quantised ones, and buffers."""
    yield from model.parameters()
    yield from (scale for _, scale in named_statistics(model))
    yield from model.buffers()


def _states(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]  # master copies where there are any
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, torch.Tensor))


class Namer:
    """Says what lives at which address: weights first, so that a master copy is a state."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, supply: Supply
    ) -> None:
        self._model, self._optimizer, self._supply = model, optimizer, supply

    def __call__(self) -> Mapping[int, str]:
        """Categories by address."""
        states = [] if self._optimizer is None else list(_states(self._optimizer))
        stepped = [p for p in [*self._model.parameters(), *states] if p.grad is not None]
        return named(
            [
                ("weights", _addresses(_weights(self._model))),
                ("gradients", _addresses(p.grad for p in stepped if p.grad is not None)),
                ("optimizer_states", _addresses(states)),
                ("inputs", _addresses(self._supply.resident)),
            ]
        )


def _addresses(tensors: Iterable[torch.Tensor]) -> Iterable[int]:
    return storages(tensors)
