"""The flags that say what is to be done: task, use, lengths; and what is usual of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigsize.cli_settings import Settings, number
from rigsize.models import default_task, heads_of, max_positions
from rigsize.spec import Workload
from rigsize.spec.workload import DEFAULT_NEW_TOKENS

__all__ = ["auto_length_of", "usual_task", "warn_training_only", "workload_of"]

ENCODER_LENGTH = 512
"""What BERT, RoBERTa and T5 were trained at."""
DECODER_LENGTH = 1024
"""The default `max_length` of TRL's SFTConfig."""


def workload_of(settings: Settings, name: str, config: Mapping[str, Any]) -> Workload:
    """What is to be done."""
    use = settings.or_assumed("use", "fine-tuning")
    task = settings.text("task")
    if task is None:
        task = settings.or_assumed("task", usual_task(config, use))
    generation = _generation(settings, config, task)
    length = generation.get("prompt_length") or _length(settings, "max-length")
    if length is None:
        length = int(settings.or_assumed("max-length", *_usual_length(config, task)))
    target = None if generation else settings.integer("max-target-length")
    if task == "seq2seq-lm" and target is None and not generation:
        settings.assumed.append(f"max-target-length {length}: as long as the input")
    if settings.text("num-labels") is not None and not task.endswith("-classification"):
        settings.warnings.append(f"--num-labels has no effect on {task}")
    if settings.text("padding") == "dynamic":
        settings.assumed.append("dynamic padding: a batch whose longest text has max-length tokens")
    optional: dict[str, Any] = {
        key: value
        for key in ("num_labels", "examples", "epochs")
        if (value := settings.integer(key)) is not None
    } | generation
    share = settings.text("mask-share")
    if share is not None:
        optional["mask_share"] = number("mask-share", share)
        if task != "masked-lm":
            settings.warnings.append(f"--mask-share has no effect on {task}")
    return Workload(
        model=name,
        task=task,
        use=use,
        max_length=length,
        max_target_length=target,
        padding=settings.text("padding") or "fixed",
        padding_in_batch=_pads(settings),
        **optional,
    )


SHORTEST = 8
"""Where the search for a length begins."""


def auto_length_of(settings: Settings) -> str | None:
    """The flag that is `auto`."""
    asked = [name for name in ("prompt-length", "max-length") if settings.text(name) == "auto"]
    return asked[0] if asked else None


def _length(settings: Settings, name: str) -> int | None:
    return SHORTEST if settings.text(name) == "auto" else settings.integer(name)


def _generation(settings: Settings, config: Mapping[str, Any], task: str) -> dict[str, int]:
    """Lengths of prompt and answer where tokens are written; nothing where they are not."""
    prompt, new = _length(settings, "prompt-length"), settings.integer("max-new-tokens")
    if prompt is None and new is None:
        return {}
    written = DEFAULT_NEW_TOKENS if new is None else new
    if prompt is None:
        prompt = _length(settings, "max-length")
        if prompt is None:
            prompt = int(
                settings.or_assumed("prompt-length", *_usual_prompt(config, task, written))
            )
    elif settings.text("max-length") not in (None, str(prompt)):
        settings.warnings.append("--max-length has no effect beside --prompt-length")
    if settings.text("max-target-length") is not None:
        settings.warnings.append("--max-target-length has no effect: --max-new-tokens are written")
    if new is None:
        why = "what transformers' generate writes where nothing is said"
        new = int(settings.or_assumed("max-new-tokens", str(DEFAULT_NEW_TOKENS), why))
    return {"prompt_length": prompt, "max_new_tokens": new}


def _usual_prompt(config: Mapping[str, Any], task: str, written: int) -> tuple[str, str]:
    """(tokens, why); what a decoder writes takes positions, too."""
    usual, why = _usual_length(config, task)
    longest = max_positions(config)
    if task == "seq2seq-lm" or longest is None or int(usual) + written <= longest:
        return usual, why
    return str(max(1, longest - written)), "all the positions it has but those written"


def _pads(settings: Settings) -> bool:
    """An unpadded batch has no padding in it."""
    unpadded = settings.text("padding") == "unpadded"
    if unpadded and settings.given.get("padding_in_batch"):
        settings.warnings.append("--padding-in-batch has no effect on unpadded batches")
    return not unpadded and settings.switch("padding-in-batch", default=True)


def usual_task(config: Mapping[str, Any], use: str) -> str:
    """What one does with it; pre-training needs a head that predicts tokens."""
    usual = default_task(config)
    if use != "pre-training" or usual.endswith("-lm"):
        return usual
    heads = heads_of(config)
    return next((t for t in ("masked-lm", "causal-lm", "seq2seq-lm") if t in heads), usual)


def _usual_length(config: Mapping[str, Any], task: str) -> tuple[str, str]:
    """(tokens, why)."""
    longest = max_positions(config)
    usual = DECODER_LENGTH if task == "causal-lm" else ENCODER_LENGTH
    why = "TRL's default" if task == "causal-lm" else "what such models are trained at"
    if longest is not None and longest < usual:
        return str(longest), "all the positions it has"
    return str(usual), why


def warn_training_only(settings: Settings) -> None:
    """Names what inference has no use for."""
    for name in ("optim", "grad-accum", "global-batch", "max-grad-norm"):
        if settings.text(name) is not None:
            settings.warnings.append(f"--{name} has no effect on inference")
    if settings.text("offload") in ("optimizer", "activations"):
        settings.warnings.append(
            f"--offload {settings.text('offload')} has no effect on inference: nothing is saved"
        )
    if settings.text("recompute") not in (None, "none"):
        settings.warnings.append("--recompute has no effect on inference")
    if settings.switch("optim-in-backward"):
        settings.warnings.append("--optim-in-backward has no effect on inference")
    if not settings.switch("hold-output", default=True):
        settings.warnings.append("--no-hold-output has no effect on inference")
