"""Parameter-efficient methods through the real peft library: traced and run the same."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination, nearest
from rigsize.spec.adapter import ALL_LINEAR, Adapter, targets_like

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
    names = _adaptable(model)
    try:
        with warnings.catch_warnings():
            # peft tells which of its defaults it took; they are the ones that are asked for here.
            warnings.filterwarnings("ignore", module="peft")
            adapted: torch.nn.Module = peft.get_peft_model(
                model,
                _config(peft, adapter, task, model, training=training),
                autocast_adapter_dtype=adapter.dtype == "fp32",
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        _check_targets(adapter.targets, (), names, model)
        named = ",".join(adapter.targets)
        field, value = ("lora-targets", named) if named else ("method", adapter.method)
        raise UnsupportedCombination(
            field,
            value,
            f"peft cannot adapt {type(model).__name__} ({text})",
            hint="--lora-targets names the modules to adapt, comma separated: of "
            + ", ".join(names)
            if not adapter.virtual_tokens
            else "--method lora",
        ) from error
    _check_targets(adapter.targets, _targeted(adapted), names, model)
    _freeze_rank_numbers(adapted)
    return adapted


def _adaptable(model: torch.nn.Module) -> list[str]:
    """The names that products and embeddings have in their modules, for what to say."""
    last = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.ndim == 2
    }
    return sorted(name for name in last if not name.isdigit())


def _targeted(adapted: torch.nn.Module) -> tuple[str, ...]:
    """What peft has put an adapter at; nothing of virtual tokens, which have no modules."""
    return tuple(getattr(getattr(adapted, "base_model", None), "targeted_module_names", ()))


def _check_targets(
    targets: tuple[str, ...], found: tuple[str, ...], names: list[str], model: torch.nn.Module
) -> None:
    """Refuses a name that no module has: peft leaves it out without a word if others are there."""
    known = found or tuple(name for name, _ in model.named_modules())
    for target in targets:
        if target == ALL_LINEAR or any(f".{name}".endswith(f".{target}") for name in known):
            continue
        raise SpecError(
            "lora-targets",
            target,
            f"no module of {type(model).__name__} has this name",
            allowed=(*names, ALL_LINEAR),
            nearest=nearest(target, names),
        )


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


def _defaults(adapter: Adapter, model: torch.nn.Module) -> tuple[Any, list[str] | None]:
    """(target modules, those that IA3 scales before their product); None for peft's own choice."""
    if adapter.targets == (ALL_LINEAR,):
        return ALL_LINEAR, [] if adapter.method == "ia3" else None
    if adapter.targets:
        # Named modules are scaled behind their product; peft's own choice knows which before.
        return list(adapter.targets), []
    config = getattr(model, "config", None)
    like = targets_like(adapter.method, getattr(config, "model_type", ""))
    if like is None:
        return None, None
    constants = importlib.import_module("peft.utils.constants")
    family = {"ia3": "IA3", "adalora": "ADALORA"}.get(adapter.method, "LORA")
    chosen = getattr(constants, f"TRANSFORMERS_MODELS_TO_{family}_TARGET_MODULES_MAPPING")
    before = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    return list(chosen[like]), list(before[like]) if adapter.method == "ia3" else None


def _config(
    peft: Any, adapter: Adapter, task: str, model: torch.nn.Module, *, training: bool
) -> Any:
    common: dict[str, Any] = {"task_type": _TASK_TYPES.get(task), "inference_mode": not training}
    if adapter.virtual_tokens:
        prefix = adapter.method == "prefix"
        chosen = peft.PrefixTuningConfig if prefix else peft.PromptTuningConfig
        return chosen(num_virtual_tokens=adapter.virtual_tokens, **common)
    common["target_modules"], scaled_before = _defaults(adapter, model)
    if adapter.method == "ia3":
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
