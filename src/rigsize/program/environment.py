"""What of the machine and its libraries decides kernels and their scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.errors import UnsupportedCombination
from rigsize.memory.kernel_scratch import CUDA_REDUCTION, Reduction
from rigsize.memory.rocm_scratch import reduction_of
from rigsize.program.attention_rocm import FUSED

if TYPE_CHECKING:
    from rigsize.hardware.accelerators import Accelerator
    from rigsize.spec.strategy import Strategy

TORCH_VERSION = (2, 13)
CUDNN_VERSION = (9, 20, 0)
"""Bundled with torch 2.13.0+cu130 (see huggingface/transformers PR 48163)."""
_DEFAULT_SM = (108, 2048)
"""An A100's, where a row does not know its own; it only limits the staging of large sums."""
ROCM_STANDS_FOR = (8, 0)
"""AOTriton's attention was not read: its buffers are taken to be an A100's, which this says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A CUDA or ROCm device, or the CPU."""

    device: str
    """cuda (ROCm's too: torch calls it so) or cpu."""
    compute_capability: tuple[int, int]
    """Of a ROCm device that of the CUDA card whose attention buffers stand in for its own."""
    sm_count: int
    max_threads_per_sm: int
    torch_version: tuple[int, int] = TORCH_VERSION
    cudnn_version: tuple[int, int, int] | None = CUDNN_VERSION
    force_flash: bool = False
    """`--attention flash`: the user's choice instead of torch's."""
    gfx: str = ""
    """AMD's name of the architecture; empty elsewhere."""

    @property
    def reduction(self) -> Reduction:
        """How sums over rows are spread."""
        return reduction_of(self.gfx) if self.gfx else CUDA_REDUCTION


def environment_of(accelerator: Accelerator, strategy: Strategy) -> Environment:
    """The environment of an accelerator row under the tested library versions."""
    if accelerator.is_cpu:
        return Environment(
            device="cpu", compute_capability=(0, 0), sm_count=1, max_threads_per_sm=1
        )
    if accelerator.software_stack == "rocm":
        return _rocm_environment(accelerator, strategy)
    if accelerator.software_stack != "cuda" or accelerator.compute_capability is None:
        raise UnsupportedCombination(
            "gpus",
            accelerator.id,
            "only CUDA and ROCm devices and cpu are answered",
            hint=f"software stack of this row: {accelerator.software_stack}",
        )
    capability = accelerator.compute_capability
    _check_bf16(accelerator, strategy)
    if strategy.attention == "flash":
        _check_flash(accelerator, strategy)
    return Environment(
        device="cuda",
        compute_capability=capability,
        sm_count=accelerator.sm_count or _DEFAULT_SM[0],
        max_threads_per_sm=accelerator.max_threads_per_sm or _DEFAULT_SM[1],
        force_flash=strategy.attention == "flash",
    )


def _rocm_environment(accelerator: Accelerator, strategy: Strategy) -> Environment:
    """A ROCm device; refused where ROCm itself does not support the card."""
    if accelerator.training_capable.startswith("no"):
        raise UnsupportedCombination(
            "gpus",
            accelerator.id,
            f"PyTorch does not run on it: {accelerator.arch} is not in the list of cards that"
            " ROCm supports",
            hint="the Instinct cards MI100 and later are",
        )
    if strategy.attention == "flash":
        if accelerator.gfx not in FUSED:
            raise UnsupportedCombination(
                "attention",
                "flash",
                f"{accelerator.id} is {accelerator.gfx}, whose fused kernels are off by default",
                allowed=("sdpa", "eager"),
            )
        _check_half(strategy)
    return Environment(
        device="cuda",
        compute_capability=ROCM_STANDS_FOR,
        sm_count=accelerator.sm_count or _DEFAULT_SM[0],
        max_threads_per_sm=accelerator.max_threads_per_sm or _DEFAULT_SM[1],
        cudnn_version=None,
        force_flash=strategy.attention == "flash",
        gfx=accelerator.gfx,
    )


_INSTEAD_OF_BF16 = {"bf16": ("fp16-master", "fp16", "fp32"), "amp-bf16": ("amp-fp16", "fp32")}


def _check_bf16(accelerator: Accelerator, strategy: Strategy) -> None:
    """A card without bf16 emulates it slowly; nobody wants that who has fp16."""
    instead = _INSTEAD_OF_BF16.get(strategy.precision)
    if instead and not accelerator.supports_bf16 and strategy.stored_as == "none":
        raise UnsupportedCombination(
            "precision",
            strategy.precision,
            f"{accelerator.id} has no bf16",
            allowed=instead,
            nearest=instead[0],
        )


def _check_flash(accelerator: Accelerator, strategy: Strategy) -> None:
    capability = accelerator.compute_capability or (0, 0)
    if capability < (8, 0):
        raise UnsupportedCombination(
            "attention",
            "flash",
            f"{accelerator.id} is {accelerator.arch}, flash attention needs sm_80 or newer",
            allowed=("sdpa", "eager"),
        )
    _check_half(strategy)


def _check_half(strategy: Strategy) -> None:
    if strategy.policy.half_dtype == "float32":
        raise UnsupportedCombination(
            "attention",
            "flash",
            f"flash attention has no fp32 kernel and precision is {strategy.precision}",
            allowed=("sdpa", "eager"),
            hint="take amp-bf16 or bf16",
        )
