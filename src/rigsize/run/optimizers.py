"""The real optimizers, each with its implementation chosen explicitly.

`rigsize.program.optimizer` gives the same steps as events; what is set here is what it assumes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rigsize.errors import MeasurementFailed, UnsupportedCombination
from rigsize.program.optimizer import MIN_OFFLOADED_NUMEL
from rigsize.run.in_backward import SteppedInBackward
from rigsize.run.joined import muon_and_adamw
from rigsize.spec.optimizers import PACKAGES
from rigsize.spec.strategy import Strategy

Constructor = Callable[..., torch.optim.Optimizer]
Build = Callable[[Sequence[tuple[str, Tensor]]], torch.optim.Optimizer]

MOMENTUM = 0.9


class MasterWeights(torch.optim.Optimizer):
    """The recipe fp16-master: any optimizer, on fp32 copies of 16-bit weights.

    The order of a step, with a `GradScaler` and clipping::

        scaler.scale(loss).backward()
        optimizer.collect_gradients()   # each 16-bit gradient, copied to its master in fp32
        scaler.unscale_(optimizer)      # refuses fp16 gradients, takes the masters'
        clip_grad_norm_(stepped_parameters(optimizer), max_norm)
        scaler.step(optimizer)          # steps on the masters and copies them into the weights
        scaler.update()
        optimizer.zero_grad()           # frees the masters' gradients, then the weights'

    Masters are cloned once, here; 16-bit gradients live until `zero_grad`. Micikevicius et al.
    2018 (Mixed Precision Training), section 3.1.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], build: Build) -> None:
        trained = [(name, p) for name, p in parameters if p.requires_grad]
        self.weights = [p for _, p in trained]
        self.masters: list[Tensor] = [self._master(weight) for weight in self.weights]
        names = [name for name, _ in trained]
        self.inner = build(list(zip(names, self.masters, strict=True)))
        super().__init__(self.masters, self.inner.defaults)
        self._share()

    def _master(self, weight: Tensor) -> Tensor:
        """What is stepped on for a weight."""
        return torch.nn.Parameter(weight.detach().to(torch.float32, copy=True))

    def _share(self) -> None:
        """Groups and states are the inner optimizer's own: a scheduler or scaler sees them."""
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Copies each weight's gradient to its master, unless it was copied already."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight.grad is not None and master.grad is None:
                master.grad = weight.grad.to(torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps on the masters, then copies them into the weights."""
        if closure is not None:
            raise UnsupportedCombination("precision", "fp16-master", "a closure cannot be used")
        self.collect_gradients()
        self.inner.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the masters' gradients and the weights' (or, as torch has it, zeroes these)."""
        self.inner.zero_grad(set_to_none=True)
        for weight in self.weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the masters: the weights alone would lose their low bits."""
        return {"inner": self.inner.state_dict(), "masters": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self.inner.load_state_dict(state_dict["inner"])
        for master, saved in zip(self.masters, state_dict["masters"], strict=True):
            master.copy_(saved)
        self._share()


class HostOptimizer(MasterWeights):
    """Any optimizer, on copies of the weights in pinned host memory: states never see the device.

    The layout of torchao's `CPUOffloadOptimizer` without `offload_gradients`: a pinned copy of each
    weight and of its gradient, small tensors stepped on where they are. Gradients travel at the
    step and not in backward hooks, so that what is clipped is what is stepped on.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], build: Build) -> None:
        self._gradients: list[Tensor | None] = []
        super().__init__(parameters, build)

    def _master(self, weight: Tensor) -> Tensor:
        if weight.numel() < MIN_OFFLOADED_NUMEL:
            self._gradients.append(None)
            return weight
        self._gradients.append(_host_like(weight))
        return torch.nn.Parameter(_host_like(weight).copy_(weight.detach()))

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Copies each gradient into its place on the host, unless it was copied already."""
        for weight, master, place in zip(self.weights, self.masters, self._gradients, strict=True):
            if place is not None and weight.grad is not None and master.grad is None:
                master.grad = place.copy_(weight.grad, non_blocking=True)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the host reads them next

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps on the host copies and the small tensors, then copies back what was on the host."""
        if closure is not None:
            raise UnsupportedCombination("offload", "optimizer", "a closure cannot be used")
        self.collect_gradients()
        self.inner.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master, non_blocking=True)


