"""From the flags of a verb to the records of a question, and what was chosen for the user."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rigsize.cli_flags import MODEL, VERBS
from rigsize.errors import SpecError, UnsupportedCombination, nearest
from rigsize.hardware import Accelerator, parse_gpus
from rigsize.models import ModelSource, default_task, heads_of, max_positions, resolve_model
from rigsize.program.mesh import accumulation_for, mesh_of
from rigsize.recipes import recipe_flags
from rigsize.spec import POLICIES, Cluster, Strategy, Workload
from rigsize.spec.checks import integer, one_of
from rigsize.spec.optimizers import OPTIMIZER_ALIASES
from rigsize.spec.quantization import check_stored_by, of_checkpoint
from rigsize.spec.strategy import (
    LORA_METHODS,
    LOSSES,
    METHODS,
    NOT_YET,
    OFFLOADS,
    PARALLELS,
    QUANTIZATIONS,
)
from rigsize.spec.workload import DEFAULT_NEW_TOKENS, PADDINGS, with_length
from rigsize.units import format_bytes, parse_bytes

__all__ = ["Job", "Settings", "Target", "number", "parse_job", "parse_target", "read_spec"]

ASSUMED_GPU = "A100-40GB"
"""The card of the article that the seed's tables come from; always said to be assumed."""
ASSUMED_BATCH = 8
"""transformers' own default, `per_device_train_batch_size`."""
ENCODER_LENGTH = 512
"""What BERT, RoBERTa and T5 were trained at."""
DECODER_LENGTH = 1024
"""The default `max_length` of TRL's SFTConfig."""
MOST_GLOBAL_BATCH = 10**9
_VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "parallel": (PARALLELS, NOT_YET["parallel"]),
    "offload": (OFFLOADS, ()),
    "method": (METHODS, ()),
    "quantization": (QUANTIZATIONS, ()),
    "loss": (LOSSES, ()),
    "precision": (tuple(POLICIES), ()),
    "padding": (PADDINGS, ()),
}
"""By flag: the contract's values that are taken, and those of a later release."""
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_LARGEST_SPEC_BYTES = 1024**2


@dataclass(slots=True)
class Settings:
    """What was given, by flag key; text, or a bool for a switch."""

    given: Mapping[str, str | bool]
    assumed: list[str] = field(default_factory=list)
    """Choices made where nothing was given, in words."""
    warnings: list[str] = field(default_factory=list)
    """Settings without effect."""

    def text(self, name: str) -> str | None:
        """The value of a flag, None where it was not given."""
        value = self.given.get(name.replace("-", "_"))
        return value if isinstance(value, str) else None

    def switch(self, name: str, default: bool = False) -> bool:
        """A switch."""
        value = self.given.get(name.replace("-", "_"))
        return value if isinstance(value, bool) else default

    def integer(self, name: str) -> int | None:
        """A whole number; the records check its range."""
        text = self.text(name)
        return None if text is None else _whole(name, text)

    def or_assumed(self, name: str, default: str, why: str = "") -> str:
        """The value of a flag, or the default, which is then said to be assumed."""
        text = self.text(name)
        if text is not None:
            return text
        self.assumed.append(f"{name} {default}{f': {why}' if why else ''}")
        return default


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done and how; on what is a Target."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    """With a micro-batch of 1 where it is `auto`."""
    auto_batch: bool
    auto_length: str | None = None
    """The flag whose length is to be found: max-length or prompt-length."""
    global_batch: int | None
    """As asked for; the one that is run may be larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """On what, and the limits that the user sets."""

    cluster: Cluster
    """Its capacity is already less by the headroom."""
    headroom_bytes: int
    fail_over_bytes: int | None
    note: str | None


_ON_WHAT = ("gpus", "host_memory")
"""Keys of a plan's spec file that a run on the machine at hand has no flag for."""


def read_spec(path: str, verb: str) -> dict[str, str | bool]:
    """A TOML file of a verb's flags; an unknown key is refused with the nearest.

    It may also say on what a plan was made for, which `settings_of` takes out again for a run.
    """
    known = (MODEL, *VERBS[verb], *(f for f in VERBS["estimate"] if f.key in _ON_WHAT))
    flags = {flag.key: flag for flag in known if flag.name != "spec"}
    given: dict[str, str | bool] = {}
    for written, value in _toml(Path(path)).items():
        key = written.replace("-", "_")
        if key not in flags:
            raise SpecError(f"{path}: {written}", value, "unknown key", nearest=nearest(key, flags))
        given[key] = _spec_value(f"{path}: {written}", value, flags[key].switch)
    return given


def _toml(file: Path) -> Mapping[str, Any]:
    import tomllib  # late: few runs have a file

    try:
        if not file.is_file():
            raise SpecError("spec", str(file), "no such file")
        if file.stat().st_size > _LARGEST_SPEC_BYTES:
            raise SpecError("spec", str(file), "too large", allowed=("up to 1 MiB",))
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("spec", str(file), f"cannot be read as TOML ({error})") from None


