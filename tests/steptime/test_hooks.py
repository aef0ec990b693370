"""Host time of DeepSpeed's hooks, by hand."""

from dataclasses import replace
from typing import Any

import pytest
from tests.steptime.works import encoder_work

from rigsize.hardware import find_accelerator
from rigsize.program.work import Modules, Work
from rigsize.spec import Cluster, Strategy
from rigsize.steptime import memory_bound, step_time
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.constants import DISPATCH_S
from rigsize.steptime.hooks import (
    ALONE_S,
    BACKWARD_S,
    BUCKET_GRADIENT_S,
    FORWARD_S,
    GATHER_LAUNCHES,
    GATHER_RANK_S,
    GATHER_S,
    GRADIENT_RANK_S,
    GRADIENT_S,
    MODULE_BACKWARD_S,
    MODULE_FORWARD_S,
    PARAMETER_FORWARD_S,
    ZERO1_GRADIENT_S,
)
from rigsize.steptime.links import Links
from rigsize.steptime.prices import Pricer
from rigsize.steptime.schedule import Schedule, schedule

A100 = find_accelerator("A100-80GB-SXM")
GRADIENT = GRADIENT_S.value + 8 * GRADIENT_RANK_S.value
SHAPES = ((2_000, 2_000),) * 7 + ((2_000,),) * 2
OUTSIDE = ((15_000, 2_000), (2_000,))
LAYER = Modules(modules=12, shapes=SHAPES, trained=SHAPES)
ROOT = Modules(modules=5, shapes=OUTSIDE, trained=OUTSIDE)


def hooked() -> Work:
    """An encoder of two layers, each of 12 modules with 7 large and 2 small parameters."""
    return replace(encoder_work(layers=2, hidden=1024), modules=(ROOT, LAYER, LAYER))


def planned(work: Work, ranks: int = 8, **settings: Any) -> Schedule:
    strategy = Strategy(precision="bf16", **settings)
    cluster = Cluster(accelerator=A100, per_node=ranks)
    links = Links.of(work, strategy, cluster, None)
    return schedule(work, strategy, Pricer(A100, strategy, None), links, None)


def more(parallel: str, which: str = "last", **settings: Any) -> list[tuple[float, float]]:
    """(host seconds, launches) that the hooks add to each row of a micro-step."""
    with_hooks, without = (
        getattr(planned(work, parallel=parallel, **settings), which)
        for work in (hooked(), replace(hooked(), modules=()))
    )
    return [
        ((a.dispatches - b.dispatches) * DISPATCH_S.value.mid, a.launches - b.launches)
        for a, b in zip(with_hooks, without, strict=True)
    ]


def test_zero3_has_hooks_around_modules_and_gathers_large_parameters() -> None:
    # Rows: root, layers 1 and 2, root's head; backward the head, layers 2 and 1, the root.
    found = more("zero3")
    gather = GATHER_S.value + 8 * GATHER_RANK_S.value
    forward = 12 * MODULE_FORWARD_S.value + 9 * PARAMETER_FORWARD_S.value + 7 * gather
    backward = 12 * MODULE_BACKWARD_S.value + 9 * GRADIENT + 7 * gather
    assert found[1] == pytest.approx((forward, 7 * GATHER_LAUNCHES))
    assert found[2] == pytest.approx(found[1])
    assert found[5] == pytest.approx((backward, 7 * GATHER_LAUNCHES + 9))
    root = FORWARD_S.value + 5 * MODULE_FORWARD_S.value + 2 * PARAMETER_FORWARD_S.value + gather
    assert found[0] == pytest.approx((root, GATHER_LAUNCHES))
    # The root's head is no first row of its phase; its backward pass has the root's hooks.
    assert found[3] == (0.0, 0.0)
    head = BACKWARD_S.value + 5 * MODULE_BACKWARD_S.value + 2 * GRADIENT + gather
    assert found[4] == pytest.approx((head, GATHER_LAUNCHES + 2))


def test_a_recomputed_layer_passes_through_its_modules_once_more() -> None:
    once, every_second = (
        more("zero3", recompute=word)[5][0] - more("zero3")[5][0] for word in ("block", "every-2")
    )
    assert once == pytest.approx(12 * MODULE_FORWARD_S.value + 9 * PARAMETER_FORWARD_S.value)
    assert every_second == pytest.approx(once / 2)
    # The root is no layer: its weights outside of them are not recomputed.
    assert more("zero3", recompute="block")[4] == pytest.approx(more("zero3")[4])


def test_zero1_and_2_have_a_hook_a_gradient() -> None:
    # ZeRO-2 fills its buckets in each micro-step, ZeRO-1 in the last one of a step.
    for parallel, which, each, launches in (
        ("zero1", "first", ZERO1_GRADIENT_S, 0),
        ("zero1", "last", BUCKET_GRADIENT_S, 9),
        ("zero2", "first", BUCKET_GRADIENT_S, 9),
    ):
        found = more(parallel, which, accumulation=2)
        assert found[5] == pytest.approx((9 * each.value, launches))
        assert found[1] == (0.0, 0.0)
    assert not any(any(row) for row in more("fsdp"))


def test_frozen_parameters_have_no_gradient() -> None:
    frozen = replace(hooked(), modules=(ROOT, LAYER._replace(trained=()), LAYER))
    row = planned(frozen, parallel="zero3").last[6]
    trained = planned(hooked(), parallel="zero3").last[6]
    assert (trained.dispatches - row.dispatches) * DISPATCH_S.value.mid == pytest.approx(
        9 * GRADIENT
    )


def test_a_gathered_parameter_is_copied_out_on_the_stream_of_the_gather() -> None:
    work = hooked()
    apart = planned(work, parallel="zero3").last[1].gather_s
    together = planned(work, parallel="fsdp").last[1].gather_s
    copied = memory_bound(A100, 2 * work.weight_bytes[1], "copy").seconds
    assert apart - together == pytest.approx(copied)


def test_one_rank_gathers_nothing_and_has_its_hooks() -> None:
    with_hooks, without = (
        planned(work, ranks=1, parallel="zero3").last[1]
        for work in (hooked(), replace(hooked(), modules=()))
    )
    forward = 12 * MODULE_FORWARD_S.value + 9 * PARAMETER_FORWARD_S.value + 7 * ALONE_S.value
    assert (with_hooks.dispatches - without.dispatches) * DISPATCH_S.value.mid == pytest.approx(
        forward
    )
    assert with_hooks.launches == without.launches
    assert with_hooks.gather_s == without.gather_s == 0.0


def test_the_hosts_speed_scales_the_hooks() -> None:
    # A host of twice the time an operator and a launch: all of a step that is bound by it doubles.
    work, strategy = hooked(), Strategy(precision="bf16", parallel="zero3", max_grad_norm=None)
    cluster = Cluster(accelerator=A100, per_node=8)
    slow = Calibration(accelerator=A100.id, dispatch_s=10e-6, launch_s=24e-6)
    one, two = (
        step_time(work, strategy, cluster, calibration=known, draws=0) for known in (None, slow)
    )
    assert one.bound_by == "host launches"
    assert two.micro_s / one.micro_s == pytest.approx(2.0, rel=0.02)
    assert any("DeepSpeed's hooks" in line for line in one.assumptions)
