"""Records' step times beside the prediction, before and after a calibration."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from tests.run.test_record import a_record

from rigsize.evidence.step_times import median_error, step_rows
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.point import point_of
from rigsize.program.work_build import work_for
from rigsize.run.record import Hardware, ModelIdentity, Record, Throughput, WorldRun
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.step import step_time

H100 = find_accelerator("H100")
SOURCE = resolve_model("xlm-roberta-base", allow_network=False)
WORKLOAD = Workload(model=SOURCE.name, task="masked-lm", max_length=128)
STRATEGY = Strategy(precision="amp-bf16", micro_batch=64)


def predicted(calibration: Calibration | None = None) -> float:
    work = work_for(SOURCE, WORKLOAD, STRATEGY, H100, point_of(WORKLOAD, STRATEGY))
    cluster = Cluster(accelerator=H100)
    return step_time(work, STRATEGY, cluster, calibration=calibration, draws=0).step_s.p50


def a_run(step_s: float, **changes: object) -> Record:
    record = a_record(
        model=ModelIdentity(
            name=SOURCE.name,
            origin="bundled",
            config_digest=SOURCE.digest,
            config=dict(SOURCE.config),
        ),
        workload=asdict(WORKLOAD),
        strategy=asdict(STRATEGY),
        hardware=Hardware(gpu="NVIDIA H100 80GB HBM3"),
        throughput=Throughput(
            step_times_s=(step_s,) * 7,
            steady_steps=5,
            step_s=step_s,
            unknown=dict.fromkeys(
                ("real_tokens_per_s", "examples_per_s", "spread", "epoch_hours"), "not asked"
            ),
        ),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def test_errors_before_and_after() -> None:
    calibration = Calibration(
        accelerator=H100.id, record="r", gemm={"bf16": 1.5, "fp32": 1.5}, misaligned=3.0
    )
    # Measured is what the calibrated model says: before it the error is the ratio of the two.
    plain, measured = predicted(), predicted(calibration)
    assert measured > 1.1 * plain
    (row,) = step_rows([a_run(measured)], calibration)
    assert row.error(row.before_s) == pytest.approx(plain / measured - 1)
    assert row.error(row.after_s) == pytest.approx(0.0)
    assert median_error([row], calibrated=False) == pytest.approx(1 - plain / measured)
    assert median_error([row], calibrated=True) == pytest.approx(0.0)


def test_no_calibration_of_another_device() -> None:
    (row,) = step_rows([a_run(0.1)], Calibration(accelerator="L4", gemm={"bf16": 2.0}))
    assert row.before_s is not None
    assert row.after_s is None
    assert median_error([row], calibrated=True) is None


def test_what_timed_nothing_has_no_row_and_what_is_not_predicted_its_reason() -> None:
    world = WorldRun(size=4, parallel="fsdp", offload="none", fake=True)
    unlisted = Hardware(gpu="Some New Card")
    rows = list(
        step_rows([a_record(), a_run(0.1, world=world), a_run(0.1, hardware=unlisted)], None)
    )
    assert [row.before_s for row in rows] == [None, None]
    assert "no time means anything" in rows[0].reason
    assert "Some New Card" in rows[1].reason
