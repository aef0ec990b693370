"""The steps of the three Adafactors: torch's loop, torch's foreach, transformers' own class.

Local names of a Python loop outlive an iteration: `held` has the storages that they hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.foreach import FP32_BYTES, HALF_BYTES, dtype_groups, free_list
from rigsize.program.optimizer_sizes import factor_numels, product
from rigsize.program.optimizer_state import Step, assign
from rigsize.program.timeline import Parameter

__all__ = ["adafactor", "adafactor_foreach", "adafactor_hf"]


def adafactor(step: Step, parameters: Sequence[Parameter]) -> None:
    """One variance estimate of full size beside the update of the parameter before.

    A for-loop also on CUDA: unlike the other optimizers Adafactor takes foreach only when asked.
    Source: torch/optim/_adafactor.py (`_single_tensor_adafactor`).
    """
    for parameter in parameters:
        step.make_states(parameter)
    held: dict[str, int] = {}
    for parameter in parameters:
        if len(parameter.shape) > 1:
            estimate = _factored_variance(step, parameter, held)
        else:
            size = parameter.num_bytes
            assign(step, held, "grad_squared", step.temporary(size, "mul"))
            estimate = step.temporary(size, "clone")
        assign(step, held, "update", estimate)
    for name in ("row_mean", "col_mean", "grad_squared", "update"):
        if name in held:
            step.timeline.free(held[name])


def _factored_variance(step: Step, parameter: Parameter, held: dict[str, int]) -> int:
    """Row and column norms, their outer product, the mean of the row factor; returns the product.

    A column norm on CUDA stages partial sums.
    """
    row_bytes, col_bytes = (n * parameter.itemsize for n in factor_numels(parameter.shape))
    assign(step, held, "row_mean", step.temporary(row_bytes, "norm"))
    col_mean = step.temporary(col_bytes, "norm")
    step.staged_columns(parameter.shape, "norm_staging")
    assign(step, held, "col_mean", col_mean)
    estimate = step.temporary(parameter.num_bytes, "matmul")
    step.timeline.free(_row_mean(step, parameter))
    return estimate


def _row_mean(step: Step, parameter: Parameter) -> int:
    """The mean of the row factor; of a 16-bit tensor it is taken in fp32, on the CPU by a copy."""
    batch, itemsize = product(parameter.shape[:-2]), parameter.itemsize
    mean = step.temporary(batch * itemsize, "mean")
    if step.device == "cpu" and itemsize == HALF_BYTES:
        total = step.temporary(batch * FP32_BYTES, "mean")
        step.scratch(factor_numels(parameter.shape)[0] * FP32_BYTES, "mean")
        step.timeline.free(total)
    return mean


def adafactor_foreach(step: Step, parameters: Sequence[Parameter]) -> None:
    """Variance estimates of a whole group at once, beside the updates of the group before.

    Source: torch/optim/_adafactor.py (`_multi_tensor_adafactor`).
    """
    for parameter in parameters:
        step.make_states(parameter)
    updates: list[int] = []
    for group in _by_dimensions(parameters):
        estimates = _matrices(step, group) if len(group[0].shape) > 1 else _vectors(step, group)
        free_list(step.timeline, updates)
        updates = estimates
    free_list(step.timeline, updates)


def _by_dimensions(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """`_group_tensors_by_device_dtype_and_is_multidim`: matrices and vectors of a dtype apart."""
    groups: dict[tuple[int, bool], list[Parameter]] = {}
    for group in dtype_groups(parameters):
        for p in group:
            groups.setdefault((p.itemsize, len(p.shape) > 1), []).append(p)
    return list(groups.values())


def _matrices(step: Step, group: Sequence[Parameter]) -> list[int]:
    for axis in (0, 1):
        norms = []
        for p in group:
            size = factor_numels(p.shape)[axis] * p.itemsize
            norms.append(step.temporary(size, "norm"))
            if axis == 1:
                step.staged_columns(p.shape, "norm_staging")
        free_list(step.timeline, norms)
    estimates = [step.temporary(p.num_bytes, "matmul") for p in group]
    free_list(step.timeline, [_row_mean(step, p) for p in group])
    return estimates


def _vectors(step: Step, group: Sequence[Parameter]) -> list[int]:
    free_list(step.timeline, [step.temporary(p.num_bytes, "_foreach_mul") for p in group])
    return [step.temporary(p.num_bytes, "clone") for p in group]


def adafactor_hf(step: Step, parameters: Sequence[Parameter]) -> None:
    """Up to three fp32 tensors of one parameter, and for 16-bit weights two fp32 copies more.

    As the Trainer makes it, with an outer learning rate: no relative step, no scaling by the
    parameter, no first moment. Source: transformers/optimization.py (`Adafactor.step`).
    """
    held: dict[str, int] = {}
    for parameter in parameters:
        fp32, is_half = parameter.numel * FP32_BYTES, parameter.itemsize == HALF_BYTES
        _drop(step, held, "grad")
        if is_half:
            held["grad"] = step.temporary(fp32, "float")
        fresh = step.make_states(parameter)
        _drop(step, held, "p_data_fp32")
        if is_half:
            held["p_data_fp32"] = step.temporary(fp32, "float")
        if not fresh:
            step.scratch(FP32_BYTES, "rms")  # the new scalar takes the old one's place
        squared = step.temporary(fp32, "pow")
        shifted = step.temporary(fp32, "add")
        step.timeline.free(squared)
        assign(step, held, "update", shifted)
        assign(step, held, "update", _preconditioner(step, parameter))
        step.scratch(fp32, "neg")
    for name in ("grad", "p_data_fp32", "update"):
        _drop(step, held, name)


def _drop(step: Step, held: dict[str, int], name: str) -> None:
    """A name is given to a tensor that lives elsewhere: what it held dies."""
    if name in held:
        step.timeline.free(held.pop(name))


def _preconditioner(step: Step, parameter: Parameter) -> int:
    """`exp_avg_sq.rsqrt()` of a vector; `_approx_sq_grad` of a matrix, whose factors die here."""
    fp32 = parameter.numel * FP32_BYTES
    if len(parameter.shape) < 2:
        return step.temporary(fp32, "rsqrt")
    row_bytes, col_bytes = (n * FP32_BYTES for n in factor_numels(parameter.shape))
    step.scratch(row_bytes, "mean")
    column = step.temporary(col_bytes, "mean")
    step.staged_columns(parameter.shape, "mean_staging")
    step.timeline.free(column)
    mean = step.temporary(product(parameter.shape[:-2]) * FP32_BYTES, "mean")
    row = step.temporary(row_bytes, "div")
    step.timeline.free(mean)
    column = step.temporary(col_bytes, "rsqrt")
    made = step.temporary(fp32, "mul")
    step.timeline.free(row)
    step.timeline.free(column)
    return made
