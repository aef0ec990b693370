"""From a calibration's samples to ratios, and which Records speak for this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.run.test_record import a_record

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.program.work import Kernel, Work, WorkSegment
from rigsize.run import host
from rigsize.run.calibrated import Calibrated, Sample
from rigsize.run.calibration_records import (
    FILE_PREFIX,
    calibration_asked,
    calibration_for,
    calibration_of,
    find_calibration,
    predicted_s,
)
from rigsize.run.record import Record, from_json, now, to_json, write_record
from rigsize.run.record_store import find_record, flat, read_folder
from rigsize.spec import Cluster, Strategy
from rigsize.steptime.constants import DISPATCH_S, KERNEL_LAUNCH_S
from rigsize.steptime.step import step_time

H100 = find_accelerator("H100")


def at_ratio(ratio: float, **fields: Any) -> Sample:
    """A sample that took `ratio` times what the packaged model says."""
    sample = Sample(times_s=(1.0,), **fields)
    predicted = predicted_s(sample, H100)
    assert predicted is not None
    return replace(sample, times_s=(predicted * ratio,) * 5)


def samples() -> tuple[Sample, ...]:
    gemm = {"kind": "gemm", "key": "bf16", "detail": "nt"}
    vocabulary = {"key": "bf16", "detail": "nt"}
    return (
        at_ratio(1.2, sizes=(4096, 768, 768), **gemm),
        at_ratio(1.3, sizes=(4096, 3072, 768), **gemm),
        at_ratio(1.4, sizes=(4096, 768, 3072), **gemm),
        at_ratio(0.5, kind="memory", key="softmax", sizes=(2**28,)),
        at_ratio(2.0, kind="attention", key="bf16", detail="forward", sizes=(8, 512, 16, 64)),
        at_ratio(1.5, kind="collective", key="all_reduce", sizes=(2**26, 8)),
        # 250,002 words in 3 s, 250,112 in 2 s: 1.5 times, and a little more a word.
        Sample(kind="misaligned", sizes=(2048, 250_002, 1024), times_s=(3.0,), **vocabulary),
        Sample(kind="aligned", sizes=(2048, 250_112, 1024), times_s=(2.0,), **vocabulary),
        Sample(kind="copy", key="to_device", sizes=(2**28,), times_s=(2**28 / 50e9,)),
        Sample(kind="copy", key="to_host", sizes=(2**28,), times_s=(2**28 / 40e9,)),
        Sample(kind="cpu_adam", key="loop", sizes=(10**9,), times_s=(3.0,)),
        Sample(kind="cpu_adam", key="fused", sizes=(10**9,), times_s=(0.5,)),
        Sample(kind="launch", key="forward", sizes=(1000, 400), times_s=(0.0098,)),
    )


def a_calibration(accelerator: str = H100.id, **changes: Any) -> Record:
    part = Calibrated(accelerator=accelerator, quick=False, samples=samples(), wall_s=60.0)
    here = host.hardware("cpu")
    record = a_record(
        kind="calibration",
        created=now(),
        calibration=part,
        hardware=replace(here, gpu="NVIDIA H100"),
        versions=host.versions(),
    )
    return replace(record, **changes)


# -- the numbers --------------------------------------------------------------------------------


def test_medians_of_ratios() -> None:
    found = calibration_of(a_calibration())
    assert found.accelerator == H100.id
    assert found.gemm == {"bf16": pytest.approx(1.3)}
    assert found.memory == {"softmax": pytest.approx(0.5)}
    assert found.attention == pytest.approx(2.0)
    assert found.collective == {"all_reduce": pytest.approx(1.5)}
    assert found.misaligned == pytest.approx(1.5 * 250_112 / 250_002)
    assert found.to_device_bytes_per_s == pytest.approx(50e9)
    assert found.to_host_bytes_per_s == pytest.approx(40e9)
    assert found.cpu_adam_s_per_param == pytest.approx(3e-9)
    assert found.cpu_adam_fused_s_per_param == pytest.approx(0.5e-9)


def test_a_step_on_the_gpu_is_shared_out_and_sums_to_itself() -> None:
    # 1,000 dispatches and 400 launches took 9.8 ms, shared out as the packaged constants are.
    found = calibration_of(a_calibration())
    assert found.dispatch_s is not None
    assert found.launch_s is not None
    assert 1000 * found.dispatch_s + 400 * found.launch_s == pytest.approx(9.8e-3)
    packaged = KERNEL_LAUNCH_S.value.mid / DISPATCH_S.value.mid
    assert found.launch_s / found.dispatch_s == pytest.approx(packaged)


def test_the_host_alone_has_no_launches() -> None:
    sample = Sample(kind="dispatch", key="forward", sizes=(1000,), times_s=(0.008, 0.010, 0.012))
    part = Calibrated(accelerator="cpu", quick=True, samples=(sample,), wall_s=1.0)
    found = calibration_of(a_calibration(calibration=part))
    assert found.dispatch_s == pytest.approx(10e-6)
    assert found.launch_s is None
    assert found.gemm == {}


def test_an_unlisted_card_has_rates_and_no_ratios() -> None:
    part = Calibrated(accelerator="Some New Card", quick=True, samples=samples(), wall_s=1.0)
    found = calibration_of(a_calibration(calibration=part))
    assert found.gemm == found.memory == {}
    assert found.to_device_bytes_per_s == pytest.approx(50e9)


def test_a_calibrated_step_takes_the_ratio() -> None:
    kernel = Kernel("gemm", "bfloat16", (1, 65536, 4096, 4096), "nt", "mm", 50)
    work = Work(
        segments=(WorkSegment("forward", 0, (kernel,), 50),),
        parameters=(0,),
        trainable=(0,),
        tensors=0,
        weight_bytes=(0,),
        training=False,
        point={"B": 1, "S": 1},
    )
    cluster, strategy = Cluster(accelerator=H100), Strategy(precision="bf16")
    plain = step_time(work, strategy, cluster, draws=0)
    found = calibration_of(a_calibration())
    calibrated = step_time(work, strategy, cluster, calibration=found, draws=0)
    assert calibrated.step_s.p50 / plain.step_s.p50 == pytest.approx(1.3, rel=0.01)
    assert any(found.record[:8] in line for line in calibrated.assumptions)


# -- the Record ---------------------------------------------------------------------------------


def test_round_trip() -> None:
    record = a_calibration()
    read = from_json(json.loads(json.dumps(to_json(record))))
    assert read.calibration == record.calibration
    assert read.record_id == record.record_id
    assert calibration_of(read) == calibration_of(record)


def test_it_is_listed_among_records(tmp_path: Path) -> None:
    record = a_calibration()
    write_record(tmp_path, record, FILE_PREFIX)
    write_record(tmp_path, a_record())
    assert len(read_folder(tmp_path).entries) == 2
    entry = find_record(record.record_id[:8], tmp_path)
    assert flat(entry.record)["kind"] == "calibration"


def test_the_part_and_the_kind_go_together() -> None:
    with pytest.raises(SpecError):
        a_record(kind="calibration")
    with pytest.raises(SpecError):
        a_calibration(kind="measure")


@pytest.mark.parametrize("times", [(), (0.0,), (-1.0, 1.0)])
def test_times_are_positive(times: tuple[float, ...]) -> None:
    with pytest.raises(SpecError):
        Sample(kind="copy", key="to_host", sizes=(1,), times_s=times)


# -- which one speaks for this machine ----------------------------------------------------------


def day(ago: int) -> str:
    return (datetime.now(UTC) - timedelta(days=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_the_newest_of_the_device_is_taken(tmp_path: Path) -> None:
    old, new = a_calibration(created=day(3)), a_calibration(created=day(1))
    for record in (new, old, a_record()):
        write_record(tmp_path, record, FILE_PREFIX if record.calibration else "")
    found = calibration_for(H100.id, tmp_path)
    assert found is not None
    assert found.record == new.record_id
    assert calibration_for("L4", tmp_path) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"created": day(181)}, "stale, 181 days old"),
        ({"hardware": replace(host.hardware("cpu"), cpu="Another CPU")}, "another machine"),
        ({"hardware": replace(host.hardware("cpu"), host_memory_bytes=2**40)}, "another machine"),
        ({"versions": replace(host.versions(), torch="1.0.0")}, "measured with torch 1.0.0"),
    ],
)
def test_stale_and_foreign_ones_are_passed_over_and_said(
    changed: dict[str, Any], why: str, tmp_path: Path
) -> None:
    older, broken = a_calibration(created=day(9)), a_calibration(**changed)
    broken = replace(broken, created=changed.get("created", now()))
    write_record(tmp_path, broken, FILE_PREFIX)
    found = find_calibration(H100.id, tmp_path)
    assert found.calibration is None
    assert why in " ".join(found.notes)
    write_record(tmp_path, older, FILE_PREFIX)
    second = find_calibration(H100.id, tmp_path).calibration
    assert second is not None
    assert second.record == older.record_id


def test_a_broken_file_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_PREFIX}0.json").write_text("{")
    (tmp_path / f"{FILE_PREFIX}1.json").write_text('{"schema_version": "9.0"}')
    (tmp_path / f"{FILE_PREFIX}2.json").write_text(json.dumps(to_json(a_record())))
    changed = to_json(a_calibration()) | {"seed": 1}
    (tmp_path / f"{FILE_PREFIX}3.json").write_text(json.dumps(changed))
    write_record(tmp_path, a_calibration(), FILE_PREFIX)
    found = find_calibration(H100.id, tmp_path)
    assert found.calibration is not None
    assert len(found.notes) == 4


def test_no_folder_is_no_calibration(tmp_path: Path) -> None:
    assert find_calibration(H100.id, tmp_path / "none").notes == ()


def test_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "rigsize" / "records"
    foreign = a_calibration(hardware=replace(host.hardware("cpu"), cpu="Another CPU"))
    file = write_record(folder, foreign, FILE_PREFIX)
    assert calibration_asked(None, H100.id).calibration is None
    assert calibration_asked("none", H100.id).notes == ()
    named = calibration_asked(str(file), H100.id)
    assert named.calibration is not None
    assert "another machine" in " ".join(named.notes)
    with pytest.raises(UnsupportedCombination, match="not on L4"):
        calibration_asked(str(file), "L4")
    with pytest.raises(SpecError, match="no such file"):
        calibration_asked(str(tmp_path / "missing.json"), H100.id)
    with pytest.raises(SpecError, match="of no calibration"):
        calibration_asked(str(write_record(tmp_path, a_record())), H100.id)
