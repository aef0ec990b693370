"""accelerate's YAML: processes, precision and sharding; the rest is its script's, in comments.

Keys: accelerate 1.15, commands/config/config_args.py (`ClusterConfig`), commands/launch.py and
utils/dataclasses.py (`FullyShardedDataParallelPlugin`, `ParallelismConfig`). An unknown key is
refused there, so nothing of ours is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rigsize.emit.launch import ACCELERATE, DEEPSPEED, File, Launch, comment
from rigsize.emit.scripts import PORT
from rigsize.program.mesh import mesh_of
from rigsize.spec import Strategy
from rigsize.spec.strategy import FSDPS
from rigsize.spec.zero import ZEROS

__all__ = ["accelerate_config", "accelerate_file"]

_MIXED = {"amp-bf16": "bf16", "amp-fp16": "fp16"}


def accelerate_config(launch: Launch) -> dict[str, Any]:
    """The document, with one level of tables in it."""
    strategy, cluster = launch.strategy, launch.cluster
    document: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": _kind(launch),
        "num_machines": cluster.nodes,
        "num_processes": launch.ranks,
        "machine_rank": 0,
        "main_training_function": "main",
        "same_network": True,
        "use_cpu": cluster.accelerator.is_cpu,
        "rdzv_backend": "static",
    }
    if cluster.nodes > 1:
        document["main_process_port"] = PORT
    if strategy.parallel not in ZEROS:  # beside a DeepSpeed file it would be said twice
        document["mixed_precision"] = _MIXED.get(strategy.precision, "no")
    if strategy.compile:
        document["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    if strategy.parallel in ZEROS:
        document["deepspeed_config"] = _deepspeed(launch)
    if strategy.parallel in FSDPS:
        document["fsdp_config"] = _fsdp(strategy)
    if strategy.parallel == "hsdp":
        mesh = mesh_of(strategy, cluster)
        document["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": mesh.replicas,
            "parallelism_config_dp_shard_size": mesh.shard,
            "parallelism_config_tp_size": 1,
            "parallelism_config_cp_size": 1,
        }
    return document


def accelerate_file(launch: Launch, more_notes: tuple[str, ...] = ()) -> File:
    """`accelerate.yaml`, with what it cannot say as comments above it."""
    notes = (*_script_notes(launch), *_own_notes(launch), *more_notes)
    head = [f"accelerate launch --config_file {ACCELERATE} YOUR_SCRIPT.py"]
    if launch.strategy.parallel in ZEROS:
        head.append(f"started in this folder: {DEEPSPEED} is looked for where it is started")
    if launch.cluster.nodes > 1:
        head.append("on node N with --machine_rank N --main_process_ip FIRST_NODE")
    head += ["These are not settings of this file; the script has to do the same:", *notes]
    lines = [comment(line) for line in head]
    return File(
        name=ACCELERATE,
        text="\n".join([*lines, *_yaml(accelerate_config(launch))]) + "\n",
        notes=notes,
    )


def _kind(launch: Launch) -> str:
    parallel = launch.strategy.parallel
    if parallel in ZEROS:
        return "DEEPSPEED"
    if parallel in FSDPS:
        return "FSDP"
    if parallel == "single" or launch.ranks == 1:
        return "NO"
    return "MULTI_CPU" if launch.cluster.accelerator.is_cpu else "MULTI_GPU"


def _fsdp(strategy: Strategy) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": strategy.reshard_after_forward,
        "fsdp_offload_params": strategy.offload == "cpu",
        "fsdp_activation_checkpointing": strategy.recompute != "none",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }


def _deepspeed(launch: Launch) -> dict[str, Any]:
    found: dict[str, Any] = {
        "deepspeed_config_file": DEEPSPEED,
        "zero3_init_flag": launch.strategy.parallel == "zero3",
    }
    if launch.cluster.nodes > 1:
        found["deepspeed_multinode_launcher"] = "standard"
    return found


# -- what the file cannot say -------------------------------------------------------------------


def _script_notes(launch: Launch) -> Iterator[str]:
    """Settings of any training script, in the names of transformers' TrainingArguments."""
    strategy, workload = launch.strategy, launch.workload
    length = f"texts of at most {workload.max_length} tokens, padding {workload.padding}"
    yield f"model {workload.model}, {workload.task}; {length}"
    if strategy.parallel not in ZEROS:
        yield (
            f"micro-batch {strategy.micro_batch} (per_device_train_batch_size), accumulation"
            f" {strategy.accumulation} (gradient_accumulation_steps): {launch.global_batch} texts"
            " a step"
        )
        norm = "none" if strategy.max_grad_norm is None else f"{strategy.max_grad_norm:g}"
        yield f"optimizer {strategy.optimizer}, learning rate {launch.learning_rate:g}"
        yield f"clipping of gradients at norm {norm} (max_grad_norm)"
    yield f"attention {strategy.attention} (attn_implementation)"
    if strategy.tokens_per_batch is not None:
        yield f"micro-batches of {strategy.tokens_per_batch} tokens in one unpadded row"
    if strategy.loss != "all":
        yield f"the LM head over {strategy.loss} positions alone"
    yield from _precision_notes(strategy)
    yield from _memory_notes(strategy)
    if strategy.method != "full":
        yield f"method {strategy.method} through peft, {_adapter(strategy)}"
    if strategy.stored_as != "none":
        yield f"base weights stored as {strategy.stored_as}"


