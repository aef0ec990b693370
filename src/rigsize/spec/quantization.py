"""How quantised base weights are stored, and what a run may do with them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigsize.errors import UnsupportedCombination
from rigsize.spec.strategy import SHARDS_WEIGHTS, STORED_BY, Strategy
from rigsize.spec.workload import Workload

__all__ = [
    "BITSANDBYTES",
    "assumptions_of",
    "check_card",
    "check_checkpoint",
    "check_cpu",
    "check_quantization",
    "check_stored_by",
    "library_of",
    "of_checkpoint",
    "read_text",
    "text_of",
]

BITSANDBYTES = ("nf4", "nf4-double", "int8")
"""The other methods are torchao's."""
_NEEDS_CAPABILITY: dict[str, tuple[int, int]] = {
    "fp8": (8, 9),
    "int4-torchao": (8, 0),
    "int8": (7, 5),
}
"""fp8 numbers begin with Ada; `Int4TilePackedTo4dTensor.from_hp` asks for sm_80 or newer, the
int8 products of LLM.int8 for sm_75 (bitsandbytes' installation guide)."""
_FP16 = "-fp16"
_TRAINED_OVER = ("nf4", "nf4-double", "int8", "int8-torchao")
"""peft's LoRA layers refuse torchao's int4 (`TorchaoLoraLinear._check_dtype_supported`), and
torchao's fp8 weights are for inference."""
_NEAREST = {"gptq": "int4-torchao", "awq": "int4-torchao", "fp8": "fp8", "fbgemm_fp8": "fp8"}
"""Methods of other libraries' checkpoints, and what takes about as many bytes."""


def text_of(strategy: Strategy) -> str:
    """The word of a trace key; empty for none.

    LLM.int8 computes in fp16 whatever is around it, so that fp16 around it is another trace. Of
    the other methods bf16 stands for both.
    """
    method = strategy.stored_as
    if method == "none":
        return ""
    policy = strategy.policy
    own = method == "int8" and policy.compute == "half" and policy.half_dtype == "float16"
    return method + _FP16 if own else method


def library_of(method: str) -> str:
    """The package that stores weights so."""
    return "bitsandbytes" if method in BITSANDBYTES else "torchao"


def read_text(text: str) -> tuple[str, str]:
    """The method and the 16-bit dtype that `text_of` names."""
    own = text.endswith(_FP16)
    return text.removesuffix(_FP16), "float16" if own else "bfloat16"


def check_quantization(workload: Workload, strategy: Strategy) -> None:
    """Refuses what the libraries cannot do, naming what would work."""
    stored = strategy.stored_as
    if stored == "none":
        return
    _check_method(strategy, stored)
    if workload.training:
        _check_training(strategy, stored)
    _check_sharding(strategy, stored)


def _check_method(strategy: Strategy, stored: str) -> None:
    allowed = STORED_BY.get(strategy.method)
    if allowed is not None and stored not in allowed:
        raise UnsupportedCombination(
            "quantization",
            stored,
            f"method {strategy.method} has weights of its own",
            allowed=allowed,
            nearest=allowed[0],
            hint=f"--method lora --quantization {stored}",
        )
    check_stored_by(strategy.precision, stored)
    if stored == "int4-torchao" and strategy.policy.half_dtype != "bfloat16":
        raise UnsupportedCombination(
            "quantization",
            stored,
            f"torchao packs bf16 weights alone, precision is {strategy.precision}",
            hint="--precision bf16",
        )


def check_stored_by(name: str | None, stored: str) -> None:
    """Refuses what a method or a precision contradicts by its name."""
    allowed = STORED_BY.get(name or "")
    if allowed is not None and stored not in allowed:
        raise UnsupportedCombination(
            "quantization", stored, f"{name} says otherwise", allowed=allowed
        )


def _check_training(strategy: Strategy, stored: str) -> None:
    if strategy.method == "full":
        raise UnsupportedCombination(
            "quantization",
            stored,
            "integers have no gradients: quantised weights are trained through an adapter",
            hint="--method int8-lora" if stored.startswith("int8") else "--method qlora",
        )
    if stored not in _TRAINED_OVER:
        raise UnsupportedCombination(
            "quantization",
            stored,
            "peft adapts no such weights",
            allowed=_TRAINED_OVER,
            nearest="int8-torchao" if stored == "fp8" else "nf4",
        )
    if strategy.method == "dora":
        raise UnsupportedCombination(
            "method",
            "dora",
            f"its norms of {stored} weights are not answered yet",
            hint="--method qlora, or --quantization none",
        )


