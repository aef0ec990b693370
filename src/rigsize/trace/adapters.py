"""Parameter-efficient methods through the real peft library: traced and run the same."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from rigsize.errors import MeasurementFailed, UnsupportedCombination
from rigsize.spec.adapter import Adapter

__all__ = ["ADALORA_STEPS", "adapt", "host_tensors"]

_TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "embedding": "FEATURE_EXTRACTION",
}
"""peft has no type for masked LM: its plain PeftModel serves, without virtual tokens
(`spec.together` refuses those)."""
ADALORA_STEPS = 1_000_000
"""Optimizer steps over which AdaLoRA shrinks its ranks, until a run says how many it takes: they
decide which values are masked, not which tensors there are."""


def adapt(
    model: torch.nn.Module,
    adapter: Adapter | None,
    task: str,
    *,
    training: bool = True,
) -> torch.nn.Module:
    """The model with its adapter, base weights frozen; `model` itself without one.

    On meta tensors no memory is taken. Raises UnsupportedCombination where peft cannot adapt this
    architecture or task.
    """
    if adapter is None:
        return model
    peft = _peft()
    try:
        with warnings.catch_warnings():
            # peft tells which of its defaults it took; they are the ones that are asked for here.
            warnings.filterwarnings("ignore", module="peft")
            adapted: torch.nn.Module = peft.get_peft_model(
                model,
                _config(peft, adapter, task, training=training),
                autocast_adapter_dtype=adapter.dtype == "fp32",
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        named = ",".join(adapter.targets)
        field, value = ("lora-targets", named) if named else ("method", adapter.method)
        raise UnsupportedCombination(
            field,
            value,
            f"peft cannot adapt {type(model).__name__} ({text})",
            hint="--lora-targets names the modules to adapt, comma separated"
            if not adapter.virtual_tokens
            else "--method lora",
        ) from error
    _freeze_rank_numbers(adapted)
    return adapted


def _freeze_rank_numbers(model: torch.nn.Module) -> None:
    """AdaLoRA's count of ranks is no weight, whatever peft makes of it on the way.

    `AdaLoraLayer.update_layer` freezes it; `_move_adapter_to_device_of_base_layer` (peft 0.21) then
    puts it into its ParameterDict again as a new Parameter, which trains, where device or dtype
    changes: its gradient would cost three more tensors a module in the backward pass.
    """
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def host_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What peft keeps on the host as plain attributes: the numbers of the virtual tokens."""
    found: dict[str, torch.Tensor] = getattr(model, "prompt_tokens", {})
    return found


def _config(peft: Any, adapter: Adapter, task: str, *, training: bool) -> Any:
    common: dict[str, Any] = {"task_type": _TASK_TYPES.get(task), "inference_mode": not training}
    if adapter.virtual_tokens:
        prefix = adapter.method == "prefix"
        chosen = peft.PrefixTuningConfig if prefix else peft.PromptTuningConfig
        return chosen(num_virtual_tokens=adapter.virtual_tokens, **common)
    common["target_modules"] = list(adapter.targets) or None
    if adapter.method == "ia3":
        # Named modules are scaled behind their product; peft's own choice knows which before.
        scaled_before: list[str] | None = [] if adapter.targets else None
        return peft.IA3Config(feedforward_modules=scaled_before, **common)
    common |= {"lora_alpha": 2 * adapter.rank, "lora_dropout": adapter.dropout}
    common["use_rslora"] = adapter.rslora
    if adapter.method == "adalora":
        # The rank that is trained first; peft's own proportion, 12 to 8, of what is left at last.
        final = max(1, 2 * adapter.rank // 3)
        return peft.AdaLoraConfig(
            init_r=adapter.rank, target_r=final, total_step=ADALORA_STEPS, **common
        )
    return peft.LoraConfig(r=adapter.rank, use_dora=adapter.method == "dora", **common)


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
