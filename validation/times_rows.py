"""Rows of the table of published runs as questions: what each program did, in our records.

The choices are written down, with their date, in docs/decisions/007-proof-of-step-times.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from validation import times_spread_rows
from validation.times_questions import (
    BERT,
    QWEN,
    LeftOut,
    Question,
    Row,
    cluster_of,
    config_source,
    neusight_source,
    texts,
)

from rigsize.models import resolve_model
from rigsize.spec import Strategy, Workload
from rigsize.units import GIGABIT_BYTES

__all__ = ["MEASURED_CARDS", "PROOF", "LeftOut", "Question", "Row", "question_of"]

PROOF = (
    "peft-metamath-l40s",
    "qwen1-finetune",
    "torchtune-ablation",
    "dle-bert-pretrain-a100",
    "dle-bert-finetune-a100",
    "foundry-a100-80",
    "neusight-train",
)
MEASURED_CARDS = ("A100", "H100", "H200", "L40S", "B200", "RTX-PRO-6000")
"""Beginnings of the ids of accelerators with kernel tables."""


def question_of(row: Row) -> Question:
    """The question of a row; LeftOut says why there is none."""
    name = row["slice"]
    made = _SLICES.get(name)
    if made is None:
        raise LeftOut("the slice's program is not written out as records")
    return made(row)


# -- peft ---------------------------------------------------------------------------------------

_PEFT_TOKENS = (210 + 1) * 4
_PEFT_LENGTH = 220
_PEFT: dict[str, dict[str, Any]] = {
    "variant full-finetuning": {"method": "full"},
    "adalora--llama-3.2-3B-rank32": {"method": "adalora", "lora_rank": 64},
    "rank10-target-mlp": {"method": "lora", "lora_rank": 10},
    "rank32-dora": {"method": "dora", "lora_rank": 32},
    "rank64-rslora": {"method": "lora", "lora_rank": 64, "rslora": True},
    "prefixtuning": {"method": "prefix", "virtual_tokens": 200},
    "prompt_tuning": {"method": "prompt", "virtual_tokens": 200},
}


def _peft(row: Row) -> Question:
    how = next((found for key, found in _PEFT.items() if key in row["notes"]), None)
    if how is None:
        raise LeftOut(f"no Strategy has {row['method']}, or not in this form")
    more = dict(how)
    if "lora" in str(how["method"]) or how["method"] == "dora":
        mlp = "down_proj,gate_proj,up_proj"
        more["lora_targets"] = mlp if "target-mlp" in row["notes"] else "q_proj,v_proj"
    return Question(
        row=row,
        source=resolve_model("meta-llama/Llama-3.2-3B", allow_network=False),
        workload=Workload(
            model="meta-llama/Llama-3.2-3B",
            task="causal-lm",
            max_length=_PEFT_LENGTH,
            padding="dynamic",
        ),
        strategy=Strategy(precision="bf16", micro_batch=4, **more),
        cluster=cluster_of(row, "L40S"),
        seconds=_PEFT_TOKENS / float(row["tokens_per_s_per_gpu"]),
    )


# -- Qwen's first -------------------------------------------------------------------------------

_LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def _qwen(row: Row) -> Question:
    if row["quant"]:
        raise LeftOut("GPTQ weights")
    if row["method"] not in ("lora", "full"):
        raise LeftOut("no Strategy trains embeddings beside adapters")
    if int(row["n_nodes"]) > 1:
        raise LeftOut("neither the ZeRO stage nor the network is printed")
    full = row["method"] == "full"
    adapters: dict[str, Any] = {"method": "lora", "lora_rank": 64, "lora_targets": _LINEAR}
    source = config_source(
        row["model"],
        model_type="qwen2",
        vocab_size=151936,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        **QWEN[row["model"]],
    )
    return Question(
        row=row,
        source=source,
        workload=texts(source, int(row["seq_len"])),
        strategy=Strategy(
            precision="bf16",
            micro_batch=1,
            accumulation=8,
            attention="flash",
            recompute="block",
            optimizer="adamw-foreach",
            parallel="zero3" if full else "single",
            **({} if full else adapters | {"adapter_dtype": "same"}),
        ),
        cluster=cluster_of(row, "A100-80GB-SXM"),
        seconds=float(row["step_time_s"]),
    )


# -- torchtune ----------------------------------------------------------------------------------


def _torchtune(row: Row) -> Question:
    if "unpacked" in row["seq_note"]:
        raise LeftOut("the length of its texts is not printed")
    source = resolve_model("meta-llama/Llama-3.2-3B", allow_network=False)
    chunked = row["id"] not in ("pytorch-torchtune-0010", "pytorch-torchtune-0011")
    in_backward = "in backward" in row["optimizer"]
    more: dict[str, Any] = {}
    if row["method"] != "full":
        targets = "q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
        more = {"lora_rank": 64, "lora_targets": targets, "adapter_dtype": "same"}
    if row["method"] == "qlora":
        more["quantization"] = "nf4"
    return Question(
        row=row,
        source=source,
        workload=texts(source, 4096),
        strategy=Strategy(
            precision="bf16",
            method=row["method"],
            micro_batch=2,
            optimizer="adamw-8bit" if "8-bit" in row["optimizer"] else "adamw-fused",
            recompute="block" if row["activation_checkpointing"] == "full" else "none",
            compile=row["compile"] == "yes",
            loss="chunked" if chunked else "all",
            optimizer_in_backward=in_backward,
            max_grad_norm=None,
            **more,
        ),
        cluster=cluster_of(row, "A100-80GB-SXM"),
        seconds=2 * 4096 / float(row["tokens_per_s_per_gpu"]),
    )


# -- NVIDIA's BERT ------------------------------------------------------------------------------

_DGX_NETWORK = 8 * 200 * GIGABIT_BYTES
_DLE_CARDS = {"A100-SXM": "A100-80GB-SXM", "V100-SXM2": "V100-32GB-SXM2"}


def _dle(row: Row) -> Question:
    if not row["framework"].startswith("PyTorch"):
        raise LeftOut("TensorFlow or Paddle")
    if row["seq_len"] == "512":
        raise LeftOut("texts binned by length, whose mean is not printed")
    if row["gpu"] not in _DLE_CARDS:
        raise LeftOut(f"no such card here: {row['gpu']}")
    pretraining = row["task"].startswith("mlm")
    source = config_source("BERT-large", vocab_size=30528, **BERT)
    length = int(row["seq_len"])
    if pretraining:
        workload = texts(source, length, "masked-lm", mask_share=20 / 128)
    else:
        workload = texts(source, length, "token-classification", num_labels=2)
    parallel = "ddp" if int(row["n_gpus"]) > 1 else "single"
    return Question(
        row=row,
        source=source,
        workload=workload,
        strategy=Strategy(
            precision=row["precision"],
            micro_batch=int(float(row["micro_batch"])),
            accumulation=int(float(row["grad_accum"])),
            optimizer="adamw-fused",
            attention="eager",
            loss="masked" if pretraining else "all",
            parallel=parallel,
        ),
        cluster=cluster_of(row, _DLE_CARDS[row["gpu"]], _DGX_NETWORK),
        seconds=float(row["step_time_s"]),
    )


# -- llm-foundry --------------------------------------------------------------------------------


def _foundry(row: Row) -> Question:
    hidden, heads = int(row["hidden"]), int(row["heads"])
    length = int(row["seq_len"])
    source = config_source(
        row["model"],
        model_type="opt",
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=int(row["n_layers"]),
        num_attention_heads=heads,
        vocab_size=50368,
        max_position_embeddings=length,
        do_layer_norm_before=True,
        dropout=0.0,
    )
    pure = row["precision"].startswith("pure")
    return Question(
        row=row,
        source=source,
        workload=texts(source, length),
        strategy=Strategy(
            precision="bf16" if pure else "amp-bf16",
            micro_batch=int(float(row["micro_batch"])),
            accumulation=int(float(row["grad_accum"])),
            optimizer="adamw-loop",
            attention="flash",
            recompute="block" if row["activation_checkpointing"] == "full" else "none",
            parallel="fsdp",
        ),
        cluster=cluster_of(
            row,
            "A100-80GB-SXM" if "A100" in row["gpu"] else "H100-80GB-SXM",
            1600 * GIGABIT_BYTES,
        ),
        seconds=float(row["step_time_s"]),
    )


# -- NeuSight -----------------------------------------------------------------------------------

_NEUSIGHT_CARDS = {
    "A100-PCIe": "A100-80GB-PCIe",
    "H100-SXM": "H100-80GB-SXM",
    "L4": "L4",
    "T4": "T4",
    "V100-PCIe": "V100-32GB-PCIe",
}


def _neusight(row: Row) -> Question:
    if row["model"].startswith("switch"):
        raise LeftOut("a mixture of experts with code of its own")
    if row["gpu"] not in _NEUSIGHT_CARDS:
        raise LeftOut(f"no such card here, or no table: {row['gpu']}")
    source = neusight_source(row)
    training = row["task"].startswith("training")
    task = "masked-lm" if row["model"].startswith("bert") else "causal-lm"
    if not training and task == "masked-lm":
        task = "sequence-classification"
    found = re.search(r"bw\(all\) ([0-9.]+) ms", row["notes"])
    backward_ms = float(found[1]) if found else 0.0
    return Question(
        row=row,
        source=source,
        workload=texts(
            source, int(row["seq_len"]), task, use="fine-tuning" if training else "inference"
        ),
        strategy=Strategy(
            precision="fp32", micro_batch=int(float(row["micro_batch"])), attention="eager"
        ),
        cluster=cluster_of(row, _NEUSIGHT_CARDS[row["gpu"]]),
        seconds=backward_ms * 1e-3 if training else float(row["step_time_s"]),
        backward_only=training,
    )


# -- Qwen's generation --------------------------------------------------------------------------

_WRITTEN_TOKENS = 2048


def _generation(row: Row) -> Question:
    if row["precision"] != "pure-bf16" or row["n_gpus"] != "1":
        raise LeftOut("quantised, or spread over several cards")
    name = row["model"].replace("-Instruct", "").replace("Qwen2-", "Qwen2.5-")
    source = resolve_model(f"Qwen/{name}", allow_network=False)
    length = int(row["seq_len"])
    return Question(
        row=row,
        source=source,
        workload=texts(
            source,
            length,
            use="inference",
            prompt_length=length,
            max_new_tokens=_WRITTEN_TOKENS // 2,
        ),
        strategy=Strategy(precision="bf16", attention="flash"),
        cluster=cluster_of(row, "A100-80GB-SXM"),
        seconds=1 / float(row["tokens_per_s_per_gpu"]),
        decode=True,
    )


_SLICES: dict[str, Callable[[Row], Question]] = {
    "peft-metamath-l40s": _peft,
    "qwen1-finetune": _qwen,
    "torchtune-ablation": _torchtune,
    "dle-bert-pretrain-a100": _dle,
    "dle-bert-pretrain-v100": _dle,
    "dle-bert-finetune-a100": _dle,
    "foundry-a100-80": _foundry,
    "foundry-h100": _foundry,
    "neusight-train": _neusight,
    "neusight-inf": _neusight,
    "qwen2-inference-hf": _generation,
    "qwen2.5-inference-hf": _generation,
    **times_spread_rows.SLICES,
}
