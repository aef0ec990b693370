"""Tiny configs of many families, and one step of them as a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rigsize.spec.adapter import Adapter
from rigsize.trace.model import BuildOptions

SIZES = {"B": 2, "S": 40, "T": 24, "M": 24, "N": 61}

_ENCODER = {
    "vocab_size": 5003,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 208,
    "max_position_embeddings": 131,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
}
_DECODER = {
    "vocab_size": 5003,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 208,
    "max_position_embeddings": 131,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_BART = {
    "vocab_size": 5003,
    "d_model": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 208,
    "decoder_ffn_dim": 176,
    "max_position_embeddings": 131,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
_T5 = {
    "vocab_size": 5003,
    "d_model": 96,
    "d_ff": 208,
    "d_kv": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "xlm-roberta": _ENCODER | {"model_type": "xlm-roberta"},
    "xlm-roberta-xl": _ENCODER | {"model_type": "xlm-roberta-xl"},
    "bert": _ENCODER | {"model_type": "bert", "type_vocab_size": 2},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 5003,
        "dim": 96,
        "hidden_dim": 208,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 131,
    },
    "albert": _ENCODER
    | {
        "model_type": "albert",
        "embedding_size": 56,
        "num_hidden_layers": 4,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 2,
    },
    "electra": _ENCODER | {"model_type": "electra", "embedding_size": 56, "type_vocab_size": 2},
    "mpnet": _ENCODER | {"model_type": "mpnet"},
    "deberta-v2": _ENCODER
    | {
        "model_type": "deberta-v2",
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "pooler_hidden_size": 96,
    },
    "modernbert": {
        "model_type": "modernbert",
        "vocab_size": 5003,
        "hidden_size": 96,
        "intermediate_size": 104,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 131,
        "global_attn_every_n_layers": 3,
        "local_attention": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 5003,
        "n_positions": 131,
        "n_embd": 96,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": _DECODER
    | {"model_type": "gpt_neox", "rotary_pct": 0.25, "use_parallel_residual": True},
    "llama": _DECODER | {"model_type": "llama"},
    "qwen2": _DECODER | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _DECODER | {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": _DECODER
    | {
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
    },
    "gemma3_text": _DECODER
    | {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window_pattern": 2,
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": 5003,
        "hidden_size": 96,
        "n_layer": 2,
        "n_head": 4,
        "pad_token_id": 3,
    },
    "falcon": {
        "model_type": "falcon",
        "vocab_size": 5003,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "max_position_embeddings": 131,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "mixtral": _DECODER
    | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {
        "model_type": "mamba",
        "vocab_size": 5003,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "state_size": 8,
        "conv_kernel": 4,
        "expand": 2,
        "time_step_rank": 6,
        "pad_token_id": 0,
    },
    "t5": _T5 | {"model_type": "t5", "feed_forward_proj": "relu"},
    "mt5": _T5
    | {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "xlm": {
        "model_type": "xlm",
        "vocab_size": 5003,
        "emb_dim": 96,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 131,
    },
    "bart": _BART | {"model_type": "bart"},
    "m2m_100": _BART | {"model_type": "m2m_100", "activation_function": "relu"},
}
"""Every family at sizes that no two kinds of tensors share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One step to be refereed."""

    family: str
    task: str
    compute: str = "fp32"
    attention: str = "sdpa"
    recompute: str = "none"
    training: bool = True
    padded: bool = True
    hold_output: bool = True
    loss: str = "all"
    unpadded: bool = False
    adapter: Adapter | None = None
    quantization: str = ""

    def __str__(self) -> str:
        words = [self.family, self.task, self.compute, self.attention]
        words += {"none": [], "block": ["recompute"]}.get(self.recompute, [self.recompute])
        words += ["train" if self.training else "infer"]
        words += ["padded" if self.padded else "unpadded"] * (not self.unpadded)
        words += [self.loss] * (self.loss != "all")
        words += ["in one row"] * self.unpadded
        words += ["released"] * (not self.hold_output)
        words += [self.adapter.text()] if self.adapter else []
        words += [self.quantization] if self.quantization else []
        return "-".join(words)

    def options(self) -> BuildOptions:
        return BuildOptions(
            task=self.task,
            compute=self.compute,
            attention=self.attention,
            recompute=self.recompute,
            training=self.training,
            loss=self.loss,
            unpadded=self.unpadded,
            adapter=self.adapter,
            quantization=self.quantization,
        )
