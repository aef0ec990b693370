"""What the host costs: dispatching operators, launching kernels, stepping AdamW.

A model of the real architecture at a tiny width does next to nothing in its kernels, so that its
step takes what Python, autograd and the dispatcher take. On a GPU the same step takes that and its
launches. How many of both it has, the packaged work of the same architecture says: what a step is
predicted with is then, of this model, what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rigsize.calibrate.kernels import Task
from rigsize.calibrate.traffic import adamw_step
from rigsize.hardware import Accelerator
from rigsize.models import ModelSource
from rigsize.point import point_of
from rigsize.program.work_build import work_for
from rigsize.spec import Strategy, Workload
from rigsize.trace.model import BuildOptions, build, load_config

__all__ = ["TASK", "TOKENS", "adamw_tasks", "dispatch_task", "launch_task", "tiny_config"]

TASK = "masked-lm"
_TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
    "max_position_embeddings": 34,
}
TOKENS = 8
"""Of the tiny model's one text."""
_PASSES = "forward and backward"
_PARAMETERS, _QUICK_PARAMETERS = 2**26, 2**21


def tiny_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture, as deep and a thousandth as wide."""
    return dict(config) | _TINY


def dispatch_task(config: Mapping[str, Any]) -> Task:
    """Forward and backward pass of the tiny model on the host alone, its operators counted."""
    step = _step(config, "cpu")
    return Task("dispatch", "dispatch", _PASSES, "", (_operators(step),), lambda: step)


def launch_task(source: ModelSource, gpu: Accelerator) -> Task:
    """The same on the GPU, of the model at its own depth."""
    workload = Workload(model=source.name, task=TASK, max_length=TOKENS, padding_in_batch=False)
    strategy = Strategy(micro_batch=1)
    work = work_for(source, workload, strategy, gpu, point_of(workload, strategy))
    operators = sum(segment.dispatches for segment in work.segments)
    kernels = sum(kernel.launches for segment in work.segments for kernel in segment.kernels)
    step = _step(tiny_config(source.config), "cuda")
    return Task("launches", "launch", _PASSES, "", (operators, kernels), lambda: step)


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
    words = torch.randint(5, _TINY["vocab_size"], (1, TOKENS), device=device)
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
