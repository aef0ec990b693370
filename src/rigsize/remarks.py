"""What goes with an answer in words: what it assumes, and what its user should know."""

from __future__ import annotations

from collections.abc import Iterator

from rigsize.hardware.accelerators import Accelerator
from rigsize.memory.compiled import COMPILE_NOTE
from rigsize.memory.outside import communication, communicators
from rigsize.models import ModelSource
from rigsize.program.beside_steps import logits_bytes
from rigsize.program.build import Program
from rigsize.program.environment import CUDNN_VERSION, TORCH_VERSION
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy, Workload
from rigsize.spec.adapter import adapter_of, targets_like
from rigsize.spec.recompute import recompute_period
from rigsize.units import GIB, format_bytes

__all__ = ["assumptions", "kept_logits", "notes"]


def assumptions(program: Program, accelerator: Accelerator) -> tuple[str, ...]:
    """Context, libraries, communicators, capacity, and what the Program took for granted."""
    if accelerator.is_cpu:
        return ()
    context = accelerator.context_bytes
    band = context.value
    capacity = accelerator.capacity
    stack = "HIP" if accelerator.gfx else "CUDA"
    lines = [
        f"{stack} context {band.mid / 2**30:.2f} GiB ({band.low / 2**30:.2f} to"
        f" {band.high / 2**30:.2f}), {context.basis}: {context.source}",
        _libraries(accelerator),
        *_wheels(accelerator),
    ]
    added = communication(program.mesh, accelerator)
    if added is not None:
        low, mid, high = (size / 2**30 for size in added.value)
        lines.append(
            f"{'RCCL' if accelerator.gfx else 'NCCL'} {mid:.2f} GiB ({low:.2f} to {high:.2f}) for"
            f" {_communicators(program.mesh)}, {added.basis}: {added.source}"
        )
    if capacity is not None:
        lines.append(f"capacity {capacity.basis}: {capacity.source}")
    return (*lines, *program.assumptions)


def _communicators(mesh: Mesh) -> str:
    return "one communicator" if communicators(mesh) == 1 else "two communicators"


def _libraries(accelerator: Accelerator) -> str:
    torch = f"torch {'.'.join(map(str, TORCH_VERSION))}"
    if accelerator.gfx:
        return (
            f"{torch} for ROCm on {accelerator.gfx}: kernel choice, scratch and both workspaces"
            " (rocBLAS, hipBLASLt) of each thread, assumed: read in its source, never on a card"
        )
    return f"{torch}, cuDNN {'.'.join(map(str, CUDNN_VERSION))}: kernel choice and workspaces"


DEFAULT_WHEELS = (7, 5)
"""The lowest compute capability in torch's CUDA 13 wheels, which PyPI has (pytorch#172352)."""
CUDA_12_6_WHEELS = (5, 0)
"""In those for CUDA 12.6: `get_arch_list()` of 2.11+cu126 in pytorch#182250; they are built up to
2.14 (pytorch#190385)."""


def _wheels(accelerator: Accelerator) -> Iterator[str]:
    """Which build of torch has kernels for an old card, and whether any has."""
    capability = accelerator.compute_capability
    if capability is None or capability >= DEFAULT_WHEELS:
        return
    torch = f"torch {'.'.join(map(str, TORCH_VERSION))}"
    arch = accelerator.arch.split()[0]
    if capability >= CUDA_12_6_WHEELS:
        yield (
            f"{torch}'s default wheels have no kernels for {arch}: {accelerator.id} needs those"
            " for CUDA 12.6 (pytorch#172352, #190385), whose kernels are taken to need the same"
        )
        return
    yield (
        f"no wheel of {torch} has kernels for {arch}: {accelerator.id} needs a torch of its time"
        " (1.13 for CUDA 11.7 lists sm_37: nnDetection#220); the figures are those of"
        f" {torch}, as if it ran there"
    )


def kept_logits(
    program: Program, workload: Workload, strategy: Strategy, free_bytes: int | None = None
) -> Iterator[str]:
    """What transformers' own loop does at evaluation, where it is much.

    `free_bytes` of the card are not taken between steps.
    Source: `evaluation_loop` in transformers/trainer.py (5.23), `all_preds`.
    """
    whole = strategy.loss == "all" and workload.padding != "unpadded"
    if not (program.training and workload.predicts_tokens and whole):
        return
    size = 1000 * logits_bytes(program) // strategy.micro_batch
    if size >= GIB:
        texts = max(0, free_bytes or 0) * 1000 // size
        full = "" if free_bytes is None else f"; {texts:,} texts fill the card"
        yield (
            "evaluation by rigsize keeps the logits of one batch; transformers' Trainer, with"
            " compute_metrics, keeps all of them on the card until eval_accumulation_steps:"
            f" {format_bytes(size)} a thousand texts{full}"
        )


def adapted(source: ModelSource, strategy: Strategy) -> Iterator[str]:
    """Whose default targets were taken where peft has none."""
    adapter = adapter_of(strategy)
    if adapter is None or adapter.targets or adapter.virtual_tokens:
        return
    like = targets_like(adapter.method, source.model_type)
    if like is not None:
        yield (
            f"peft has no default targets of {adapter.method} for {source.model_type}: those for"
            f" {like}, whose modules have the same names; --lora-targets names others"
        )


def recomputed(strategy: Strategy, blocks: int) -> Iterator[str]:
    """Where `every-N` is more than there is."""
    every = recompute_period(strategy.recompute)
    if every > blocks > 0:
        yield (
            f"recompute {strategy.recompute} is beyond the {blocks} blocks there are: the first"
            " one alone is recomputed"
        )


def notes(workload: Workload, strategy: Strategy, accelerator: Accelerator) -> list[str]:
    """What of the question has no effect, or is otherwise than elsewhere."""
    found = []
    if accelerator.is_cpu and strategy.offload != "none":
        found.append(f"--offload {strategy.offload} has no effect where the host is the device")
    before_tf32 = (accelerator.compute_capability or (8, 0)) < (8, 0)
    if strategy.precision == "tf32" and (before_tf32 or accelerator.lacks_tf32):
        found.append(f"tf32 has no effect on {accelerator.id}")
    bf16 = strategy.policy.half_dtype == "bfloat16"
    if bf16 and not accelerator.is_cpu and not accelerator.supports_bf16:
        found.append(
            f"{accelerator.id} has no bf16: take fp16 as the compute dtype, as the time does"
        )
    if workload.training and workload.task in ("causal-lm", "seq2seq-lm"):
        found.append(
            "the step passes use_cache=False; a loop that leaves transformers' default on also"
            " holds a key-value cache through the backward pass"
        )
    if strategy.compile:
        found.append(COMPILE_NOTE)
    padded = workload.padding_in_batch and workload.padding != "unpadded"
    if strategy.attention == "flash" and padded:
        found.append("flash with padding unpads the batch; its index copies are not counted")
    return found
