"""Small variants of a default configuration, for runs with real memory.

Widths and heads shrink by one factor, so that what is derived from both (the width of a head) stays
as it is; experts become few, the vocabulary small. Where that breaks what the architecture wants,
milder variants follow, the default widths last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from rigsize.trace.depth import reduce_depth

VOCABULARY = 2_048
EXPERTS = 8
PER_TOKEN = 2
_WIDTHS = frozenset(
    "hidden_size d_model n_embd dim embedding_size intermediate_size hidden_dim d_ff n_inner "
    "ffn_dim encoder_ffn_dim decoder_ffn_dim moe_intermediate_size "
    "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size lru_width "
    "word_embed_proj_dim expert_ffn_hidden_size mamba_d_ssm attention_hidden_size d_embed d_inner "
    "true_hidden_size intra_bottleneck_size dense_intermediate_size emb_dim "
    "hidden_size_per_layer_input adapter_in_dim".split()
)
_HEADS = frozenset(
    "num_attention_heads n_head n_heads num_heads num_key_value_heads num_kv_heads "
    "encoder_attention_heads decoder_attention_heads mamba_n_heads mamba_num_heads "
    "num_global_key_value_heads swa_num_attention_heads swa_num_key_value_heads "
    "linear_num_key_heads linear_num_value_heads num_encoder_attention_heads "
    "num_decoder_attention_heads mamba_n_groups n_groups".split()
)
_EXPERTS = frozenset(
    "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num "
    "num_routed_experts".split()
)
_PER_TOKEN = frozenset(
    "num_experts_per_tok moe_top_k moe_k moe_topk top_k_experts router_top_k top_k".split()
)
_GROUPS = frozenset("n_group topk_group num_expert_group".split())


def small_configs(model_type: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, values) of each variant, the smallest first."""
    shallow = shallow_config(model_type)
    heads = shallow.get("num_attention_heads")
    for factor in (8, 32, 4, 3, *([heads] if isinstance(heads, int) else []), 1):
        yield f"1/{factor} of the widths", {**_changed(shallow, _all(factor)), **_type(shallow)}
    yield "default widths", shallow


def shallow_config(model_type: str) -> dict[str, Any]:
    """The default configuration, written out, at the depth at which it is traced."""
    full = CONFIG_MAPPING[model_type]().to_dict()
    reduced = reduce_depth({"model_type": model_type}, full).config
    shallow = CONFIG_MAPPING[model_type](**_without(reduced, "model_type")).to_dict()
    return copy.deepcopy({**_without(shallow, "transformers_version"), "model_type": model_type})


def _type(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": values["model_type"]}


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


Change = Callable[[str, int], int]


def _all(factor: int) -> Change:
    def change(name: str, value: int) -> int:
        if name in _WIDTHS:
            return value // factor if value % factor == 0 and value >= 16 * factor else value
        if name in _HEADS:
            return max(1, value // factor)
        return _fewer(name, value)

    return change


def _fewer(name: str, value: int) -> int:
    if name in _EXPERTS:
        return min(value, EXPERTS)
    if name in _PER_TOKEN:
        return min(value, PER_TOKEN)
    if name in _GROUPS:
        return min(value, 1)
    if "vocab_size" in name:
        return min(value, VOCABULARY)
    if name.endswith(("_token_id", "_token_index", "_idx")) and value >= VOCABULARY:
        return value % VOCABULARY
    return value


def _changed(value: Any, change: Change, name: str = "") -> Any:
    """The values with every whole number put through `change`, inner configurations too."""
    if isinstance(value, Mapping):
        return {key: _changed(inner, change, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(item, change, name) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return change(name, value)
    return value
