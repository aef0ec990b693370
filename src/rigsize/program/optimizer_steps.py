"""What each optimizer's `step` allocates and frees, in order: one function an implementation.

Every step first makes the states that a parameter still lacks (torch makes them at the first step,
so the first forward and backward run without them), then its temporaries. Parameters stand in one
parameter group, as the train step passes them. Hyperparameters as `run/optimizers.py` sets them:
no amsgrad, maximize, capturable; decoupled weight decay, which works in place. The Adafactors and
Muon have files of their own; what a state takes is in `program/optimizer_sizes.py`.

CUDA and the CPU allocate the same tensors here: CPU foreach falls back to one operator a tensor,
with the same results in the same order. They differ in where `step` counters live (a fused
optimizer's on the device, the others' on the host), in norms (`program/clipping.py`), in the
column norms and means of Adafactor, in managed memory, and in bitsandbytes, whose CPU kernels are
written in torch's own operators. Left out: one-element tensors that die in the statement that
makes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.foreach import dtype_groups, free_list, place
from rigsize.program.optimizer_adafactor import adafactor, adafactor_foreach, adafactor_hf
from rigsize.program.optimizer_muon import muon
from rigsize.program.optimizer_sizes import CODE_TABLE_BYTES, code_tables, needs_code_tables
from rigsize.program.optimizer_state import Step, StepFunction
from rigsize.program.timeline import Parameter

__all__ = ["STEPS"]


def adamw_foreach(step: Step, parameters: Sequence[Parameter]) -> None:
    """One copy of the parameters, `_foreach_sqrt(exp_avg_sqs)`, alive to the end of its group.

    RMSprop's is that of its square averages: torch/optim/rmsprop.py (`_multi_tensor_rmsprop`).

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


def bitsandbytes(step: Step, parameters: Sequence[Parameter]) -> None:
    """States at the first step, the code tables before the first 8-bit one; then in place.

    Paged states are managed memory, which the step prefetches to the card one parameter at a time.
    Source: bitsandbytes/optim/optimizer.py (`Optimizer2State`, `Optimizer1State`, 0.50.2). Left
    out: the copy of a gradient that is not contiguous.
    """
    for parameter in parameters:
        if needs_code_tables(step.name, parameter.numel) and not step.state.shared:
            where = place("optimizer_states", f"{step.name}.code_tables")
            step.state.shared += [
                step.timeline.alloc(CODE_TABLE_BYTES, where) for _ in range(code_tables(step.name))
            ]
        step.make_states(parameter)


def torchao(step: Step, parameters: Sequence[Parameter]) -> None:
    """States at the first step; each parameter's update is one compiled graph.

    Taken to fuse whole on CUDA, so without temporaries: not measured on a GPU, and on the CPU
    backend the graphs of low-bit states keep some (`optimizer_sizes.BLOCKWISE`). Source:
    torchao/optim/adam.py (`_AdamBase.step`, `single_param_adam`, 0.18).
    """
    for parameter in parameters:
        step.make_states(parameter)


STEPS: dict[str, StepFunction] = {
    "adamw-foreach": adamw_foreach,
    "adamw-fused": adamw_fused,
    "adamw-loop": adamw_loop,
    "adamw-8bit": bitsandbytes,
    "paged-adamw": bitsandbytes,
    "paged-adamw-8bit": bitsandbytes,
    "adamw-8bit-torchao": torchao,
    "adamw-4bit": torchao,
    "adamw-fp8": torchao,
    "adamw-sr": torchao,
    "adafactor": adafactor,
    "adafactor-foreach": adafactor_foreach,
    "adafactor-hf": adafactor_hf,
    "lion": bitsandbytes,
    "lion-8bit": bitsandbytes,
    "sgd": sgd,
    "sgd-momentum": sgd_momentum,
    "rmsprop": adamw_foreach,
    "muon": muon,
}
"""By the names of `spec.optimizers.OPTIMIZERS`."""
