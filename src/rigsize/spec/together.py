"""What a Workload and a Strategy refuse of one another: each value is fine alone."""

from __future__ import annotations

from rigsize.errors import UnsupportedCombination
from rigsize.spec.quantization import check_quantization
from rigsize.spec.strategy import PROMPT_METHODS, Strategy
from rigsize.spec.workload import Workload
from rigsize.spec.zero import ZEROS

__all__ = ["check_together"]


def check_together(workload: Workload, strategy: Strategy) -> None:
    """Raises UnsupportedCombination, naming what would work."""
    check_quantization(workload, strategy)
    _check_zero(workload, strategy)
    _check_precision(workload, strategy)
    _check_loss(workload, strategy)
    _check_unpadded(workload, strategy)
    _check_virtual_tokens(workload, strategy)
    _check_generation(workload, strategy)


def _check_generation(workload: Workload, strategy: Strategy) -> None:
    """Tokens are written by a decoder, without gradients, each text in a row of its own."""
    if not workload.generates:
        return
    field = "prompt-length" if workload.prompt_length is not None else "max-new-tokens"
    value = workload.prompt_length or workload.max_new_tokens
    if workload.training:
        raise UnsupportedCombination(
            field, value, f"{workload.use} writes no tokens", nearest="--use inference"
        )
    if workload.task not in ("causal-lm", "seq2seq-lm"):
        raise UnsupportedCombination(
            field,
            value,
            f"only causal-lm and seq2seq-lm write tokens, the task is {workload.task}",
            hint="without it one pass over max-length is answered",
        )
    if strategy.method in PROMPT_METHODS:
        raise UnsupportedCombination(
            "method",
            strategy.method,
            "generation behind virtual tokens is not answered: peft makes their cache itself",
            nearest="lora",
        )
    if strategy.parallel != "single":
        raise UnsupportedCombination(
            "parallel",
            strategy.parallel,
            "generation is answered on one device, or over several by device_map",
            nearest="single",
            hint="ddp's ranks each need what one device needs",
        )
    if workload.padding == "unpadded":
        raise UnsupportedCombination(
            "padding", "unpadded", "generate pads prompts on their left", allowed=("fixed",)
        )


def _check_zero(workload: Workload, strategy: Strategy) -> None:
    if strategy.parallel in ZEROS and not workload.training:
        raise UnsupportedCombination(
            "parallel",
            strategy.parallel,
            "ZeRO shards what training needs; inference is not answered under it",
            allowed=("single", "ddp", "fsdp", "hsdp"),
            nearest="fsdp",
        )


def _check_precision(workload: Workload, strategy: Strategy) -> None:
    if workload.training and strategy.stored_as != "none" and not strategy.policy.training:
        raise UnsupportedCombination(
            "precision",
            strategy.precision,
            "names weights for inference",
            hint="--precision amp-bf16 with --method qlora or int8-lora",
        )
    if not workload.training and strategy.policy.master_bytes:
        raise UnsupportedCombination(
            "precision",
            strategy.precision,
            "inference has no optimizer whose master copies it could keep",
            nearest="fp16",
        )
    if workload.training and not strategy.policy.training:
        raise UnsupportedCombination(
            "precision",
            strategy.precision,
            "weights in plain fp16 cannot be trained without a master copy",
            allowed=("fp16-master", "amp-fp16", "bf16"),
            nearest="fp16-master",
        )


def _check_loss(workload: Workload, strategy: Strategy) -> None:
    if strategy.loss == "all":
        return
    if workload.task not in ("masked-lm", "causal-lm"):
        raise UnsupportedCombination(
            "loss",
            strategy.loss,
            f"only masked-lm and causal-lm have rows to leave out, the task is {workload.task}",
            allowed=("all",),
        )
    if not workload.training:
        raise UnsupportedCombination(
            "loss", strategy.loss, "inference has no loss", allowed=("all",)
        )


_NO_VIRTUAL_TOKENS = {
    "prefix": ("masked-lm",),
    "prompt": ("masked-lm", "token-classification", "embedding"),
}
"""peft 0.21 has no task type for masked LM; its prompt tuning lengthens the rows of token
classification but not their labels, and pooling would take virtual tokens for text."""


def _check_virtual_tokens(workload: Workload, strategy: Strategy) -> None:
    if workload.task in _NO_VIRTUAL_TOKENS.get(strategy.method, ()):
        raise UnsupportedCombination(
            "method",
            strategy.method,
            f"peft has no {strategy.method} tuning for {workload.task}",
            nearest="lora",
        )


def _check_unpadded(workload: Workload, strategy: Strategy) -> None:
    unpadded = workload.padding == "unpadded"
    if strategy.tokens_per_batch is not None and not unpadded:
        raise UnsupportedCombination(
            "tokens-per-batch",
            strategy.tokens_per_batch,
            f"a budget of tokens is for unpadded batches, padding is {workload.padding}",
            hint="--padding unpadded",
        )
    if strategy.tokens_per_batch is not None and strategy.tokens_per_batch < strategy.micro_batch:
        raise UnsupportedCombination(
            "tokens-per-batch",
            strategy.tokens_per_batch,
            f"fewer tokens than the {strategy.micro_batch:,} texts of a micro-batch",
            allowed=(f"{strategy.micro_batch:,} or more",),
        )
    if unpadded and strategy.method in PROMPT_METHODS:
        raise UnsupportedCombination(
            "padding",
            "unpadded",
            f"{strategy.method} tuning puts positions before each text",
            allowed=("fixed", "dynamic"),
        )
    if unpadded and strategy.attention == "eager":
        raise UnsupportedCombination(
            "attention", "eager", "unpadded attention is SDPA or flash", allowed=("sdpa", "flash")
        )
