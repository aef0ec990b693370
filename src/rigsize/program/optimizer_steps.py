"""What each optimizer's `step` allocates and frees, in order: one function an implementation.

Every step first makes the states that a parameter still lacks (torch makes them at the first step,
so the first forward and backward run without them), then its temporaries. Parameters stand in one
parameter group, as the train step passes them. Hyperparameters as `run/optimizers.py` sets them:
no amsgrad, maximize, capturable; decoupled weight decay, which works in place.

CUDA and the CPU allocate the same tensors here: CPU foreach falls back to one operator a tensor,
with the same results in the same order. They differ in where `step` counters live (a fused
optimizer's on the device, the others' on the host), in norms (`program/clipping.py`) and in the
column norms and means of Adafactor. Left out: one-element tensors that die in the statement that
makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rigsize.program.foreach import (
    FP32_BYTES,
    HALF_BYTES,
    Device,
    dtype_groups,
    free_list,
    place,
)
from rigsize.program.timeline import Parameter, Timeline

ColumnScratch = Callable[[int, int], int]
"""(rows, columns) of a reduction over rows to the bytes a card's kernel stages."""

MIN_8BIT_NUMEL = 4096
"""Parameters with fewer elements keep fp32 states (bitsandbytes `min_8bit_size`)."""
BLOCK_8BIT = 256
"""Elements that share one fp32 maximum."""
CODE_TABLE_BYTES = 256 * FP32_BYTES
"""One of the two dynamic code tables that all 8-bit states share."""


@dataclass(slots=True)
class OptimizerState:
    """What lives from one step to the next, as storage ids."""

    states: dict[str, list[int]] = field(default_factory=dict)
    """By parameter name, in the order of allocation."""
    shared: list[int] = field(default_factory=list)
    """Buffers of the implementation that no parameter owns: the 8-bit code tables."""
    masters: dict[str, Parameter] = field(default_factory=dict)
    """By parameter name: the fp32 copies of the recipe fp16-master."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of `optimizer.step()`."""

    name: str
    """The optimizer's name in `spec.strategy.OPTIMIZERS`."""
    timeline: Timeline
    state: OptimizerState
    device: Device
    column_scratch: ColumnScratch | None = None

    def make_states(self, parameter: Parameter) -> None:
        """The states of one parameter, unless it has them."""
        if parameter.name in self.state.states:
            return
        where = place("optimizer_states", f"{self.name}.state")
        self.state.states[parameter.name] = [
            self.timeline.alloc(size, where)
            for size in state_sizes(self.name, parameter.shape, parameter.itemsize, self.device)
        ]

    def temporary(self, num_bytes: int, op: str) -> int:
        """A temporary of the operator `op`."""
        return self.timeline.alloc(num_bytes, place("temporaries", f"{self.name}.{op}"))


StepFunction = Callable[[Step, Sequence[Parameter]], None]


def state_sizes(
    name: str, shape: tuple[int, ...], itemsize: int, device: Device = "cuda"
) -> list[int]:
    """Bytes of each state of one parameter on the device, in the order of allocation.

    Sources: `_init_group` in torch/optim/adam.py, sgd.py and _adafactor.py; `init_state` of
    `Optimizer2State` in bitsandbytes/optim/optimizer.py (0.50.2).
    """
    numel = product(shape)
    if name == "adamw-8bit":
        return _8bit_sizes(numel)
    if name in ("sgd", "sgd-momentum"):
        return [numel * itemsize] if name == "sgd-momentum" else []
    counter = [FP32_BYTES] if name == "adamw-fused" or device == "cpu" else []
    if name == "adafactor":
        return counter + [size * itemsize for size in _factor_numels(shape)]
    return [*counter, numel * itemsize, numel * itemsize]


