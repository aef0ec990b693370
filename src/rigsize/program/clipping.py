"""What happens to gradients around the optimizer's step: unscaling, clipping, zero_grad.

All of it works in place; what it allocates are scalars, of 512 bytes each on CUDA, and the partial
sums of the norms. Left out: scalars that die in the statement that makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rigsize.memory.kernel_scratch import SCALAR_BLOCK_BYTES, foreach_norm_scratch_bytes
from rigsize.program.foreach import FP32_BYTES, Device, dtype_groups, free_list, place
from rigsize.program.timeline import Parameter, Timeline, trainable

FP64_BYTES = 8


def clip_events(timeline: Timeline, parameters: Sequence[Parameter], *, device: Device) -> None:
    """`clip_grad_norm_(parameters, max_norm)`; its result is not kept, as in the train step.

    A norm for each gradient, all alive until they are stacked and reduced, then the clip
    coefficient; the gradients are scaled in place. Source: torch/nn/utils/clip_grad.py.
    """
    groups = dtype_groups(trainable(parameters))
    if not groups:
        return
    norms = [norm for group in groups for norm in _norms(timeline, group, device)]
    itemsize = max(group[0].itemsize for group in groups)
    stacked = timeline.alloc(len(norms) * itemsize, place("temporaries", "clip_grad_norm_.stack"))
    total = timeline.alloc(itemsize, place("temporaries", "clip_grad_norm_.vector_norm"))
    timeline.free(stacked)
    free_list(timeline, norms)
    _clip_coefficient(timeline, itemsize)
    timeline.free(total)


def _norms(timeline: Timeline, group: Sequence[Parameter], device: Device) -> list[int]:
    """`_foreach_norm` of one group; returns the scalars.

    CUDA's kernel keeps fp32 partial sums for the whole list while it runs; on the CPU each tensor
    is reduced by itself. Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu
    (`foreach_tensor_norm_cuda`).
    """
    where = place("temporaries", "clip_grad_norm_._foreach_norm")
    scalars = len(group) * SCALAR_BLOCK_BYTES
    partial_bytes = foreach_norm_scratch_bytes([p.numel for p in group]) - scalars
    partials = timeline.alloc(partial_bytes, where) if device == "cuda" else -1
    norms = [timeline.alloc(parameter.itemsize, where) for parameter in group]
    if partials >= 0:
        timeline.free(partials)
    return norms


def _clip_coefficient(timeline: Timeline, itemsize: int) -> None:
    """`clamp(max_norm / (total_norm + 1e-6), max=1.0)`: the quotient is a reciprocal and a product.

    Source: torch/nn/utils/clip_grad.py (`_clip_grads_with_norm_`).
    """
    where = place("temporaries", "clip_grad_norm_.coefficient")
    shifted = timeline.alloc(itemsize, where)
    reciprocal = timeline.alloc(itemsize, where)
    coefficient = timeline.alloc(itemsize, where)
    timeline.free(reciprocal)
    timeline.free(shifted)
    clamped = timeline.alloc(itemsize, where)
    timeline.free(coefficient)
    timeline.free(clamped)


def zero_grad_events(timeline: Timeline, parameters: Sequence[Parameter]) -> None:
    """`zero_grad(set_to_none=True)`: frees the gradients in the order of the parameters.

    A storage of which several are views dies with the last of them. Source:
    torch/optim/optimizer.py (`Optimizer.zero_grad`).
    """
    views = Counter(p.gradient for p in parameters if p.gradient >= 0)
    for parameter in parameters:
        storage, parameter.gradient = parameter.gradient, -1
        views[storage] -= 1
        if storage >= 0 and not views[storage] and not parameter.gradient_stays:
            timeline.free(storage)


class LossScaler:
    """The tensors of `torch.amp.GradScaler`, called in the order of the train step.

    Source: torch/amp/grad_scaler.py. Left out: the copy of found_inf that a fused optimizer gets.
    """

    __slots__ = ("_found_inf", "_persistent")

    def __init__(self) -> None:
        self._persistent: list[int] = []
        self._found_inf = -1

    def scale(self, timeline: Timeline, itemsize: int = FP32_BYTES) -> int:
        """`scaler.scale(loss)`; returns the scaled loss, which its caller frees after backward.

        The first call makes the scale and the growth counter, which stay.
        """
        if not self._persistent:
            where = place("optimizer_states", "GradScaler._lazy_init", "forward")
            self._persistent = [timeline.alloc(FP32_BYTES, where) for _ in range(2)]
        return timeline.alloc(itemsize, place("temporaries", "GradScaler.scale", "forward"))

    def unscale(self, timeline: Timeline) -> None:
        """`scaler.unscale_(optimizer)`: the gradients are divided in place.

        The reciprocal of the scale is made in fp64; found_inf stays until `update`.
        """
        where = place("temporaries", "GradScaler.unscale_")
        double = timeline.alloc(FP64_BYTES, where)
        reciprocal = timeline.alloc(FP64_BYTES, where)
        timeline.free(double)
        inv_scale = timeline.alloc(FP32_BYTES, where)
        timeline.free(reciprocal)
        self._found_inf = timeline.alloc(FP32_BYTES, where)
        timeline.free(inv_scale)

    def update(self, timeline: Timeline) -> None:
        """`scaler.update()`: forgets what this step's unscaling found."""
        if self._found_inf >= 0:
            timeline.free(self._found_inf)
            self._found_inf = -1