def _spec_value(field_: str, value: object, switch: bool) -> str | bool:
    if switch and isinstance(value, bool):
        return value
    if switch:
        raise SpecError(field_, value, "not a switch", allowed=("true", "false"))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(field_, value, "not a text or a number")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise SpecError(field_, value, "absurdly large")
    return str(value)


def parse_job(settings: Settings, verb: str = "estimate") -> Job:
    """The question of a verb; SizingError for what is wrong or not answered yet."""
    _refuse_later(settings, verb)
    name = settings.text("model")
    if name is None:
        raise SpecError("model", None, "missing", hint=f"rigsize {verb} MODEL")
    source = resolve_model(
        name,
        trust_remote_code=settings.switch("trust-remote-code"),
        allow_network=not settings.switch("offline"),
    )
    _apply_recipe(settings, source.config)
    _apply_checkpoint(settings, source.config)
    strategy, auto, global_batch = _strategy(settings)
    workload = _workload(settings, name, source.config)
    strategy = _texts_of_budget(settings, workload, strategy)
    auto_length = _auto_length(settings)
    if auto and auto_length:
        raise UnsupportedCombination(
            auto_length, "auto", "the batch is auto already", hint="give one of the two"
        )
    if not workload.training:
        _warn_training_only(settings)
        offload = strategy.offload if strategy.offload.startswith("cpu") else "none"
        strategy = replace(strategy, accumulation=1, offload=offload)
    return Job(
        source=source,
        workload=workload,
        strategy=strategy,
        auto_batch=auto,
        auto_length=auto_length,
        global_batch=global_batch if workload.training else None,
    )


def _apply_recipe(settings: Settings, config: Mapping[str, Any]) -> None:
    """The recipe's flags, below those that were given."""
    recipe = settings.text("recipe")
    if recipe is None:
        return
    use = settings.text("use") or "fine-tuning"
    flags = recipe_flags(
        recipe,
        settings.text("task") or _usual_task(config, use),
        config,
        on_cpu="cpu" in (settings.text("gpus"), settings.text("device")),
        training=use != "inference",
    )
    settings.assumed.append(
        f"recipe {recipe}: "
        + ", ".join(
            f"{key.replace('_', '-')} {_shown(value)}"
            for key, value in flags.items()
            if key not in settings.given
        )
    )
    settings.given = {**flags, **settings.given}


def _apply_checkpoint(settings: Settings, config: Mapping[str, Any]) -> None:
    """Weights are stored as the checkpoint has them, where nothing else was said."""
    stored = of_checkpoint(config)
    if stored and settings.text("quantization") is None:
        settings.assumed.append(f"quantization {stored}: the checkpoint's own")
        settings.given = {**settings.given, "quantization": stored}


def _shown(value: str | bool) -> str:
    return value if isinstance(value, str) else "yes" if value else "no"


