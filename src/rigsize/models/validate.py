"""A config from outside, read with suspicion: any bytes give a usable dict or a SpecError."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rigsize.errors import SpecError, nearest
from rigsize.models.positions import architecture_names, tasks_of

__all__ = ["MAX_CONFIG_BYTES", "check_config", "parse_config"]

MAX_CONFIG_BYTES = 8 * 1024**2
MAX_DEPTH = 64
_LARGEST_INTEGER = 2**53

_LAYERS = 2_000
_WIDTH = 1_000_000
_HEADS = 10_000
_VOCABULARY = 20_000_000
_POSITIONS = 100_000_000
_EXPERTS = 100_000

# The largest value that anyone could mean; the real ones are at least ten times smaller.
_MAXIMA = {
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers num_hidden_groups".split(),
        _LAYERS,
    ),
    **dict.fromkeys(
        "hidden_size d_model n_embd dim embedding_size intermediate_size hidden_dim d_ff n_inner "
        "ffn_dim encoder_ffn_dim decoder_ffn_dim d_kv head_dim moe_intermediate_size "
        "shared_expert_intermediate_size kv_lora_rank q_lora_rank v_head_dim state_size "
        "word_embed_proj_dim".split(),
        _WIDTH,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads num_key_value_heads num_kv_heads "
        "encoder_attention_heads decoder_attention_heads".split(),
        _HEADS,
    ),
    **dict.fromkeys("num_experts num_local_experts n_routed_experts".split(), _EXPERTS),
    **dict.fromkeys("max_position_embeddings n_positions max_seq_len".split(), _POSITIONS),
    "vocab_size": _VOCABULARY,
    "type_vocab_size": _VOCABULARY,
}
# These may be absent, so that the class's default holds, but not null: a null breaks the build.
_NEVER_NULL = frozenset(
    "hidden_size d_model n_embd dim num_hidden_layers n_layer n_layers num_layers "
    "num_attention_heads n_head n_heads num_heads vocab_size".split()
)
# None at all is a model too: DeBERTa has no token types, a dense model no experts.
_MAY_BE_ZERO = frozenset("type_vocab_size num_experts num_local_experts n_routed_experts".split())
# Each projection is cut into heads here, and no separate head_dim can be given.
_HEADS_DIVIDE_HIDDEN = frozenset(
    "albert bart bert bloom camembert deberta deberta-v2 distilbert electra eurobert falcon gpt2 "
    "gpt_neo gpt_neox gptj m2m_100 mbart modernbert mpnet mpt opt pegasus roberta xlm-roberta "
    "xlm-roberta-xl".split()
)
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_HEAD_COUNTS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
# Mamba-2's own default is [0, Infinity].
_MAY_BE_INFINITE = frozenset({"time_step_limit"})

# A string (even one that never ends) or a bracket; linear whatever the input.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def parse_config(data: bytes, where: str = "config.json") -> dict[str, Any]:
    """The JSON object in ``data``; anything else is one clear line."""
    if len(data) > MAX_CONFIG_BYTES:
        raise SpecError(where, f"{len(data):,} bytes", "too large", allowed=("up to 8 MiB",))
    text = _decoded(data, where)
    _check_depth(text, where)
    config = _loaded(text, where)
    if not isinstance(config, dict):
        raise SpecError(where, config, "not a JSON object", allowed=('{"model_type": ...}',))
    return config


def check_config(config: Mapping[str, Any], *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Refuse what cannot be a model's config; return notes worth showing."""
    _check_numbers(config)
    notes = _check_model_type(config, trust_remote_code)
    for path, part in _parts(config):
        _check_sizes(part, path)
        _check_heads(part, path, str(config["model_type"]))
    return notes


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start})"
        raise SpecError(where, data[error.start : error.start + 8], problem) from None


def _check_depth(text: str, where: str) -> None:
    # Before the parser sees it: its recursion has no limit of ours.
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            allowed = (f"at most {MAX_DEPTH} levels",)
            raise SpecError(where, f"{MAX_DEPTH + 1} levels", "nested too deeply", allowed=allowed)


