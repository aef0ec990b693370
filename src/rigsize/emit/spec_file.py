"""Our own spec file: `rigsize train --spec` and `rigsize estimate --spec` read the plan back."""

from __future__ import annotations

import json
from typing import Any

from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GIGABIT_BYTES

__all__ = ["gpus_text", "spec_flags", "spec_toml"]

_WORKLOAD = {
    "max_target_length": "max_target_length",
    "num_labels": "num_labels",
    "padding": "padding",
    "mask_share": "mask_share",
    "examples": "examples",
    "epochs": "epochs",
    "prompt_length": "prompt_length",
    "max_new_tokens": "max_new_tokens",
}
_STRATEGY = {
    "precision": "precision",
    "batch_size": "micro_batch",
    "attention": "attention",
    "grad_accum": "accumulation",
    "optim": "optimizer",
    "max_grad_norm": "max_grad_norm",
    "recompute": "recompute",
    "loss": "loss",
    "hold_output": "hold_output",
    "tokens_per_batch": "tokens_per_batch",
    "parallel": "parallel",
    "shard_size": "shard_size",
    "reshard": "reshard_after_forward",
    "bucket_view": "bucket_view",
    "offload": "offload",
    "method": "method",
    "lora_rank": "lora_rank",
    "rslora": "rslora",
    "lora_dropout": "lora_dropout",
    "lora_targets": "lora_targets",
    "adapter_dtype": "adapter_dtype",
    "virtual_tokens": "virtual_tokens",
    "quantization": "quantization",
    "optim_in_backward": "optimizer_in_backward",
    "compile": "compile",
}
"""Key of a spec file: field of the record."""
_ALWAYS = ("precision", "batch_size", "attention", "parallel")
_ALWAYS_TRAINING = ("grad_accum", "optim", "max_grad_norm", "recompute", "loss")
_PLAIN = Strategy()
_PLAIN_WORKLOAD = Workload(model="", task="masked-lm", max_length=1)


def spec_flags(workload: Workload, strategy: Strategy) -> dict[str, Any]:
    """The flags, by the key of a spec file, that parse into these records again.

    What is left out is a flag's own default; what a later version might choose otherwise for the
    user (precision, batch, attention, optimizer, ...) is always there.
    """
    flags: dict[str, Any] = {"model": workload.model, "task": workload.task, "use": workload.use}
    if not workload.generates:
        flags["max_length"] = workload.max_length
    for key, name in _WORKLOAD.items():
        value = getattr(workload, name)
        if value is not None and value != getattr(_PLAIN_WORKLOAD, name):
            flags[key] = value
    if workload.padding != "unpadded" and not workload.padding_in_batch:
        flags["padding_in_batch"] = False
    always = (*_ALWAYS, *(_ALWAYS_TRAINING if workload.training else ()))
    for key, name in _STRATEGY.items():
        value = getattr(strategy, name)
        if key in always or value != getattr(_PLAIN, name):
            flags[key] = 0 if key == "max_grad_norm" and value is None else value
    return {key: value for key, value in flags.items() if value is not None}


def gpus_text(cluster: Cluster) -> str:
    """`A100-40GB-SXM`, `H100-80GB-SXM:8`, `H100-80GB-SXM:8x2`, as `--gpus` takes it."""
    if cluster.devices == 1:
        return cluster.accelerator.id
    nodes = f"x{cluster.nodes}" if cluster.nodes > 1 else ""
    return f"{cluster.accelerator.id}:{cluster.per_node}{nodes}"


def spec_toml(workload: Workload, strategy: Strategy, cluster: Cluster) -> str:
    """The file's text."""
    flags = spec_flags(workload, strategy) | {"gpus": gpus_text(cluster)}
    if cluster.accelerator.table:
        flags["accelerators"] = cluster.accelerator.table
    if cluster.host_memory_bytes is not None:
        flags["host_memory"] = f"{cluster.host_memory_bytes}B"
    if cluster.network_bytes_per_s is not None and cluster.nodes > 1:
        flags["network"] = cluster.network_bytes_per_s / GIGABIT_BYTES
    head = (
        "# rigsize estimate --spec FILE    what it takes; rigsize train --spec FILE --data TEXTS"
        " runs it\n"
    )
    return head + "".join(f"{key} = {_value(value)}\n" for key, value in flags.items())


def _value(value: object) -> str:
    """TOML's numbers and switches are JSON's, its strings too but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