def _check_sharding(strategy: Strategy, stored: str) -> None:
    if strategy.parallel in SHARDS_WEIGHTS:
        reason = (
            "bitsandbytes shards its weights only where they are stored as floats (quant_storage)"
            if stored in BITSANDBYTES
            else "torchao's weights are not sharded by our recipe"
        )
        raise UnsupportedCombination(
            "parallel", strategy.parallel, reason, allowed=("single", "ddp"), nearest="ddp"
        )


def check_card(strategy: Strategy, card: str, capability: tuple[int, int]) -> None:
    """Refuses a card that is too old for the method's kernels."""
    stored = strategy.stored_as
    needed = _NEEDS_CAPABILITY.get(stored, (0, 0))
    if capability < needed:
        field, value, nearest = _asked_for(strategy, capability)
        raise UnsupportedCombination(
            field,
            value,
            f"needs compute capability {needed[0]}.{needed[1]}, {card} has"
            f" {capability[0]}.{capability[1]}",
            nearest=nearest,
        )


def _asked_for(strategy: Strategy, capability: tuple[int, int]) -> tuple[str, str, str]:
    """(flag, value, the nearest one that this card has) by which weights are stored so."""
    stored = strategy.stored_as
    if strategy.quantization != "none":
        return "quantization", stored, "nf4" if stored == "int4-torchao" else "int8-torchao"
    if strategy.method in STORED_BY:
        return "method", strategy.method, "qlora"
    has_int8 = capability >= _NEEDS_CAPABILITY["int8"]
    return "precision", strategy.precision, "int8" if has_int8 else "int4"


def check_cpu(strategy: Strategy, *, training: bool) -> None:
    """Refuses what a CPU cannot do, or does otherwise on every CPU."""
    stored = strategy.stored_as
    if stored == "int4-torchao":
        problem = "torchao packs these tiles on CUDA cards alone"
    elif stored == "int8" and not training:
        problem = "which product LLM.int8 takes on a CPU depends on its instruction set"
    else:
        return
    raise UnsupportedCombination(
        "quantization", stored, problem, nearest="nf4" if stored != "int8" else "int8-torchao"
    )


def of_checkpoint(config: Mapping[str, Any]) -> str:
    """How a checkpoint's weights are stored, by its config; empty for none.

    Raises UnsupportedCombination for a library that is not answered.
    """
    found = config.get("quantization_config")
    if not found:
        return ""
    stored: Mapping[str, Any] = found if isinstance(found, Mapping) else {"quant_method": found}
    four, eight = (stored.get(f"load_in_{bits}bit") for bits in (4, 8))
    method = stored.get("quant_method") or ("bitsandbytes" if four or eight else "unknown")
    if method == "bitsandbytes" and four:
        # FP4 has other values in as many bytes, and the same kernels.
        return "nf4-double" if stored.get("bnb_4bit_use_double_quant") else "nf4"
    if method == "bitsandbytes" and eight:
        return "int8"
    nearest = _NEAREST.get(str(method))
    more = f"; --quantization {nearest} takes about as many bytes" if nearest else ""
    raise UnsupportedCombination(
        "quantization_config",
        method,
        "the layers of this library are not traced",
        allowed=("bitsandbytes",),
        hint=f"without this key the unquantised model is answered{more}",
    )


def check_checkpoint(config: Mapping[str, Any], strategy: Strategy) -> None:
    """Refuses a storing of weights that the checkpoint has not."""
    stored = of_checkpoint(config)
    if stored and strategy.stored_as != stored:
        raise UnsupportedCombination(
            "quantization",
            strategy.stored_as,
            f"the checkpoint is stored as {stored}",
            allowed=(stored,),
            nearest=stored,
        )


def assumptions_of(strategy: Strategy, *, training: bool) -> tuple[str, ...]:
    """What is taken for granted of quantised weights, one line each."""
    stored = strategy.stored_as
    lines = {
        "int8": "LLM.int8: no activation reaches its threshold of 6; columns that do are gathered"
        " in 16 bit beside the int8 product",
        "int8-torchao": "torchao Int8WeightOnlyConfig, in eager mode: each product makes the weight"
        " in 16 bit",
        "int4-torchao": "torchao Int4WeightOnlyConfig: groups of 128, tile_packed_to_4d",
        "fp8": "torchao Float8WeightOnlyConfig: e4m3 with a scale a row, in eager mode: each"
        " product makes the weight whole",
    }
    if stored == "none":
        return ()
    found = [
        lines.get(
            stored,
            "bitsandbytes 0.50 chooses between fused 4-bit products and whole"
            " weights; earlier versions fuse one row alone",
        )
    ]
    if training and stored in BITSANDBYTES:
        rest = "16 bit" if strategy.policy.compute == "half" else "fp32"
        found.append(
            f"weights that stay as they are: {rest} ({strategy.precision}); peft's"
            " prepare_model_for_kbit_training makes them fp32 and turns recompute on"
        )
    return tuple(found)