def _loaded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        near = text[error.pos : error.pos + 20] or "the end of the file"
        raise SpecError(where, near, f"not valid JSON ({error.msg}: {place})") from None
    except RecursionError:
        raise SpecError(where, "deep nesting", "nested too deeply") from None
    except ValueError:
        # Python refuses to read an integer of more than 4,300 digits.
        raise SpecError(where, "an integer of thousands of digits", "too large a number") from None


def _check_numbers(config: Mapping[str, Any]) -> None:
    for path, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            if path.split(".")[-1].split("[")[0] not in _MAY_BE_INFINITE:
                raise SpecError(path, value, "not a number", allowed=("a finite number",))
        elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            raise SpecError(path, value, "absurdly large", allowed=("up to 2^53",))


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    # A list of its own instead of recursion; entries of arrays share the array's name.
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend((f"{path}.{key}" if path else str(key), v) for key, v in value.items())
        elif isinstance(value, list):
            waiting.extend((f"{path}[]", item) for item in value)
        else:
            yield path, value


def _check_model_type(config: Mapping[str, Any], trust_remote_code: bool) -> tuple[str, ...]:
    model_type = config.get("model_type")
    names = architecture_names()
    if not isinstance(model_type, str) or not model_type:
        hint = "write the architecture's name, as `bert` or `llama`"
        problem = "missing" if model_type is None else "not a name"
        raise SpecError("model_type", model_type, problem, hint=hint)
    if model_type in names:
        if not tasks_of(model_type):
            hint = "rigsize sizes language models"
            raise SpecError("model_type", model_type, "reads no text", hint=hint)
        return ("auto_map is ignored: transformers has the architecture",) * ("auto_map" in config)
    if "auto_map" not in config:
        near = nearest(model_type, [name for name in names if tasks_of(name)])
        allowed = (f"one of transformers' {len(names)} architectures",)
        raise SpecError(
            "model_type", model_type, "no such architecture", allowed=allowed, nearest=near
        )
    if not trust_remote_code:
        raise SpecError(
            "model_type",
            model_type,
            "needs code from the model's own repository",
            hint="--trust-remote-code runs that code; read it first",
        )
    return (f"{model_type} runs code from the model's own repository",)


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config itself and the configs within it (``text_config``, ``attn_config``)."""
    yield "", config
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            yield f"{key}.", value


def _check_sizes(part: Mapping[str, Any], path: str) -> None:
    for key, largest in _MAXIMA.items():
        if key not in part:
            continue
        value = part[key]
        if value is None and key not in _NEVER_NULL:
            continue
        # Some architectures give a size a layer; each one is checked.
        for size in value if isinstance(value, list) and value else [value]:
            _check_size(f"{path}{key}", size, 0 if key in _MAY_BE_ZERO else 1, largest)


def _check_size(field: str, size: object, smallest: int, largest: int) -> None:
    allowed = (f"an integer from {smallest} to {largest:,}",)
    if isinstance(size, bool) or not isinstance(size, int):
        raise SpecError(field, size, "not an integer", allowed=allowed)
    if not smallest <= size <= largest:
        raise SpecError(field, size, "out of range", allowed=allowed)


def _check_heads(part: Mapping[str, Any], path: str, model_type: str) -> None:
    heads, groups = part.get("num_attention_heads"), part.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        allowed = (f"a divisor of num_attention_heads = {heads}",)
        raise SpecError(f"{path}num_key_value_heads", groups, "unusable", allowed=allowed)
    if path or model_type not in _HEADS_DIVIDE_HIDDEN:
        return
    hidden = next((part[key] for key in _HIDDEN if isinstance(part.get(key), int)), None)
    for key in _HEAD_COUNTS:
        count = part.get(key)
        if hidden is not None and isinstance(count, int) and hidden % count:
            allowed = (f"a divisor of the hidden size {hidden}",)
            raise SpecError(key, count, "does not divide the hidden size", allowed=allowed)
