"""Muon's step: the Newton-Schulz iteration on the matrices of the layers, fused AdamW on the rest.

Mirrors torch/optim/_muon.py (2.13, `_single_tensor_muon`, `_zeropower_via_newtonschulz`), one
matrix after another, in the joined optimizer of `run.joined`. Of a matrix with sides m <= k an
iteration multiplies X X^T (m, m, k), its square (m, m, m) and that with X (m, k, m), in bf16
whatever the weights have.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from rigsize.program.optimizer_muon import NEWTON_SCHULZ_STEPS
from rigsize.program.work import Kernel, Work
from rigsize.spec.optimizers import no_matrix_for_muon
from rigsize.steptime.prices import OPTIMIZER, Pricer
from rigsize.steptime.rows import Row

__all__ = ["matrices_of", "matrix_elements", "muon_kernels", "muon_row", "muon_traffic_bytes"]

_HALF_BYTES = 2
_ADDMMS = 2
"""Of an iteration: each copies what it adds to before it multiplies (ATen, addmm out of place)."""
LAUNCHES = 7 + NEWTON_SCHULZ_STEPS * _ADDMMS
"""Beside products: lerp_, lerp, norm, clamp, div_, mul_, add_, and what addmm copies."""
DISPATCHES = 7 + NEWTON_SCHULZ_STEPS * (2 + _ADDMMS)
"""The same, and of an iteration mm, two addmm and a transposed view."""
_TALL_VIEWS = 2
"""A matrix of more rows than columns is transposed before and after."""


def matrices_of(work: Work) -> Counter[tuple[int, ...]]:
    """How many trained matrices of a shape the layers have; one at least."""
    layers = work.modules[1:]
    found: Counter[tuple[int, ...]] = Counter(
        shape for held in layers for shape in held.trained if len(shape) == 2
    )
    if not found:
        raise no_matrix_for_muon()
    return found


def matrix_elements(work: Work) -> int:
    """Of all of them."""
    return sum(prod(shape) * count for shape, count in matrices_of(work).items())


def muon_kernels(shape: tuple[int, ...], matrices: int) -> tuple[Kernel, ...]:
    """The products of one step over so many matrices of a shape."""
    m, k = sorted(shape)
    launches = NEWTON_SCHULZ_STEPS * matrices
    sizes = ((m, m, k, "nt"), (m, m, m, "nn"), (m, k, m, "nn"))
    return tuple(
        Kernel("gemm", "bfloat16", (1, rows, columns, inner), layout, "muon", launches)
        for rows, columns, inner, layout in sizes
    )


def muon_traffic_bytes(
    shape: tuple[int, ...], stepped_bytes: int, gradient_bytes: int, written_back_bytes: int
) -> int:
    """What a step moves over one matrix beside its products.

    Args:
        shape: of the matrix.
        stepped_bytes: of an element of what is stepped on, and of the momentum.
        gradient_bytes: of an element of the gradient, and of the update made from it.
        written_back_bytes: of an element of the weight that a master copy is written to, else 0.
    """
    momentum = 2 * stepped_bytes + gradient_bytes  # lerp_
    update = stepped_bytes + 2 * gradient_bytes  # lerp
    cast = gradient_bytes + _HALF_BYTES if gradient_bytes != _HALF_BYTES else 0
    scaled = 3 * _HALF_BYTES  # norm, div_
    stepping = 4 * stepped_bytes + _HALF_BYTES  # mul_, add_
    copied = 2 * _HALF_BYTES * NEWTON_SCHULZ_STEPS
    each = momentum + update + cast + scaled + stepping + copied + written_back_bytes
    return prod(shape) * each + copied * min(shape) ** 2


def muon_row(work: Work, pricer: Pricer, sizes: tuple[int, int, int]) -> Row:
    """The step over all matrices; `sizes` are the last three arguments of `muon_traffic_bytes`."""
    row = Row()
    casts = int(sizes[1] != _HALF_BYTES)
    for shape, matrices in matrices_of(work).items():
        launches = (LAUNCHES + casts) * matrices
        operators = DISPATCHES + casts + (_TALL_VIEWS if shape[0] > shape[1] else 0)
        moved = muon_traffic_bytes(shape, *sizes) * matrices
        row.add(OPTIMIZER, pricer.moved(OPTIMIZER, moved, "optimizer", launches))
        for kernel in muon_kernels(shape, matrices):
            row.add(*pricer.counted(kernel))
            row.launches += kernel.launches
        row.launches += launches
        row.dispatches += operators * matrices
    return row
