"""The flags that say how it is done: precision, optimizer, batch, parallelism, adapters."""

from __future__ import annotations

from typing import Any

from rigsize.cli_settings import Settings, number, whole
from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.program.mesh import accumulation_for
from rigsize.spec import Strategy
from rigsize.spec.checks import integer, one_of
from rigsize.spec.optimizers import OPTIMIZER_ALIASES, OPTIMIZERS
from rigsize.spec.quantization import check_stored_by
from rigsize.spec.strategy import LORA_METHODS

__all__ = ["strategy_of"]

ASSUMED_BATCH = 8
"""transformers' own default, `per_device_train_batch_size`."""
MOST_GLOBAL_BATCH = 10**9


def strategy_of(settings: Settings) -> tuple[Strategy, bool, int | None]:
    """(strategy, whether the batch is to be found, the global batch asked for)."""
    inference = settings.text("use") == "inference"
    silent = Settings(settings.given)  # what does not matter is not said to be assumed
    training = silent if inference else settings
    optimizer = training.or_assumed("optim", "adamw", "adamw-foreach, torch's default on CUDA")
    one_of("optim", optimizer, (*OPTIMIZER_ALIASES, *OPTIMIZERS))
    batch = settings.or_assumed("batch-size", str(ASSUMED_BATCH), "transformers' default")
    auto = batch == "auto"
    micro = 1 if auto else whole("batch-size", batch)
    global_batch = settings.integer("global-batch")
    if global_batch is not None:
        integer("global-batch", global_batch, 1, MOST_GLOBAL_BATCH)
    strategy = Strategy(
        precision=_precision(settings),
        optimizer=OPTIMIZER_ALIASES.get(optimizer, optimizer),
        micro_batch=micro,
        accumulation=_accumulation(settings, micro, global_batch),
        recompute=settings.text("recompute") or "none",
        attention=settings.text("attention") or "sdpa",
        hold_output=settings.switch("hold-output", default=True),
        max_grad_norm=_clipping(settings, training),
        **_more_of_strategy(settings),
    )
    _warn_of_adapter_dtype(settings, strategy)
    return strategy, auto, global_batch


def _warn_of_adapter_dtype(settings: Settings, strategy: Strategy) -> None:
    """`Adapter.traced`: over fp32 weights there is no choice."""
    adapted, wide = strategy.method in _OF_METHOD["adapter-dtype"], strategy.compute != "half"
    if adapted and wide and settings.text("adapter-dtype") is not None:
        settings.warnings.append(
            f"--adapter-dtype has no effect on precision {strategy.precision}: its weights are"
            " fp32, and adapters with them"
        )


def _precision(settings: Settings) -> str:
    """What nobody said: fp32, or what is usual around quantised weights."""
    stored = settings.text("quantization") not in (None, "none")
    if settings.text("method") not in ("qlora", "int8-lora") and not stored:
        return settings.or_assumed("precision", "fp32")
    if settings.text("use") == "inference":
        return settings.or_assumed("precision", "bf16", "around quantised weights")
    return settings.or_assumed(
        "precision", "amp-bf16", "norms, embeddings and head in fp32, as peft's recipe has it"
    )


_STRATEGY_TEXTS = (
    "loss",
    "parallel",
    "offload",
    "method",
    "lora_targets",
    "adapter_dtype",
    "quantization",
)
_STRATEGY_NUMBERS = ("tokens_per_batch", "lora_rank", "virtual_tokens", "shard_size")
_STRATEGY_SWITCHES = {
    "reshard": "reshard_after_forward",
    "bucket-view": "bucket_view",
    "rslora": "rslora",
    "optim-in-backward": "optimizer_in_backward",
    "compile": "compile",
}
_OF_PARALLEL = {"bucket-view": ("ddp",), "reshard": ("fsdp", "hsdp")}
_OF_METHOD = {
    "lora-rank": LORA_METHODS,
    "lora-dropout": LORA_METHODS,
    "lora-targets": (*LORA_METHODS, "ia3"),
    "adapter-dtype": (*LORA_METHODS, "ia3"),
    "virtual-tokens": ("prefix", "prompt"),
}


def _more_of_strategy(settings: Settings) -> dict[str, Any]:
    """The fields that the Strategy's own defaults serve where nothing was given."""
    method = settings.text("method") or "full"
    for name, methods in _OF_METHOD.items():
        if settings.text(name) is not None and method not in methods:
            settings.warnings.append(f"--{name} has no effect on method {method}")
    if settings.switch("rslora") and method not in LORA_METHODS:
        settings.warnings.append(f"--rslora has no effect on method {method}")
    parallel = settings.text("parallel") or "single"
    for name, parallels in _OF_PARALLEL.items():
        if settings.given.get(name.replace("-", "_")) is not None and parallel not in parallels:
            flag = name if settings.switch(name) else f"no-{name}"
            settings.warnings.append(f"--{flag} has no effect on parallel {parallel}")
    _check_unquantised(settings, method)
    given: dict[str, Any] = {
        key: value for key in _STRATEGY_TEXTS if (value := settings.text(key)) is not None
    }
    numbers = {key: settings.integer(key.replace("_", "-")) for key in _STRATEGY_NUMBERS}
    given |= {key: number for key, number in numbers.items() if number is not None}
    for flag, key in _STRATEGY_SWITCHES.items():
        if settings.given.get(flag.replace("-", "_")) is not None:
            given[key] = settings.switch(flag)
    dropout = settings.text("lora-dropout")
    return given if dropout is None else given | {"lora_dropout": number("lora-dropout", dropout)}


def _check_unquantised(settings: Settings, method: str) -> None:
    """`none` is the Strategy's word for not asked: only here a contradiction can be seen."""
    if settings.text("quantization") == "none":
        for name in (method, settings.text("precision")):
            check_stored_by(name, "none")


def _accumulation(settings: Settings, micro: int, global_batch: int | None) -> int:
    """`ceil(global / micro)` where a global batch is given; it is set again for an auto batch."""
    text = settings.text("grad-accum")
    if global_batch is None:
        if text == "auto":
            raise SpecError("grad-accum", text, "auto needs --global-batch")
        asked = settings.integer("grad-accum")
        return 1 if asked is None else asked
    if text not in (None, "auto"):
        raise UnsupportedCombination(
            "grad-accum", text, "--global-batch sets the accumulation", hint="give one of the two"
        )
    return accumulation_for(global_batch, micro) if micro > 0 else 1


def _clipping(settings: Settings, training: Settings) -> float | None:
    """The norm; none where nobody asked and an optimizer in backward could not know it."""
    text = settings.text("max-grad-norm")
    if text is None and settings.switch("optim-in-backward"):
        training.assumed.append("max-grad-norm 0: an optimizer in backward cannot clip")
        return None
    return _norm(text)


def _norm(text: str | None) -> float | None:
    if text is None:
        return 1.0
    try:
        norm = float(text) if len(text) < 40 else -1.0
    except ValueError:
        norm = -1.0
    if not 0 <= norm < 1e9:
        raise SpecError("max-grad-norm", text, "not a norm", allowed=("0 for none, or positive",))
    return norm or None
