"""What a checkpoint holds of a model and its optimizer: tensors by name, and plain JSON.

Tensors go through DCP, which writes shards and reads them back on any number of ranks. All else
(learning rates, integer step counts, flags) is JSON: DCP would pickle it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.run.optimizers import MasterWeights

__all__ = [
    "Contents",
    "Target",
    "collect",
    "is_adapted",
    "model_tensors",
    "needed_bytes",
    "plain_name",
    "unwrapped",
]

# Parts that wrappers put into names: torch.compile's and activation checkpointing's.
_WRAPPER_PARTS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_ADAM_STATES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything of a model and its optimizer."""

    tensors: dict[str, Tensor]
    """The live tensors themselves, DTensors among them: reading into them is loading."""
    groups: list[dict[str, Any]]
    """The optimizer's hyperparameters, group by group."""
    scalars: dict[str, Any]
    """Optimizer state that is no tensor, by the name it would have as one."""

    def document(self) -> dict[str, Any]:
        """The JSON part: groups, scalars, and shape and dtype of each tensor."""
        shapes = _shapes_of(self.tensors)
        return {"groups": self.groups, "scalars": self.scalars, "tensors": shapes}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DDP and torch.compile around it; `fully_shard` changes it in place."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else None
        inner = inner if inner is not None else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> Contents:
    """The contents now; an optimizer that has not stepped yet has no state and gets none.

    Raises:
        UnsupportedCombination: an optimizer keeps something that is neither tensor nor JSON.
    """
    tensors = model_tensors(model) | _master_tensors(optimizer)
    scalars: dict[str, Any] = {}
    inner = _inner(optimizer)
    # torch would initialise an empty state by a step of its own, which counts as one later.
    for name, _, _, value in _leaves(_state_by_name(model, optimizer)) if inner.state else ():
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            scalars[name] = _plain(name, value)
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(inner.param_groups):
        groups.append({})
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[_group_name(index, key)] = value
            elif key != "params":
                groups[-1][key] = _plain(_group_name(index, key), value)
    return Contents(tensors=tensors, groups=groups, scalars=scalars)


class Target:
    """Where a checkpoint goes: the tensors of a fresh model and optimizer.

    Read the saved tensors into `tensors`, then call `finish`.

    Args:
        model: built and wrapped as for training; its parameters are overwritten.
        optimizer: on this model; its hyperparameters become the saved ones.
        document: `Contents.document` of what was saved.

    Raises:
        SpecError: the saved tensors are not this model's, before anything is overwritten.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, document: dict[str, Any]
    ) -> None:
        self._model, self._optimizer, self._document = model, optimizer, document
        self._state: dict[str, Any] = {}
        self.tensors = model_tensors(model) | _master_tensors(optimizer)
        self._check_model()
        self._overlay_groups()
        if any(name.startswith("optimizer/") for name in self._saved):
            self._add_state()
        _check_same(self._saved, _shapes_of(self.tensors))

    @property
    def _saved(self) -> dict[str, Any]:
        return cast(dict[str, Any], self._document["tensors"])

    def _check_model(self) -> None:
        """Before the optimizer's state is allocated, which doubles or triples the memory."""
        kinds = ("model/", "masters/")
        saved = {name: value for name, value in self._saved.items() if name.startswith(kinds)}
        _check_same(saved, _shapes_of(self.tensors))

    def _overlay_groups(self) -> None:
        saved_groups, groups = self._document["groups"], _inner(self._optimizer).param_groups
        if len(saved_groups) != len(groups):
            problem = f"the checkpoint has {len(saved_groups)} parameter groups"
            raise SpecError("optimizer", len(groups), problem)
        for index, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
            for key, value in saved.items():
                # JSON has no tuples; betas is one.
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
            for key, value in group.items():
                if isinstance(value, Tensor):
                    self.tensors[_group_name(index, key)] = value

    def _add_state(self) -> None:
        """Lets torch make the optimizer's state, by a step with gradients and rate zero."""
        self._optimizer.zero_grad(set_to_none=True)  # it makes none where gradients are left
        self._state = _state_by_name(self._model, self._optimizer)
        by_parameter = self._state["state"]
        for parameter in list(by_parameter):
            # A parameter that never got a gradient has no state in the checkpoint either.
            prefix = f"optimizer/{parameter}/"
            known = (*self._saved, *self._document["scalars"])
            if not any(name.startswith(prefix) for name in known):
                del by_parameter[parameter]
        for name, container, key, value in _leaves(self._state):
            if isinstance(value, Tensor):
                self.tensors[name] = value
            elif name in self._document["scalars"]:
                container[key] = self._document["scalars"][name]

    def finish(self) -> None:
        """Hands the read tensors and scalars to the optimizer."""
        holder, inner = _holder(self._model, self._optimizer), _inner(self._optimizer)
        if self._state:
            options = StateDictOptions(strict=False)  # parameters without state, see above
            set_optimizer_state_dict(holder, inner, self._state, options=options)
        if isinstance(self._optimizer, MasterWeights):
            # Its own view of the inner optimizer's states follows; the masters are in place.
            whole = {"inner": inner.state_dict(), "masters": self._optimizer.masters}
            self._optimizer.load_state_dict(whole)


