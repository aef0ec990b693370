"""How quantised base weights are stored, and what a run may do with them. No torch here."""

from __future__ import annotations

from rigsize.errors import UnsupportedCombination
from rigsize.spec.strategy import Strategy
from rigsize.spec.workload import Workload

__all__ = [
    "BITSANDBYTES",
    "NEEDS_CAPABILITY",
    "check_quantization",
    "read_text",
    "text_of",
]

BITSANDBYTES = ("nf4", "nf4-double", "int8")
"""The other methods are torchao's."""
NEEDS_CAPABILITY: dict[str, tuple[int, int]] = {
    "fp8": (8, 9),
    "int4-torchao": (8, 0),
    "int8": (7, 5),
}
"""fp8 arithmetic begins with Ada; `Int4TilePackedTo4dTensor.from_hp` asks for sm_80 or newer, the
int8 products of LLM.int8 for sm_75 (bitsandbytes' installation guide)."""
_FP16 = "-fp16"
_TRAINED_OVER = ("nf4", "nf4-double", "int8", "int8-torchao")
"""peft's LoRA layers refuse torchao's int4 (`TorchaoLoraLinear._check_dtype_supported`), and
torchao's fp8 weights are for inference."""
_OF_METHOD = {"qlora": ("nf4-double", "nf4"), "int8-lora": ("int8",)}


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
    allowed = _OF_METHOD.get(strategy.method)
    if allowed is not None and stored not in allowed:
        raise UnsupportedCombination(
            "quantization",
            stored,
            f"method {strategy.method} has weights of its own",
            allowed=allowed,
            nearest=allowed[0],
            hint=f"--method lora --quantization {stored}",
        )
    if stored == "int4-torchao" and strategy.policy.half_dtype != "bfloat16":
        raise UnsupportedCombination(
            "quantization",
            stored,
            f"torchao packs bf16 weights alone, precision is {strategy.precision}",
            hint="--precision bf16",
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
    if strategy.parallel in ("fsdp", "hsdp", "zero3"):
        reason = (
            "bitsandbytes shards its weights only where they are stored as floats (quant_storage)"
            if stored in BITSANDBYTES
            else "torchao's weights are not sharded by our recipe"
        )
        raise UnsupportedCombination(
            "parallel", strategy.parallel, reason, allowed=("single", "ddp"), nearest="ddp"
        )
