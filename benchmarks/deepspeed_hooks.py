"""Host time of DeepSpeed's hooks: an engine's passes against its own without ZeRO.

    python -m pip install deepspeed hjson msgpack py-cpuinfo einops    # an environment of its own
    python benchmarks/deepspeed_hooks.py [--ranks 8] [--rounds 3] [--passes 25]

Models of tiny linear layers on the CPU, so that what is left is Python, autograd and the
dispatcher; a process group that answers at once (`fake`), so that nothing travels. Layers, modules
without parameters and biases are varied; CPU seconds (the 10 % point of the passes, the least of
the rounds) are fitted by a constant, a time for each module and one for each parameter. Live
parameters and reuse are an eighth of the model, as the defaults of 1e9 are of 8e9 parameters. The
operator of `rigsize calibrate --device cpu` is timed beside it: the constants of
`rigsize.steptime.hooks` are these times on a host that takes 5 us an operator.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

WIDTH, TEXTS = 16, 4
WHOLE = 10**9
OPEN = 10**6
"""Accumulation that no run reaches the end of: no micro-step closes a step."""
SHAPES = ((8, 4, 0, False), (24, 4, 0, False), (24, 4, 0, True), (24, 4, 4, False),
          (24, 8, 0, False), (24, 8, 0, True))  # fmt: skip
"""(layers, linear modules and modules without parameters of each, biases)."""
KINDS = {
    "zero1": (1, 0, OPEN),
    "zero1, last micro-step": (1, 0, 1),
    "zero2": (2, 0, OPEN),
    "zero3, each parameter gathered": (3, 0, OPEN),
    "zero3, each parameter whole": (3, WHOLE, OPEN),
}
"""(stage, persistence threshold, accumulation)."""


class Layer(nn.Module):
    """Linear modules and modules without parameters, one after another."""

    def __init__(self, linear: int, plain: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(linear))
        self.plain = nn.ModuleList(nn.ReLU() for _ in range(plain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Through all of them."""
        for module in (*self.linear, *self.plain):
            x = module(x)
        return x


class Model(nn.Module):
    """Layers; their output's sum is the loss."""

    def __init__(self, layers: int, linear: int, plain: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(linear, plain, bias) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def counts(shape: tuple[int, int, int, bool]) -> tuple[int, int]:
    """(modules that are called, parameters)."""
    layers, linear, plain, bias = shape
    return 1 + layers * (1 + linear + plain), layers * linear * (1 + bias)


def passes_of(
    shape: tuple[int, int, int, bool], stage: int, persistence: int, accumulation: int, times: int
) -> tuple[float, float]:
    """CPU seconds of a forward and of a backward pass."""
    import deepspeed

    model = Model(*shape)
    live = sum(parameter.numel() for parameter in model.parameters()) // 8
    zero = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": persistence,
        "stage3_prefetch_bucket_size": 3 * WIDTH**2,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
    }
    config = {
        "train_micro_batch_size_per_gpu": TEXTS,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    x = torch.randn(TEXTS, WIDTH, requires_grad=True)
    forward, backward = [], []
    gc.collect()
    gc.disable()
    for _ in range(5 + times):
        start = time.process_time()
        loss = engine(x)
        middle = time.process_time()
        engine.backward(loss)
        end = time.process_time()
        engine.step()
        forward.append(middle - start)
        backward.append(end - middle)
    gc.enable()
    return _low(forward[5:]), _low(backward[5:])


def _low(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10]


def operator_s(times: int) -> float:
    """CPU seconds of an operator, as `rigsize calibrate --device cpu` counts them."""
    from rigsize.calibrate.host import dispatch_task, tiny_config
    from rigsize.models import resolve_model

    source = resolve_model("xlm-roberta-base", allow_network=False)
    task = dispatch_task(tiny_config(source.config))
    return _low(_times(task.make(), times)) / task.sizes[0]


def _times(call: Callable[[], Any], times: int) -> list[float]:
    found = []
    for _ in range(5 + times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return found[5:]


def fit(shapes: list[tuple[int, int, int, bool]], more_s: list[float]) -> tuple[list[float], float]:
    """([constant, a module, a parameter] in us, largest relative miss), relative least squares."""
    rows = torch.tensor([(1.0, *counts(shape)) for shape in shapes], dtype=torch.float64)
    wanted = torch.tensor(more_s, dtype=torch.float64) * 1e6
    found = torch.linalg.lstsq(rows / wanted[:, None], torch.ones(len(shapes), 1).double())
    solved = found.solution[:, 0]
    return solved.tolist(), float((rows @ solved / wanted - 1).abs().max())


def main() -> int:
    """Prints what each stage adds to a pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=25)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.update(RANK="0", WORLD_SIZE=str(arguments.ranks), LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", DS_ACCELERATOR="cpu")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    store = FakeStore()
    torch.distributed.init_process_group("fake", rank=0, world_size=arguments.ranks, store=store)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, {arguments.ranks} ranks")
    least: dict[tuple[str, Any], tuple[float, float]] = {}
    operators = []
    for _ in range(arguments.rounds):
        operators.append(operator_s(arguments.passes))
        for shape in SHAPES:
            for name, how in (("none", (0, 0, OPEN)), *KINDS.items()):
                took = passes_of(shape, *how, arguments.passes)
                known = least.get((name, shape), took)
                least[name, shape] = min(known[0], took[0]), min(known[1], took[1])
    print(f"an operator: {1e6 * min(operators):.2f} us")
    print("us more than without ZeRO:  constant   a module   a parameter   largest miss")
    for name in KINDS:
        for index, which in enumerate(("forward", "backward")):
            more = [least[name, s][index] - least["none", s][index] for s in SHAPES]
            if min(more) <= 0:
                print(f"{name}, {which}: nothing that can be told from noise")
                continue
            (constant, module, parameter), miss = fit(list(SHAPES), more)
            print(
                f"{name}, {which}: {constant:8.0f} {module:8.1f} {parameter:8.1f}"
                f"   {100 * miss:.0f} %"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