def _adapter(strategy: Strategy) -> str:
    if strategy.method in ("prefix", "prompt"):
        return f"{strategy.virtual_tokens} virtual tokens"
    where = strategy.lora_targets or "peft's own modules"
    rslora = ", rank-stabilised" if strategy.rslora else ""
    return (
        f"rank {strategy.lora_rank}{rslora}, dropout {strategy.lora_dropout:g}, on {where}, in"
        f" {strategy.adapter_dtype}"
    )


def _precision_notes(strategy: Strategy) -> Iterator[str]:
    if strategy.precision == "tf32":
        yield "TF32 products (tf32, or torch.set_float32_matmul_precision('high'))"
    if strategy.precision in ("bf16", "fp16-master"):
        half = strategy.policy.half_dtype
        zero = strategy.parallel in ZEROS
        why = "its engine keeps fp32 masters" if zero else "no autocast, no master copy"
        yield f"the model loaded in {half} (dtype): {why}"


def _memory_notes(strategy: Strategy) -> Iterator[str]:
    sharded = strategy.parallel in FSDPS
    if strategy.recompute == "block" and not sharded:
        yield "recompute block (gradient_checkpointing)"
    elif strategy.recompute not in ("none", "block"):
        yield (
            f"recompute {strategy.recompute}: accelerate has all blocks or none"
            + ("; all is set, which takes less memory and more time" if sharded else "")
        )
    if strategy.offload in ("optimizer", "activations") and strategy.parallel not in ZEROS:
        yield f"offload {strategy.offload} to the host, which accelerate has no setting for"
    elif strategy.offload == "activations":
        yield "offload activations to the host (torch.autograd.graph.save_on_cpu)"
    if strategy.optimizer_in_backward:
        yield "each parameter stepped on in the backward pass"
    if not strategy.hold_output:
        yield "the model's output given up before the backward pass"
    if strategy.bucket_view:
        yield "DDP with gradient_as_bucket_view (DistributedDataParallelKwargs)"


def _own_notes(launch: Launch) -> Iterator[str]:
    """Where accelerate does otherwise than the plan."""
    strategy = launch.strategy
    if _kind(launch) == "MULTI_CPU":
        yield (
            "accelerate starts several CPU ranks through mpirun alone: torchrun --nproc-per-node"
            f" {launch.cluster.per_node} YOUR_SCRIPT.py does without"
        )
    if strategy.parallel in FSDPS:
        yield (
            "accelerate wraps the model's _no_split_modules, the plan its layers: set"
            " fsdp_transformer_layer_cls_to_wrap where the two differ"
        )
        if strategy.precision == "amp-bf16":
            yield "accelerate reduces gradients in bf16 and runs autocast; the plan reduces in fp32"


def _yaml(document: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Numbers, switches and quoted strings are the same in YAML and JSON; `no` unquoted is not."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"
