"""The real optimizers, each with its implementation chosen explicitly.

`rigsize.program.optimizer` gives the same steps as events; what is set here is what it assumes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rigsize.errors import MeasurementFailed, UnsupportedCombination
from rigsize.spec.strategy import Strategy

Build = Callable[..., torch.optim.Optimizer]

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

    def __init__(self, parameters: Iterable[Tensor], build: Build) -> None:
        self.weights = [p for p in parameters if p.requires_grad]
        self.masters: list[Tensor] = [
            torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in self.weights
        ]
        self.inner = build(self.masters)
        super().__init__(self.masters, self.inner.defaults)
        self._share()

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


def stepped_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer steps on, hence what is clipped: the masters where there are any."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def make_torch_optimizer(
    model_parameters: Iterable[Tensor],
    strategy: Strategy,
    lr: float = 1e-5,
    *,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The strategy's optimizer in one parameter group; on master copies for fp16-master.

    `weight_decay` None is each optimizer's own default (AdamW 0.01, the others 0).
    """
    build = _builder(strategy.optimizer, lr)
    if weight_decay is not None:
        build = partial(build, weight_decay=weight_decay)
    if strategy.policy.master_bytes:
        return MasterWeights(model_parameters, build)
    return build([p for p in model_parameters if p.requires_grad])


def _builder(name: str, lr: float) -> Build:
    """The constructor behind a name of `spec.strategy.OPTIMIZERS`; torch's defaults otherwise."""
    if name == "adamw-8bit":
        return partial(_package("bitsandbytes", name, "adamw-fused").optim.AdamW8bit, lr=lr)
    if name == "adamw-sr":
        torchao = _package("torchao", "adamw-sr", "bf16 with adamw-fused")
        return partial(torchao.optim._AdamW, lr=lr, bf16_stochastic_round=True)
    builders: dict[str, Build] = {
        "adamw-foreach": partial(torch.optim.AdamW, lr=lr, foreach=True),
        "adamw-fused": partial(torch.optim.AdamW, lr=lr, fused=True),
        "adamw-loop": partial(torch.optim.AdamW, lr=lr, foreach=False, fused=False),
        "sgd": partial(torch.optim.SGD, lr=lr, foreach=True),
        "sgd-momentum": partial(torch.optim.SGD, lr=lr, momentum=MOMENTUM, foreach=True),
        # torch's own default, also on CUDA: Adafactor takes foreach only when asked.
        "adafactor": partial(torch.optim.Adafactor, lr=lr, foreach=False),
    }
    return builders[name]


def _package(name: str, optimizer: str, instead: str) -> Any:
    """A package that only one optimizer needs, imported when it is asked for."""
    try:
        package = importlib.import_module(name)
        importlib.import_module(f"{name}.optim")
    except ImportError as error:
        raise MeasurementFailed(
            "optim",
            optimizer,
            f"needs the package {name}, which is not installed",
            hint=f"pip install {name}, or take {instead}",
        ) from error
    return package