def _texts_of_budget(settings: Settings, workload: Workload, strategy: Strategy) -> Strategy:
    """With a budget of tokens alone a micro-batch has as many texts as it takes to fill it."""
    budget = strategy.tokens_per_batch
    if budget is None or settings.text("batch-size") is not None:
        return strategy
    texts = max(1, -(-budget // workload.max_length))
    settings.assumed = [line for line in settings.assumed if not line.startswith("batch-size ")]
    settings.assumed.append(f"batch-size {texts}: as many full texts as {budget:,} tokens take")
    return replace(strategy, micro_batch=texts)


def _refuse_later(settings: Settings, verb: str) -> None:
    """The contract's values that a later release answers, by name."""
    for flag in VERBS[verb]:
        value = settings.text(flag.name)
        if flag.later and value is not None:
            raise UnsupportedCombination(flag.name, value, "not answered yet")
    for name, (answered, later) in _VALUES.items():
        value = settings.text(name)
        if value is not None:
            one_of(name, value, (*answered, *later))
        if value in later:
            reason = "it changes what each rank computes" if name == "parallel" else ""
            raise UnsupportedCombination(
                name, value, "not answered yet", allowed=answered, hint=reason
            )


# -- what ---------------------------------------------------------------------------------------


def _workload(settings: Settings, name: str, config: Mapping[str, Any]) -> Workload:
    use = settings.or_assumed("use", "fine-tuning")
    task = settings.text("task")
    if task is None:
        task = settings.or_assumed("task", _usual_task(config, use))
    generation = _generation(settings, config, task)
    length = generation.get("prompt_length") or _length(settings, "max-length")
    if length is None:
        length = int(settings.or_assumed("max-length", *_usual_length(config, task)))
    target = None if generation else settings.integer("max-target-length")
    if task == "seq2seq-lm" and target is None and not generation:
        settings.assumed.append(f"max-target-length {length}: as long as the input")
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


def _auto_length(settings: Settings) -> str | None:
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


def _usual_task(config: Mapping[str, Any], use: str) -> str:
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


def _warn_training_only(settings: Settings) -> None:
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


# -- how ----------------------------------------------------------------------------------------


def _strategy(settings: Settings) -> tuple[Strategy, bool, int | None]:
    """(strategy, whether the batch is to be found, the global batch asked for)."""
    inference = settings.text("use") == "inference"
    silent = Settings(settings.given)  # what does not matter is not said to be assumed
    training = silent if inference else settings
    optimizer = training.or_assumed("optim", "adamw", "adamw-foreach, torch's default on CUDA")
    batch = settings.or_assumed("batch-size", str(ASSUMED_BATCH), "transformers' default")
    auto = batch == "auto"
    micro = 1 if auto else _whole("batch-size", batch)
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
    return strategy, auto, global_batch


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


def _whole(name: str, text: str) -> int:
    digits = text.strip().replace("_", "")
    if not _INTEGER.fullmatch(digits):
        raise SpecError(name, text, "not a whole number of at most 18 digits")
    return int(digits)


def number(name: str, text: str) -> float:
    """A finite number; the records check its range."""
    try:
        value = float(text) if len(text) < 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(name, text, "not a number")
    return value


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


# -- on what ------------------------------------------------------------------------------------


def parse_target(settings: Settings) -> Target:
    """The device, with the headroom taken off its capacity."""
    text = settings.or_assumed("gpus", ASSUMED_GPU, "the article's card")
    gpus = parse_gpus(text)
    fail_over = settings.text("fail-over")
    headroom = _headroom(settings, gpus.accelerator)
    return Target(
        cluster=Cluster(
            accelerator=_less(gpus.accelerator, headroom),
            per_node=gpus.per_node,
            nodes=gpus.nodes,
            host_memory_bytes=_host_memory(settings),
        ),
        headroom_bytes=headroom,
        fail_over_bytes=None if fail_over is None else parse_bytes(fail_over, "fail-over"),
        note=gpus.assumed_note,
    )


def _host_memory(settings: Settings) -> int | None:
    text = settings.text("host-memory")
    size = None if text is None else parse_bytes(text, "host-memory")
    if size == 0:
        raise SpecError("host-memory", text, "no memory at all", allowed=("256GiB", "1TiB"))
    return size


def _headroom(settings: Settings, accelerator: Accelerator) -> int:
    text = settings.text("headroom")
    if text is None:
        return 0
    capacity = accelerator.capacity_bytes
    if capacity is None:
        settings.warnings.append(f"--headroom has no effect: {accelerator.id} has no capacity here")
        return 0
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", text.strip())
    wanted = int(capacity * float(share[1]) / 100) if share else parse_bytes(text, "headroom")
    if wanted >= capacity:
        allowed = (f"less than {format_bytes(capacity)}, or a share such as 10%",)
        raise SpecError("headroom", text, "leaves nothing of the card", allowed=allowed)
    return wanted


def _less(accelerator: Accelerator, headroom_bytes: int) -> Accelerator:
    """The same card with less memory, so that every replay keeps the headroom."""
    capacity = accelerator.capacity
    if not headroom_bytes or capacity is None:
        return accelerator
    return replace(accelerator, capacity=replace(capacity, value=capacity.value - headroom_bytes))


def settle_parallel(settings: Settings, job: Job, cluster: Cluster) -> Job:
    """Several devices that nobody said how to use train by DDP, and infer by a device_map.

    This is said to be assumed.
    """
    several, training = cluster.devices > 1, job.workload.training
    if not several or settings.text("parallel") is not None:
        return job
    if not training:
        why = f"device_map='auto' spreads the layers over {cluster.devices:,} devices"
        settings.or_assumed("parallel", "single", why)
        return job
    parallel = settings.or_assumed("parallel", "ddp", f"there are {cluster.devices:,} devices")
    return replace(job, strategy=replace(job.strategy, parallel=parallel))


def settle_length(job: Job, cluster: Cluster, find: Callable[..., int]) -> tuple[Job, bool]:
    """The job with its length found by `find` (`search.longest_context`), and whether any fits."""
    if job.auto_length is None:
        return job, True
    found = find(job.source, job.workload, job.strategy, cluster)
    return replace(job, workload=with_length(job.workload, max(1, found))), found > 0


def settle_batch(job: Job, cluster: Cluster, find: Callable[..., int]) -> tuple[Job, bool]:
    """The job with its batch found by `find` (`search.largest_batch`), and whether any fits.

    A global batch is spread over all ranks.
    """
    strategy, total = job.strategy, job.global_batch
    ranks = mesh_of(strategy, cluster, training=job.workload.training).ranks
    if not job.auto_batch:
        if total is None:
            return job, True
        accumulation = accumulation_for(total, strategy.micro_batch, ranks)
        return replace(job, strategy=replace(strategy, accumulation=accumulation)), True
    if total is not None:
        # Accumulating steps keep gradients alive, so a second micro-step has to fit too.
        strategy = replace(strategy, accumulation=2)
    found = find(job.source, job.workload, strategy, cluster)
    micro = max(1, found if total is None else min(found, -(-total // ranks)))
    again = job.strategy.accumulation if total is None else accumulation_for(total, micro, ranks)
    settled = replace(job.strategy, micro_batch=micro, accumulation=again)
    return replace(job, strategy=settled), found > 0
