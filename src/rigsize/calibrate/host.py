"""What the host costs: dispatching operators, launching kernels, stepping AdamW.

A model of the real architecture at a tiny width does next to nothing in its kernels, so that its
step takes what Python, autograd and the dispatcher take. On a GPU the same step takes that and its
launches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rigsize.calibrate.kernels import Task
from rigsize.calibrate.traffic import adamw_step
from rigsize.trace.model import BuildOptions, build, load_config

__all__ = ["TASK", "adamw_tasks", "step_task", "tiny_config"]

TASK = "masked-lm"
_TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
    "max_position_embeddings": 34,
}
_TOKENS = 8
_LAYERS, _QUICK_LAYERS = 12, 4
_PARAMETERS, _QUICK_PARAMETERS = 2**26, 2**21


def tiny_config(config: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    """The same architecture, as deep as it is or four layers, and a thousandth as wide."""
    layers = min(int(config["num_hidden_layers"]), _QUICK_LAYERS if quick else _LAYERS)
    return dict(config) | _TINY | {"num_hidden_layers": layers}


def step_task(config: Mapping[str, Any], device: str) -> Task:
    """Forward and backward pass of the tiny model: `dispatch` on the host, `launch` on a GPU."""
    step = _step(config, device)
    operators = _operators(step)
    if device == "cuda":
        sizes: tuple[int, ...] = (operators, _kernels(step))
        return Task("launches", "launch", "forward and backward", "", sizes, lambda: step)
    return Task("dispatch", "dispatch", "forward and backward", "", (operators,), lambda: step)


def adamw_tasks(*, quick: bool) -> tuple[Task, ...]:
    """A step of torch's AdamW on the host, as a loop (its default there) and fused."""
    n = _QUICK_PARAMETERS if quick else _PARAMETERS

    def task(fused: bool) -> Task:
        name = "fused" if fused else "loop"
        what = "AdamW on the host"
        return Task(what, "cpu_adam", name, "", (n,), lambda: adamw_step("cpu", n, fused=fused))

    return (task(False), task(True))


def _step(config: Mapping[str, Any], device: str) -> Callable[[], None]:
    options = BuildOptions(task=TASK, compute="fp32")
    model = build(load_config(config, options), options, device)
    words = torch.randint(5, _TINY["vocab_size"], (1, _TOKENS), device=device)
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    step()
    return step


class _Counting(TorchDispatchMode):
    """Counts what reaches the dispatcher below autograd, views too, as a trace counts it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def _operators(step: Callable[[], None]) -> int:
    counted = _Counting()
    with counted:
        step()
    return counted.operators


def _kernels(step: Callable[[], None]) -> int:
    """Kernels, copies and fills that the step puts on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    found = sum(event.device_type.name == "CUDA" for event in seen.events() or ())
    if not found:
        raise RuntimeError("torch.profiler saw no kernel: CUPTI is missing or in use")
    return found
