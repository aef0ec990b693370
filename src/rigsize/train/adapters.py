"""Parameter-efficient methods through the real peft library."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from rigsize.errors import MeasurementFailed, UnsupportedCombination
from rigsize.spec import Strategy

__all__ = ["adapt"]

_TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "embedding": "FEATURE_EXTRACTION",
}
"""peft has no type for masked LM: its plain PeftModel serves."""


def adapt(model: torch.nn.Module, strategy: Strategy, task: str) -> torch.nn.Module:
    """The model with the strategy's adapters, base weights frozen; `model` itself when `full`.

    Raises UnsupportedCombination where peft cannot adapt this architecture or task.
    """
    if strategy.method == "full":
        return model
    peft = _peft()
    try:
        adapted: torch.nn.Module = peft.get_peft_model(
            model,
            _config(peft, strategy, task),
            autocast_adapter_dtype=strategy.adapter_dtype == "fp32",
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedCombination(
            "method",
            strategy.method,
            f"peft cannot adapt {type(model).__name__} ({text})",
            hint="--lora-targets names the modules to adapt, comma separated",
        ) from error
    return adapted


def _config(peft: Any, strategy: Strategy, task: str) -> Any:
    kind = _TASK_TYPES.get(task)
    targets = strategy.lora_targets.split(",") if strategy.lora_targets else None
    if strategy.method in ("lora", "dora"):
        return peft.LoraConfig(
            task_type=kind,
            r=strategy.lora_rank,
            lora_alpha=2 * strategy.lora_rank,
            target_modules=targets,
            use_dora=strategy.method == "dora",
        )
    if strategy.method == "ia3":
        # Named modules are scaled behind their product; peft's own choice knows which before.
        scaled_before: list[str] | None = None if targets is None else []
        return peft.IA3Config(
            task_type=kind, target_modules=targets, feedforward_modules=scaled_before
        )
    if kind is None:
        raise UnsupportedCombination(
            "method", strategy.method, f"peft has no {strategy.method} tuning for {task}"
        )
    chosen = peft.PrefixTuningConfig if strategy.method == "prefix" else peft.PromptTuningConfig
    return chosen(task_type=kind, num_virtual_tokens=strategy.virtual_tokens)


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MeasurementFailed(
            "method",
            "peft",
            "adapters need the package peft, which is not installed",
            hint="pip install 'rigsize[train]'",
        ) from error
