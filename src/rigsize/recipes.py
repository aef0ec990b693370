"""Named ways to run one and the same job: flags that a recipe sets where nobody gave them.

A recipe is a Strategy by name, so `estimate`, `measure` and `train` answer for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rigsize.errors import SpecError, nearest
from rigsize.models.packable import can_share_row

__all__ = ["RECIPES", "recipe_flags"]

Flags = dict[str, str | bool]


def _seed(_task: str, _config: Mapping[str, Any], _on_cpu: bool) -> Flags:
    """What the article did: every text padded to 128 tokens, the head over all positions, fp32."""
    return {
        "max_length": "128",
        "padding": "fixed",
        "loss": "all",
        "precision": "fp32",
        "optim": "adamw",
        "hold_output": True,
    }


def _lean(task: str, config: Mapping[str, Any], on_cpu: bool) -> Flags:
    """The same mathematics on far less: no padding, no row of logits that nothing is learnt from.

    The weights stay fp32 and are the master copy; products run in bf16 (on a CPU in fp32, where
    bf16 gains nothing without its own instructions). Attention takes flash where the device has it.
    """
    shares = can_share_row(config) and task != "seq2seq-lm"
    return {
        "padding": "unpadded" if shares else "dynamic",
        "loss": {"masked-lm": "masked", "causal-lm": "chunked"}.get(task, "all"),
        "precision": "fp32" if on_cpu else "amp-bf16",
        "optim": "adamw-fused",
        "hold_output": False,
    }


def _lean_8bit(task: str, config: Mapping[str, Any], on_cpu: bool) -> Flags:
    """Lean with optimizer states of one byte: this changes rounding, so results differ a little."""
    return _lean(task, config, on_cpu) | {"optim": "adamw-8bit"}


def _lean_bf16(task: str, config: Mapping[str, Any], on_cpu: bool) -> Flags:
    """Lean with bf16 weights and no master copy, rounded stochastically: this changes rounding."""
    return _lean(task, config, on_cpu) | {"precision": "bf16", "optim": "adamw-sr"}


RECIPES: dict[str, Callable[[str, Mapping[str, Any], bool], Flags]] = {
    "seed": _seed,
    "lean": _lean,
    "lean-8bit": _lean_8bit,
    "lean-bf16": _lean_bf16,
}


def recipe_flags(
    name: str, task: str, config: Mapping[str, Any], *, on_cpu: bool, training: bool
) -> Flags:
    """The flags that a recipe sets; without a loss for inference, which has none."""
    if name not in RECIPES:
        raise SpecError(
            "recipe", name, "no such recipe", allowed=RECIPES, nearest=nearest(name, RECIPES)
        )
    flags = RECIPES[name](task, config, on_cpu)
    if not training:
        for key in ("loss", "optim", "hold_output"):
            flags.pop(key, None)
    return flags
