"""DeepSpeed's JSON of a ZeRO plan; it takes no comments, so notes go to the accelerate file.

Keys and defaults: deepspeed 0.19.8, runtime/config.py, runtime/zero/config.py and
`_configure_basic_optimizer` of runtime/engine.py, which hands `params` to torch's own AdamW where
`torch_adam` is set.
"""

from __future__ import annotations

import json
from typing import Any

from rigsize.emit.launch import DEEPSPEED, File, Launch
from rigsize.spec import Strategy

__all__ = ["deepspeed_config", "deepspeed_file"]

_BUCKET = 500_000_000
"""Elements, DeepSpeed's default and what the prediction counts with; written out all the same."""
_ENGINES = {"bf16": "bf16", "fp16-master": "fp16"}
_TORCH_ADAM: dict[str, dict[str, bool]] = {
    "adamw-fused": {"fused": True},
    "adamw-foreach": {"foreach": True},
    "adamw-loop": {"foreach": False, "fused": False},
}
_TORCH_OTHER: dict[str, tuple[str, dict[str, float]]] = {
    "sgd": ("SGD", {}),
    "sgd-momentum": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {}),
}
"""(class of torch.optim, its parameters) as `rigsize train` makes them."""


def deepspeed_config(launch: Launch) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the document, what it cannot say)."""
    strategy = launch.strategy
    document: dict[str, Any] = {
        "train_batch_size": launch.global_batch,
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": strategy.accumulation,
        "gradient_clipping": strategy.max_grad_norm or 0.0,
        "zero_optimization": _zero(strategy),
        "zero_allow_untested_optimizer": True,
    }
    for engine in ("bf16", "fp16"):
        document[engine] = {"enabled": _ENGINES.get(strategy.precision) == engine}
    optimizer = _optimizer(launch)
    notes: tuple[str, ...]
    if optimizer is not None:
        document["optimizer"] = optimizer
        notes = (
            f"optimizer {optimizer['type']}, learning rate {launch.learning_rate:g}, weight decay"
            f" {launch.weight_decay:g} stand in {DEEPSPEED}: the script makes none of its own"
            " (accelerate.utils.DummyOptim; transformers' Trainer wants the same two numbers)",
        )
    else:
        name = strategy.optimizer
        notes = (f"DeepSpeed has no entry for {name}: the script hands it to deepspeed.initialize",)
        # Else DeepSpeed refuses a script's own optimizer beside offloaded states.
        document["zero_force_ds_cpu_optimizer"] = False
    return document, notes


def deepspeed_file(launch: Launch) -> File:
    """`deepspeed.json`."""
    document, notes = deepspeed_config(launch)
    return File(name=DEEPSPEED, text=json.dumps(document, indent=2) + "\n", notes=notes)


def _zero(strategy: Strategy) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": int(strategy.parallel[-1]),
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
    }
    for what in _offloaded(strategy):
        zero[f"offload_{what}"] = {"device": "cpu", "pin_memory": True}
    return zero


def _offloaded(strategy: Strategy) -> tuple[str, ...]:
    table = {"cpu": ("optimizer", "param"), "cpu-params": ("param",), "optimizer": ("optimizer",)}
    return table.get(strategy.offload, ())


def _optimizer(launch: Launch) -> dict[str, Any] | None:
    """The entry; None where the script hands its own to `deepspeed.initialize`."""
    name = launch.strategy.optimizer
    params: dict[str, Any] = {"lr": launch.learning_rate, "weight_decay": launch.weight_decay}
    if name in _TORCH_ADAM and "optimizer" in _offloaded(launch.strategy):
        # DeepSpeedCPUAdam, whose time the prediction counts with.
        return {"type": "AdamW", "params": params}
    if name in _TORCH_ADAM:
        return {"type": "AdamW", "params": params | {"torch_adam": True} | _TORCH_ADAM[name]}
    if name in _TORCH_OTHER:
        kind, own = _TORCH_OTHER[name]
        return {"type": kind, "params": params | own | {"foreach": True}}
    return None
