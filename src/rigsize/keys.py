"""The trace key of a run: what of Workload, Strategy and accelerator shapes its trace."""

from __future__ import annotations

from dataclasses import replace

from rigsize.hardware.accelerators import Accelerator
from rigsize.models import ModelSource
from rigsize.point import pads
from rigsize.program.attention_rocm import FUSED
from rigsize.spec import Strategy, Workload
from rigsize.spec.adapter import adapter_of
from rigsize.spec.quantization import check_card, check_cpu, text_of
from rigsize.trace.profile import TraceKey

__all__ = ["FLASH_CAPABILITY", "check_on", "flash_capability", "key_for", "trace_key"]

FLASH_CAPABILITY = (8, 0)
"""From here on texts in one row get FlashAttention (`run.packing`, which imports torch)."""
NO_FLASH = (0, 0)


def key_for(
    source: ModelSource, workload: Workload, strategy: Strategy, accelerator: Accelerator
) -> TraceKey:
    """The trace key of this run on an accelerator."""
    check_on(strategy, accelerator)
    return trace_key(
        source,
        workload,
        strategy,
        device="cpu" if accelerator.is_cpu else "cuda",
        capability=flash_capability(accelerator),
    )


def check_on(strategy: Strategy, accelerator: Accelerator) -> None:
    """UnsupportedCombination where the card has no kernels for how weights are stored."""
    if not accelerator.is_cpu and accelerator.compute_capability is not None:
        check_card(strategy, accelerator.id, accelerator.compute_capability)


def flash_capability(accelerator: Accelerator) -> tuple[int, int]:
    """The compute capability, of an AMD card one with or without FlashAttention."""
    if accelerator.gfx:
        return FLASH_CAPABILITY if accelerator.gfx in FUSED else NO_FLASH
    return accelerator.compute_capability or FLASH_CAPABILITY


def trace_key(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    *,
    device: str,
    capability: tuple[int, int] = FLASH_CAPABILITY,
) -> TraceKey:
    """What the trace of this run depends on."""
    training = workload.training
    classifies = workload.task in ("sequence-classification", "token-classification")
    on_gpu, unpadded = device != "cpu", workload.padding == "unpadded"
    if not on_gpu:
        check_cpu(strategy, training=training)
    half = strategy.policy.compute != "fp32"
    flash = on_gpu and half and capability >= FLASH_CAPABILITY
    adapter = adapter_of(strategy)
    if adapter is not None and strategy.compute != strategy.policy.compute:
        adapter = replace(adapter, dtype="same")  # FSDP2 casts its weights with the layer's
    compute = strategy.compute
    return TraceKey(
        config_digest=source.digest,
        task=workload.task,
        use="training" if training else "inference",
        compute=compute,
        attention="eager" if strategy.attention == "eager" else "sdpa",
        padded=pads(workload, strategy),
        recompute=strategy.recompute if training else "none",
        device="accelerator" if on_gpu else "cpu",
        num_labels=workload.num_labels if classifies else 3,
        hold_output=strategy.hold_output or not training,
        loss=strategy.loss,
        unpadded=("flash" if flash else "grid") if unpadded else "",
        cache="prefill" if workload.generates else "",
        adapter=adapter.traced(compute).text() if adapter else "",
        saves_on_host=training and on_gpu and strategy.offload == "activations",
        quantization=text_of(strategy),
    )
