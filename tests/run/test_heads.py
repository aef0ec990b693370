"""Lean against the seed recipe: the same loss to 1e-5, gradients to 1e-6 of the largest element.

The padded batch with the head over all positions is the referee; real transformers models, dropout
0, the same texts and labels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rigsize.errors import UnsupportedCombination
from rigsize.run.heads import CHUNKS, IGNORED, select_rows
from rigsize.run.packing import INTERFACE, check_packable, first_position, pack, register
from rigsize.trace.model import AUTO_CLASSES

LENGTHS = [7, 12, 3, 9]
LOSS, GRADIENT = 1e-5, 1e-6
_BERT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
}
_LLAMA = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    "bert": _BERT,
    "distilbert": {
        "vocab_size": 101,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": {
        "vocab_size": 101,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
DECODERS = ("llama", "qwen3", "gpt2")
VARIANTS = [
    ("masked", False),
    ("chunked", False),
    ("all", True),
    ("masked", True),
    ("chunked", True),
]


def config_of(family: str) -> Any:
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    config.num_labels, config.problem_type = 3, "single_label_classification"
    return config


def build(family: str, task: str, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(1)
    auto = getattr(transformers, AUTO_CLASSES[task])
    model: torch.nn.Module = auto.from_config(config_of(family), attn_implementation=attention)
    return model.train()


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(6, 100, (n,), generator=generator) for n in LENGTHS]


def padded(config: Any) -> dict[str, torch.Tensor]:
    S = max(LENGTHS)
    ids = torch.full((len(LENGTHS), S), config.pad_token_id or 0)
    mask = torch.zeros(len(LENGTHS), S, dtype=torch.int64)
    for row, text in enumerate(texts()):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def unpadded(config: Any) -> dict[str, Any]:
    start = first_position(config)
    return {
        "input_ids": torch.cat(texts())[None],
        "position_ids": torch.cat([torch.arange(n) + start for n in LENGTHS])[None],
        "packing": pack(LENGTHS),
    }


def token_labels(task: str) -> list[torch.Tensor]:
    """What each position predicts itself, per text."""
    if task == "causal-lm":
        return [torch.cat([text[1:], torch.tensor([IGNORED])]) for text in texts()]
    labels = [torch.full((n,), IGNORED) for n in LENGTHS]
    for one, text in zip(labels, texts(), strict=True):
        one[1::3] = text[1::3]
    return labels


def seed_labels(task: str) -> torch.Tensor:
    """As transformers takes them: [B, S], a decoder's not yet shifted."""
    S = max(LENGTHS)
    grid = torch.full((len(LENGTHS), S), IGNORED)
    pieces = texts() if task == "causal-lm" else token_labels(task)
    for row, piece in enumerate(pieces):
        grid[row, : len(piece)] = piece
    return grid


def lean_batch(config: Any, task: str, loss: str, is_unpadded: bool) -> dict[str, Any]:
    if is_unpadded:
        batch, flat = unpadded(config), torch.cat(token_labels(task))
    else:
        batch = padded(config)
        S = max(LENGTHS)
        grid = torch.full((len(LENGTHS), S), IGNORED)
        for row, piece in enumerate(token_labels(task)):
            grid[row, : len(piece)] = piece
        flat = grid.reshape(-1)
    if loss == "all" and task == "masked-lm":
        return batch | {"labels": flat[None]}
    positions = (flat != IGNORED).nonzero().view(-1)
    labels = flat[positions]
    if loss == "chunked":
        more = -len(labels) % CHUNKS
        positions = torch.cat([positions, positions.new_zeros(more)])
        labels = torch.cat([labels, labels.new_full((more,), IGNORED)])
    return batch | {"positions": positions, "labels": labels}


def run(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    if "use_cache" in model.config.to_dict():  # type: ignore[operator, union-attr]
        batch = batch | {"use_cache": False}
    loss = model(**batch)["loss"]
    loss.backward()
    named = model.named_parameters()
    return float(loss.detach()), {n: p.grad for n, p in named if p.grad is not None}


def assert_equal(lean: Any, seed: Any) -> None:
    assert lean[0] == pytest.approx(seed[0], abs=LOSS)
    largest = max(float(gradient.abs().max()) for gradient in seed[1].values())
    # A pooler of a backbone that nothing reads has no gradient in one of the two.
    for name, gradient in seed[1].items():
        assert float((lean[1][name] - gradient).abs().max()) <= GRADIENT * largest, name


@pytest.mark.parametrize(("loss", "is_unpadded"), VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_head_on_the_rows_that_predict(
    family: str, loss: str, is_unpadded: bool
) -> None:
    register()
    task, config = "causal-lm" if family in DECODERS else "masked-lm", config_of(family)
    seed = run(build(family, task), padded(config) | {"labels": seed_labels(task)})
    model = build(family, task, INTERFACE if is_unpadded else "sdpa")
    select_rows(model, predicts_tokens=True, chunks=CHUNKS if loss == "chunked" else 1)
    assert_equal(run(model, lean_batch(config, task, loss, is_unpadded)), seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classification_head_on_one_row_a_text(family: str) -> None:
    if family == "qwen3":
        pytest.skip("as llama")
    register()
    task, config = "sequence-classification", config_of(family)
    labels = torch.tensor([0, 1, 2, 1])
    seed = run(build(family, task), padded(config) | {"labels": labels})
    model = build(family, task, INTERFACE)
    select_rows(model, predicts_tokens=False)
    batch = unpadded(config)
    offsets = batch["packing"].offsets.to(torch.int64)
    rows = offsets[1:] - 1 if family in DECODERS else offsets[:-1]
    assert_equal(run(model, batch | {"positions": rows, "labels": labels}), seed)


def test_a_call_without_positions_is_the_models_own() -> None:
    config = config_of("xlm-roberta")
    batch = padded(config) | {"labels": seed_labels("masked-lm")}
    plain, selecting = build("xlm-roberta", "masked-lm"), build("xlm-roberta", "masked-lm")
    select_rows(selecting, predicts_tokens=True)
    assert run(plain, batch)[0] == run(selecting, batch)[0]


def test_a_model_without_a_backbone_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedCombination, match="no backbone"):
        select_rows(torch.nn.Linear(2, 2), predicts_tokens=True)


@pytest.mark.parametrize("family", ["t5", "deberta-v2", "bart"])
def test_what_counts_positions_itself_shares_no_row(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    with pytest.raises(UnsupportedCombination, match="counts positions itself"):
        check_packable(config, "masked-lm")


def test_texts_beyond_a_window_are_refused() -> None:
    from rigsize.run.packing import unpadded_attention

    q = torch.zeros(1, 1, sum(LENGTHS), 8)
    with pytest.raises(UnsupportedCombination, match="window of 8"):
        unpadded_attention(
            torch.nn.Identity(), q, q, q, None, packing=pack(LENGTHS), sliding_window=8
        )
