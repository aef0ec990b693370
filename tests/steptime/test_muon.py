"""Muon's products and traffic, by hand and against a real step."""

from dataclasses import replace

import pytest
from tests.steptime.works import encoder_work

from rigsize.hardware import find_accelerator
from rigsize.program.work import Modules, kernel_flops
from rigsize.spec import Cluster, Strategy
from rigsize.steptime import step_time
from rigsize.steptime.muon import (
    DISPATCHES,
    matrices_of,
    muon_kernels,
    muon_row,
    muon_traffic_bytes,
)
from rigsize.steptime.prices import Pricer
from rigsize.steptime.run_lines import checkpoint_bytes

A100 = find_accelerator("A100-80GB-SXM")
MATRICES = ((1024, 1024),) * 4 + ((4096, 1024), (1024, 4096))
LAYER = Modules(modules=9, shapes=(*MATRICES, (1024,)), trained=(*MATRICES, (1024,)))
WORK = replace(
    encoder_work(layers=2, hidden=1024),
    modules=(Modules(modules=3, shapes=((32000, 1024),), trained=((32000, 1024),)), LAYER, LAYER),
)
MUON = Strategy(precision="bf16", micro_batch=16, optimizer="muon", max_grad_norm=None)


def test_flops_of_a_matrix_by_hand() -> None:
    # Five times 2 m m k, 2 m m m and 2 m m k with m = 1024, k = 4096, whichever side is longer.
    by_hand = 5 * (4 * 1024**2 * 4096 + 2 * 1024**3)
    for shape in ((1024, 4096), (4096, 1024)):
        assert sum(kernel_flops(kernel) for kernel in muon_kernels(shape, 3)) == 3 * by_hand


def test_traffic_of_a_matrix_by_hand() -> None:
    # bf16: lerp_ 2+2+2, lerp 2+2+2, norm 2, div_ 4, mul_ 4, add_ 6 and 5 copies of 4: 48 bytes an
    # element; 5 copies of 4 bytes an element of the square.
    assert muon_traffic_bytes((100, 300), 2, 2, 0) == 48 * 30_000 + 20 * 10_000
    # fp32: lerp_ 12, lerp 12, the cast 6, norm 2, div_ 4, mul_ 8, add_ 10, copies 20.
    assert muon_traffic_bytes((300, 100), 4, 4, 0) == 74 * 30_000 + 20 * 10_000


def test_matrices_of_the_layers_alone() -> None:
    assert matrices_of(WORK) == {(1024, 1024): 8, (4096, 1024): 2, (1024, 4096): 2}


def test_the_row_of_a_step() -> None:
    pricer = Pricer(A100, MUON, None)
    row = muon_row(WORK, pricer, (2, 2, 0))
    # 12 matrices: 15 products each, 7 other kernels and 10 copies; two tall ones take two views.
    assert row.launches == 12 * (15 + 17)
    assert row.dispatches == 12 * DISPATCHES + 2 * 2
    priced = sum(
        pricer.kernel(kernel)[1].seconds * kernel.launches
        for shape, count in matrices_of(WORK).items()
        for kernel in muon_kernels(shape, count)
    )
    assert sum(s for part, s in row.busy_s.items() if part != "optimizer") == pytest.approx(priced)


def test_a_step_takes_longer_than_adamws_and_hardly_depends_on_the_batch() -> None:
    cluster = Cluster(accelerator=A100)
    muon, adamw = (
        step_time(WORK, replace(MUON, optimizer=name), cluster, draws=0)
        for name in ("muon", "adamw-fused")
    )
    assert muon.update_s > 2 * adamw.update_s
    assert muon.micro_s == pytest.approx(adamw.micro_s)


def test_a_checkpoint_keeps_one_state_of_a_matrix_and_two_of_all_else() -> None:
    # bf16 weights and states: 2 bytes of each weight, 2 of each matrix element, 4 of the rest.
    matrices = 2 * (4 * 1024**2 + 2 * 4 * 1024**2)
    rest = sum(WORK.trainable) - matrices
    by_hand = sum(WORK.weight_bytes) + 2 * matrices + 4 * rest
    assert checkpoint_bytes(WORK, MUON) == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.slow
def test_operators_are_those_of_torchs_own_step() -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    for shape, views in (((32, 64), 0), ((64, 32), 2)):
        weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.bfloat16))
        optimizer = torch.optim.Muon([weight])
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        with Counting() as counted:
            optimizer.step()
        operators = [name for name in counted.names if name.startswith("aten.")]
        assert len(operators) == DISPATCHES + views
        assert sum(name.startswith(("aten.mm", "aten.addmm")) for name in operators) == 15
