"""Recompute as transformers and torch do it, on the blocks of a real model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from rigsize.errors import UnsupportedCombination
from rigsize.spec.recompute import recompute_period

__all__ = ["enable_recompute"]

SAVED = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_flash_attention_forward",
        "rigsize::attention",
        "rigsize::packed_attention",
    }
)
"""What `selective` keeps: products and attention. torchtitan's list (`_save_list` in
torchtitan/distributed/activation_checkpoint.py) with biased and batched products, which its models
have not, and without its exception of every second product; the last two are our trace's node."""


def enable_recompute(model: Any, word: str, chosen: Sequence[bool] = ()) -> None:
    """Recompute by a word of `spec.recompute`, non-reentrant.

    `chosen` says for each block, in module order, whether it is recomputed; by default the first of
    every N is, counted through all stacks, as `every_n_layers` of transformers 5.23 has it.
    transformers 5.18 renamed the method.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if word == "selective":
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    newer: Any = getattr(model, "activation_checkpointing_enable", None)
    name = "activation_checkpointing_kwargs" if newer else "gradient_checkpointing_kwargs"
    (newer or model.gradient_checkpointing_enable)(**{name: arguments})
    period = recompute_period(word)
    if period > 1:
        _choose(model, word, chosen)


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    saved = isinstance(operator, torch._ops.OpOverload) and operator._schema.name in SAVED
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def _choose(model: torch.nn.Module, word: str, chosen: Sequence[bool]) -> None:
    """Leaves recompute on in some blocks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    others = [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and module not in blocks
    ]
    known = not chosen or len(chosen) == len(blocks)
    if len(blocks) < 2 or not known or _wraps_blocks_itself(others):
        raise UnsupportedCombination(
            "recompute", word, "this model's blocks are not recomputed one by one", nearest="block"
        )
    period = recompute_period(word)
    for index, block in enumerate(blocks):
        block.gradient_checkpointing = chosen[index] if chosen else index % period == 0


def _wraps_blocks_itself(modules: Sequence[torch.nn.Module]) -> bool:
    """Whether a stack calls the checkpointing function around its blocks, whatever these say."""
    return any(
        "_gradient_checkpointing_func" in type(module).forward.__code__.co_names
        for module in modules
    )