def _shapes_of(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Global shape and dtype of each tensor, as JSON."""
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }


def needed_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one checkpoint, all ranks together.

    Exact up to headers once the optimizer has stepped. Before, two tensors of the parameter's
    size are assumed for each optimizer with betas and one for each with momentum.
    """
    inner = _inner(optimizer)
    tensors = list((model_tensors(model) | _master_tensors(optimizer)).values())
    total_bytes = sum(map(_global_bytes, tensors))
    if inner.state:
        held = collect(model, optimizer).tensors
        return sum(map(_global_bytes, held.values()))
    for group in inner.param_groups:
        copies = _ADAM_STATES if "betas" in group else 1 if group.get("momentum") else 0
        total_bytes += copies * sum(map(_global_bytes, group["params"]))
    return total_bytes


def _global_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def is_adapted(model: nn.Module) -> bool:
    """Whether peft has put adapters into the unwrapped model."""
    return hasattr(model, "peft_config")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once, by "model/" and their name.

    Of an adapted model those that train: its frozen base is read from where it came from.
    """
    root = unwrapped(model)
    adapted = is_adapted(root)
    found: dict[str, Tensor] = {
        name: parameter
        for name, parameter in root.named_parameters()
        if parameter.requires_grad or not adapted
    }
    for prefix, module in root.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return {f"model/{plain_name(name)}": tensor for name, tensor in found.items()}


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and recomputation put into it."""
    for part in _WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def _master_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    masters = optimizer.masters if isinstance(optimizer, MasterWeights) else []
    return {f"masters/{index}": master for index, master in enumerate(masters)}


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.inner if isinstance(optimizer, MasterWeights) else optimizer


def _holder(model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The module whose parameters the optimizer steps on: torch names states after them."""
    if isinstance(optimizer, MasterWeights):
        return nn.ParameterList(optimizer.masters)
    return model


def _state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    holder = _holder(model, optimizer)
    return cast(dict[str, Any], get_optimizer_state_dict(holder, _inner(optimizer)))


def _leaves(state: dict[str, Any]) -> Iterator[tuple[str, dict[Any, Any], Any, Any]]:
    """Name, container, key and value of everything below "state"."""
    stack: list[tuple[str, dict[Any, Any]]] = [("optimizer", state["state"])]
    while stack:
        path, container = stack.pop()
        for key, value in list(container.items()):
            if isinstance(value, dict):
                stack.append((f"{path}/{key}", value))
            else:
                yield f"{path}/{key}", container, key, value


def _group_name(index: int, key: str) -> str:
    return f"groups/{index}/{key}"


def _plain(name: str, value: Any) -> Any:
    """The value if it is JSON (tuples become lists), else an error that names it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    problem = "this optimizer keeps a value that a checkpoint cannot hold"
    raise UnsupportedCombination("optim", f"{name}: {type(value).__name__}", problem)


def _check_same(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Same names, shapes and dtypes, or an error that names the first difference."""
    for name in sorted(saved.keys() | wanted.keys()):
        before, now = _words(saved.get(name)), _words(wanted.get(name))
        if before != now:
            hint = "the checkpoint is of another model or optimizer"
            raise SpecError(name, now, f"the checkpoint has {before}", hint=hint)


def _words(shape: dict[str, Any] | None) -> str:
    return "nothing" if shape is None else f"{shape['dtype']}{shape['shape']}"
