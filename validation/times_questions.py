"""What a row of the table of published runs asks, and shapes that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rigsize.hardware import find_accelerator
from rigsize.models import ModelSource, check_config
from rigsize.spec import Cluster, Strategy, Workload

__all__ = [
    "BERT",
    "QWEN",
    "LeftOut",
    "Question",
    "Row",
    "cluster_of",
    "config_source",
    "neusight_source",
    "texts",
]

Row = Mapping[str, str]

BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "max_position_embeddings": 512,
}  # fmt: skip
QWEN = {
    "Qwen-1.8B": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24,
                  "num_attention_heads": 16, "num_key_value_heads": 16},
    "Qwen-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A published time and what is asked of the model to predict it."""

    row: Row
    source: ModelSource
    workload: Workload
    strategy: Strategy
    cluster: Cluster
    seconds: float
    """Published, of a step; with `backward_only` of its backward pass, with `decode` of a token."""
    backward_only: bool = False
    decode: bool = False
    """One token behind prompt and half of what is written."""


class LeftOut(Exception):
    """Why a row can be no question."""


def config_source(name: str, **config: Any) -> ModelSource:
    """A model of the shapes of a config."""
    check_config(config)
    return ModelSource(
        name=name,
        origin="config",
        config=config,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="not asked",
    )


def cluster_of(row: Row, gpu: str, network_bytes_per_s: float | None = None) -> Cluster:
    """The row's devices, by our name."""
    nodes = int(row["n_nodes"] or 1)
    per_node = int(row["n_gpus"] or 1) // nodes
    return Cluster(
        accelerator=find_accelerator(gpu),
        per_node=per_node,
        nodes=nodes,
        network_bytes_per_s=network_bytes_per_s,
    )


def texts(source: ModelSource, length: int, task: str = "causal-lm", **more: Any) -> Workload:
    """Texts that fill their length: no padded position."""
    return Workload(model=source.name, task=task, max_length=length, padding_in_batch=False, **more)


def neusight_source(row: Row) -> ModelSource:
    """Its BERT, GPT-2 and OPT by the shapes that the row prints."""
    name, layers = row["model"], int(row["n_layers"])
    hidden, heads, vocabulary = int(row["hidden"]), int(row["heads"]), int(row["vocab"])
    if name == "bert_large":
        return config_source(name, vocab_size=vocabulary, **BERT)
    if name.startswith("gpt"):
        return config_source(
            name,
            model_type="gpt2",
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            n_positions=2048,
            vocab_size=vocabulary,
        )
    return config_source(
        name,
        model_type="opt",
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        do_layer_norm_before=True,
    )
