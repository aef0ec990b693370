"""Rows of published runs that only the spread of the interval is fitted on, as questions.

None of these slices is a proof slice; what is fitted on them they prove nothing of afterwards. The
choices are written down in docs/decisions/007-proof-of-step-times.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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

from rigsize.spec import Strategy
from rigsize.units import GIGABIT_BYTES

__all__ = ["SLICES"]

_LLAMA: dict[str, dict[str, Any]] = {
    "Llama-2-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "Llama-2-13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                    "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000},
    "Llama-2-70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000},
    "Llama-3-8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "Llama-3-70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
_ADAPTED = "q_proj,k_proj,v_proj,up_proj,gate_proj,down_proj"


def _llama(row: Row) -> Any:
    return config_source(
        row["model"],
        model_type="llama",
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        **_LLAMA[row["model"]],
    )


def _torchtitan(row: Row) -> Question:
    """FSDP2 over 64 cards, fp32 shards; 200 Gbit/s a card is assumed."""
    kinds = {"none": "none", "selective (op)": "selective", "full": "block"}
    recompute = kinds.get(row["activation_checkpointing"])
    if recompute is None:
        raise LeftOut("every second layer recomputed: no Strategy does")
    source = _llama(row)
    return Question(
        row=row,
        source=source,
        workload=texts(source, int(row["seq_len"])),
        strategy=Strategy(
            precision="amp-bf16",
            micro_batch=int(float(row["micro_batch"])),
            recompute=recompute,
            parallel="fsdp",
        ),
        cluster=cluster_of(row, "A100-80GB-SXM", 8 * 200 * GIGABIT_BYTES),
        seconds=float(row["step_time_s"]),
    )


_QLORA_CARDS = {
    "A100-SXM": "A100-40GB-SXM",
    "H100-SXM": "H100-80GB-SXM",
    "RTX 6000 Ada": "RTX6000-Ada",
}


def _fsdp_qlora(row: Row) -> Question:
    """A micro-step: how many make a step is not printed, and the adapters' step is short."""
    if row["gpu"] not in _QLORA_CARDS:
        raise LeftOut(f"no such card here: {row['gpu']}")
    source = _llama(row)
    micro = int(float(row["micro_batch"]))
    return Question(
        row=row,
        source=source,
        workload=texts(source, int(row["seq_len"])),
        strategy=Strategy(
            precision="bf16",
            method="qlora",
            quantization="nf4",
            lora_rank=64,
            lora_targets=_ADAPTED,
            adapter_dtype="same",
            micro_batch=micro,
            recompute="block",
            parallel="fsdp",
        ),
        cluster=cluster_of(row, _QLORA_CARDS[row["gpu"]]),
        seconds=micro * int(row["seq_len"]) / float(row["tokens_per_s_per_gpu"]),
    )


def _bert_inference(row: Row) -> Question:
    if not row["framework"].startswith("PyTorch"):
        raise LeftOut("TensorFlow or Paddle")
    source = config_source("BERT-large", vocab_size=30528, **BERT)
    micro = int(float(row["micro_batch"]))
    return Question(
        row=row,
        source=source,
        workload=texts(
            source, int(row["seq_len"]), "token-classification", num_labels=2, use="inference"
        ),
        strategy=Strategy(precision=row["precision"], micro_batch=micro, attention="eager"),
        cluster=cluster_of(row, "A100-80GB-SXM"),
        seconds=micro / float(row["samples_per_s"]),
    )


_DIST_CARDS = {"A100-SXM": "A100-40GB-SXM", "H100-SXM": "H100-80GB-SXM"}


def _neusight_ddp(row: Row) -> Question:
    if not row["parallelism"].startswith("ddp"):
        raise LeftOut("no Strategy splits a layer or the layers")
    source = neusight_source(row)
    return Question(
        row=row,
        source=source,
        workload=texts(source, int(row["seq_len"]), use="fine-tuning"),
        strategy=Strategy(
            precision="fp32",
            micro_batch=int(float(row["micro_batch"])),
            attention="eager",
            parallel="ddp",
        ),
        cluster=cluster_of(row, _DIST_CARDS[row["gpu"]]),
        seconds=float(row["step_time_s"]),
    )


def _decode(row: Row, source: Any, gpu: str, new_tokens: int, **how: Any) -> Question:
    """One token behind half of what is written; a prompt of one token where none is printed."""
    return Question(
        row=row,
        source=source,
        workload=texts(source, 1, use="inference", prompt_length=1, max_new_tokens=new_tokens),
        strategy=Strategy(precision="bf16", **how),
        cluster=cluster_of(row, gpu),
        seconds=1 / float(row["tokens_per_s_per_gpu"]),
        decode=True,
    )


def _qwen_inference(row: Row) -> Question:
    if row["quant"] or row["model"] not in QWEN or row["n_gpus"] != "1":
        raise LeftOut("quantised, over several cards, or of a shape that no row here has")
    source = config_source(
        row["model"],
        model_type="qwen2",
        vocab_size=151936,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        **QWEN[row["model"]],
    )
    return _decode(row, source, "A100-80GB-SXM", 1024, attention="flash")


def _litgpt_inference(row: Row) -> Question:
    if row["model"] not in _LLAMA or row["quant"] or not row["tokens_per_s_per_gpu"]:
        raise LeftOut("not a Llama in bf16")
    return _decode(row, _llama(row), "A100-40GB-SXM", 25)


SLICES: Mapping[str, Callable[[Row], Question]] = {
    "torchtitan-a100-2024": _torchtitan,
    "fsdp-qlora-cloud": _fsdp_qlora,
    "dle-bert-inference": _bert_inference,
    "neusight-dist": _neusight_ddp,
    "qwen1-inference": _qwen_inference,
    "litgpt-inference": _litgpt_inference,
}