def _8bit_sizes(numel: int) -> list[int]:
    """Two moments: fp32 for a small parameter, else a byte an element and a maximum a block."""
    if numel < MIN_8BIT_NUMEL:
        return [numel * FP32_BYTES] * 2
    blocks = -(-numel // BLOCK_8BIT)
    return [numel, numel, blocks * FP32_BYTES, blocks * FP32_BYTES]


def _factor_numels(shape: tuple[int, ...]) -> list[int]:
    """Adafactor's row and column factors, or the whole variance of a vector."""
    if len(shape) < 2:
        return [product(shape)]
    return [product(shape[:-1]), product(shape[:-2]) * shape[-1]]


def product(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def adamw_foreach(step: Step, parameters: Sequence[Parameter]) -> None:
    """One copy of the parameters, `_foreach_sqrt(exp_avg_sqs)`, alive to the end of its group.

    The name that holds it is assigned again only after the next group's roots were made, so two
    dtypes in one parameter group add up. Source: torch/optim/adam.py (`_multi_tensor_adam`).
    """
    for parameter in parameters:
        step.make_states(parameter)
    held: list[int] = []
    for group in dtype_groups(parameters):
        roots = [step.temporary(parameter.num_bytes, "_foreach_sqrt") for parameter in group]
        free_list(step.timeline, held)
        held = roots
    free_list(step.timeline, held)


def adamw_fused(step: Step, parameters: Sequence[Parameter]) -> None:
    """No temporaries; on CUDA each parameter's step counter is a device tensor of 4 bytes.

    Source: torch/optim/adam.py (`_fused_adam`).
    """
    for parameter in parameters:
        step.make_states(parameter)


def adamw_loop(step: Step, parameters: Sequence[Parameter]) -> None:
    """Root and quotient of one parameter beside the denominator of the one before it.

    `denom` is assigned again only after the next quotient was made. Source: torch/optim/adam.py
    (`_single_tensor_adam`).
    """
    for parameter in parameters:
        step.make_states(parameter)
    denominator = -1
    for parameter in parameters:
        size = parameter.num_bytes
        root = step.temporary(size, "sqrt")
        quotient = step.temporary(size, "div")
        step.timeline.free(root)
        if denominator >= 0:
            step.timeline.free(denominator)
        denominator = quotient
    if denominator >= 0:
        step.timeline.free(denominator)


def sgd(_step: Step, _parameters: Sequence[Parameter]) -> None:
    """Nothing: without weight decay and momentum the update is in place.

    Source: torch/optim/sgd.py (`_multi_tensor_sgd`).
    """


def sgd_momentum(step: Step, parameters: Sequence[Parameter]) -> None:
    """The first step clones each gradient, group by group; later ones work in place.

    Source: torch/optim/sgd.py (`_multi_tensor_sgd`).
    """
    for group in dtype_groups(parameters):
        for parameter in group:
            step.make_states(parameter)


def adamw_8bit(step: Step, parameters: Sequence[Parameter]) -> None:
    """States at the first step, the code tables before the first 8-bit one; then in place.

    Source: bitsandbytes/optim/optimizer.py (`Optimizer2State`, 0.50.2). Left out: the copy of a
    gradient that is not contiguous.
    """
    for parameter in parameters:
        if parameter.numel >= MIN_8BIT_NUMEL and not step.state.shared:
            where = place("optimizer_states", "adamw-8bit.code_tables")
            step.state.shared += [step.timeline.alloc(CODE_TABLE_BYTES, where) for _ in range(2)]
        step.make_states(parameter)


def adafactor(step: Step, parameters: Sequence[Parameter]) -> None:
    """One variance estimate of full size beside the update of the parameter before.

    A for-loop also on CUDA: unlike the other optimizers Adafactor takes foreach only when asked.
    Its local names outlive an iteration of the loop. Source: torch/optim/_adafactor.py
    (`_single_tensor_adafactor`).
    """
    for parameter in parameters:
        step.make_states(parameter)
    held: dict[str, int] = {}
    for parameter in parameters:
        if len(parameter.shape) > 1:
            estimate = _factored_variance(step, parameter, held)
        else:
            size = parameter.num_bytes
            _assign(step, held, "grad_squared", step.temporary(size, "mul"))
            estimate = step.temporary(size, "clone")
        _assign(step, held, "update", estimate)
    for name in ("row_mean", "col_mean", "grad_squared", "update"):
        if name in held:
            step.timeline.free(held[name])


def _factored_variance(step: Step, parameter: Parameter, held: dict[str, int]) -> int:
    """Row and column norms, their outer product, the mean of the row factor; returns the product.

    The mean of a 16-bit tensor is taken in fp32: on the CPU through a copy. A column norm on CUDA
    stages partial sums as every sum over rows does (`kernel_scratch.column_sum_scratch_bytes`).
    """
    itemsize = parameter.itemsize
    row_bytes, col_bytes = (n * itemsize for n in _factor_numels(parameter.shape))
    batch = product(parameter.shape[:-2])
    _assign(step, held, "row_mean", step.temporary(row_bytes, "norm"))
    col_mean = step.temporary(col_bytes, "norm")
    if step.device == "cuda" and step.column_scratch is not None and batch == 1:
        staged = step.column_scratch(parameter.shape[-2], parameter.shape[-1])
        step.timeline.scratch(staged, place("temporaries", "adafactor.norm_staging"))
    _assign(step, held, "col_mean", col_mean)
    estimate = step.temporary(parameter.num_bytes, "matmul")
    mean = step.temporary(batch * itemsize, "mean")
    if step.device == "cpu" and itemsize == HALF_BYTES:
        total = step.temporary(batch * FP32_BYTES, "mean")
        copy = row_bytes // itemsize * FP32_BYTES
        step.timeline.scratch(copy, place("temporaries", "adafactor.mean"))
        step.timeline.free(total)
    step.timeline.free(mean)
    return estimate


def _assign(step: Step, held: dict[str, int], name: str, storage: int) -> None:
    """A local name gets a new tensor: the one it held dies after the new one was made."""
    previous = held.get(name, -1)
    held[name] = storage
    if previous >= 0:
        step.timeline.free(previous)


STEPS: dict[str, StepFunction] = {
    "adamw-foreach": adamw_foreach,
    "adamw-fused": adamw_fused,
    "adamw-loop": adamw_loop,
    "adamw-8bit": adamw_8bit,
    "sgd": sgd,
    "sgd-momentum": sgd_momentum,
    "adafactor": adafactor,
}
"""By the names of `spec.strategy.OPTIMIZERS`."""