def _host_like(tensor: Tensor) -> Tensor:
    """An uninitialised host tensor of its shape, strides and dtype; pinned if it is on a card."""
    empty: Tensor = torch.empty_like(
        tensor, device="cpu", pin_memory=tensor.device.type == "cuda", requires_grad=False
    )
    return empty


def stepped_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer steps on, hence what is clipped: the masters where there are any."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def make_torch_optimizer(
    model_parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    strategy: Strategy,
    lr: float = 1e-5,
    *,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The strategy's optimizer in one parameter group; on master copies for fp16-master.

    Parameters come bare or with their names, as torch takes them; Muon asks for names. Where the
    strategy says so, each has an optimizer of its own that steps in backward. With `--offload
    optimizer` it steps on copies in host memory, unless that is the device. `weight_decay` None
    is each optimizer's own default (AdamW 0.01, Muon 0.1, the others 0).
    """
    named = [_named(p) for p in model_parameters]
    build = partial(_build, strategy.optimizer, lr, weight_decay)
    if strategy.policy.master_bytes:
        return MasterWeights(named, build)
    trained = [(name, p) for name, p in named if p.requires_grad]
    if strategy.optimizer_in_backward:
        return SteppedInBackward(trained, build)
    if strategy.offload == "optimizer" and any(p.device.type != "cpu" for _, p in trained):
        return HostOptimizer(trained, build)
    return build(trained)


def _named(parameter: Tensor | tuple[str, Tensor]) -> tuple[str, Tensor]:
    return ("", parameter) if isinstance(parameter, Tensor) else parameter


def _build(
    name: str, lr: float, weight_decay: float | None, named: Sequence[tuple[str, Tensor]]
) -> torch.optim.Optimizer:
    """The optimizer of that name on these parameters."""
    if name == "muon":
        return muon_and_adamw(named, lr, weight_decay)
    more = {} if weight_decay is None else {"weight_decay": weight_decay}
    constructor = _torch_builder(name) or _packaged_builder(name)
    return constructor([p for _, p in named], lr=lr, **more)


def _torch_builder(name: str) -> Constructor | None:
    """The class of torch behind a name of `spec.optimizers.OPTIMIZERS`; its defaults otherwise."""
    adamw, adafactor, sgd = torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD
    builders: dict[str, Constructor] = {
        "adamw-foreach": partial(adamw, foreach=True),
        "adamw-fused": partial(adamw, fused=True),
        "adamw-loop": partial(adamw, foreach=False, fused=False),
        "sgd": partial(sgd, foreach=True),
        "sgd-momentum": partial(sgd, momentum=MOMENTUM, foreach=True),
        "rmsprop": partial(torch.optim.RMSprop, foreach=True),
        # torch's own default, also on CUDA: Adafactor takes foreach only when asked.
        "adafactor": partial(adafactor, foreach=False),
        "adafactor-foreach": partial(adafactor, foreach=True),
    }
    return builders.get(name)


_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw-8bit": ("AdamW8bit", {}),
    "paged-adamw": ("PagedAdamW", {}),
    "paged-adamw-8bit": ("PagedAdamW8bit", {}),
    "lion": ("Lion", {}),
    "lion-8bit": ("Lion8bit", {}),
    "adamw-8bit-torchao": ("AdamW8bit", {}),
    "adamw-4bit": ("AdamW4bit", {}),
    "adamw-fp8": ("AdamWFp8", {}),
    "adamw-sr": ("_AdamW", {"bf16_stochastic_round": True}),
    # As the Trainer makes it: transformers/trainer_optimizer.py (5.23).
    "adafactor-hf": ("Adafactor", {"scale_parameter": False, "relative_step": False}),
}
"""Class and arguments in the module of `spec.optimizers.PACKAGES`."""


def _packaged_builder(name: str) -> Constructor:
    class_name, arguments = _CLASSES[name]
    instead = "bf16 with adamw-fused" if name == "adamw-sr" else "adamw-fused"
    module = _package(PACKAGES[name], name, instead)
    return partial(getattr(module, class_name), **arguments)


def _package(name: str, optimizer: str, instead: str) -> Any:
    """The optimizers of a package that few of them need, imported when one is asked for."""
    part = "optimization" if name == "transformers" else "optim"
    try:
        package = importlib.import_module(f"{name}.{part}")
    except ImportError as error:
        raise MeasurementFailed(
            "optim",
            optimizer,
            f"needs the package {name}, which is not installed",
            hint=f"pip install {name}, or take {instead}",
        ) from error
    return package
