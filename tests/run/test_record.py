from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rigsize.errors import SpecError
from rigsize.run.record import (
    STATISTICS,
    Attribution,
    Cap,
    Hardware,
    HostMemory,
    Memory,
    ModelIdentity,
    Record,
    Texts,
    Throughput,
    Versions,
    WorldRun,
    content_hash,
    from_json,
    read_records,
    to_json,
    write_record,
)
from rigsize.run.record_parts import RankPeaks
from rigsize.spec import Strategy, Workload

WORKLOAD = Workload(model="tiny", task="masked-lm", max_length=40)
STRATEGY = Strategy(precision="amp-bf16", micro_batch=2)


def a_record(**changes: Any) -> Record:
    record = Record(
        created="2026-11-23T12:00:00Z",
        command="rigsize measure tiny",
        model=ModelIdentity(name="tiny", origin="config", config_digest="0" * 16, config={"a": 1}),
        workload=asdict(WORKLOAD),
        strategy=asdict(STRATEGY),
        device="cuda",
        hardware=Hardware(gpu="NVIDIA L4", gpu_memory_bytes=23 * 2**30, cores=4),
        versions=Versions(python="3.11.7", rigsize="0.1.0", torch="2.13.0"),
        seed=0,
        outcome="ok",
        memory=Memory(
            allocated_peak_bytes=100,
            reserved_peak_bytes=200,
            host_peak_bytes=300,
            unknown={"device_peak_bytes": "why", "context_bytes": "why"},
        ),
        phase_peaks_bytes={"load": 10, "forward": 100},
        step_peaks_bytes=(90, 100, 100),
        step_times_s=(0.5, 0.25, 0.25),
        steps=3,
    )
    return replace(record, **changes)


def test_round_trip_through_json_text() -> None:
    record = a_record()
    read = from_json(json.loads(json.dumps(to_json(record))))
    assert to_json(read) == to_json(record)
    assert read.record_id == record.record_id
    assert read.spec() == (WORKLOAD, STRATEGY)


def test_every_null_has_its_reason_beside_it() -> None:
    memory = to_json(a_record())["memory"]
    assert memory["allocated_peak_bytes"] == 100
    assert memory["device_peak_bytes"] is None
    assert memory["device_peak_bytes_unknown_reason"] == "why"
    for name in STATISTICS:
        assert (memory[name] is None) == (f"{name}_unknown_reason" in memory)


def test_an_unknown_statistic_needs_a_reason() -> None:
    with pytest.raises(SpecError, match="unknown without a reason"):
        Memory(allocated_peak_bytes=1)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        a_record().outcome = "failed"  # type: ignore[misc]


def test_a_changed_document_is_refused() -> None:
    document = to_json(a_record())
    document["memory"]["allocated_peak_bytes"] = 99
    with pytest.raises(SpecError, match="changed after it was written"):
        from_json(document)


def test_fields_of_a_later_minor_are_left_out() -> None:
    document = to_json(a_record())
    document["schema_version"] = "1.7"
    document["weather"] = "fine"
    document["hardware"]["fans"] = 2
    document["record_id"] = content_hash(document)
    read = from_json(document)
    assert read.hardware == a_record().hardware
    assert read.memory == a_record().memory


@pytest.mark.parametrize("version", ["2.0", "17"])
def test_a_later_major_is_refused_clearly(version: str) -> None:
    with pytest.raises(SpecError, match="written by a newer rigsize"):
        from_json(to_json(a_record()) | {"schema_version": version})


def test_what_a_document_lacks_is_said() -> None:
    document = {k: v for k, v in to_json(a_record()).items() if k not in ("memory", "record_id")}
    with pytest.raises(SpecError, match=r"^record: not a Record: it has no memory$"):
        from_json(document)


@pytest.mark.parametrize("version", [None, "", "x", "-1", "0.9"])
def test_what_is_no_record_is_refused(version: object) -> None:
    with pytest.raises(SpecError, match="not a Record"):
        from_json({"schema_version": version})


@pytest.mark.parametrize(
    ("key", "value"), [("memory", 3), ("spec", {}), ("steps", "many"), ("hardware", None)]
)
def test_hostile_documents_are_one_clear_error(key: str, value: object) -> None:
    document = to_json(a_record()) | {key: value}
    document["record_id"] = content_hash(document)
    with pytest.raises(SpecError):
        from_json(document)


@pytest.mark.parametrize("value", [-1, True, 1.5, "1"])
def test_bytes_are_whole_and_positive(value: object) -> None:
    document = to_json(a_record())
    document["memory"]["allocated_peak_bytes"] = value
    document["record_id"] = content_hash(document)
    with pytest.raises(SpecError, match="not a byte count"):
        from_json(document)


def test_unknown_outcomes_are_refused() -> None:
    with pytest.raises(SpecError, match="unknown outcome"):
        a_record(outcome="fine")


def test_the_spec_hash_is_that_of_the_question() -> None:
    record = a_record()
    assert a_record(seed=7, created="later").spec_hash == record.spec_hash
    renamed = dict(record.workload) | {"model": "./folder"}
    assert a_record(workload=renamed).spec_hash == record.spec_hash
    other = dict(record.strategy) | {"micro_batch": 3}
    assert a_record(strategy=other).spec_hash != record.spec_hash


def test_a_folder_of_records(tmp_path: Path) -> None:
    records = [a_record(), a_record(seed=1)]
    for record in records:
        file = write_record(tmp_path / "records", record)
        assert file.name == f"{record.record_id}.json"
    read = {record.record_id for record in read_records(tmp_path / "records")}
    assert read == {record.record_id for record in records}
    assert not [file for file in (tmp_path / "records").iterdir() if file.suffix != ".json"]


def test_a_failed_write_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_record(tmp_path, a_record())
    assert list(read_records(tmp_path)) == []


def test_a_file_that_is_no_json_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(SpecError, match="not JSON"):
        list(read_records(tmp_path))


def test_a_record_of_another_rigsize_says_so() -> None:
    record = a_record(strategy=dict(asdict(STRATEGY)) | {"wings": 2})
    with pytest.raises(SpecError, match="of another rigsize"):
        record.spec()


RECORDS = sorted((Path(__file__).parents[2] / "validation" / "records").glob("*.json"))


def test_the_records_of_schema_1_0_are_read_and_keep_their_ids() -> None:
    assert len(RECORDS) >= 19
    for file in RECORDS:
        document = json.loads(file.read_text())
        record = from_json(document)
        assert to_json(record) == document
        assert record.record_id == file.stem
        assert (record.kind, record.world, dict(record.sizes)) == ("measure", None, {})


def everything() -> Record:
    return a_record(
        kind="train",
        sizes={"B": 2, "S": 40},
        losses=(2.0, 1.5),
        world=WorldRun(
            size=2,
            parallel="fsdp",
            offload="none",
            fake=False,
            ranks=(RankPeaks(rank=0, allocated_peak_bytes=7), RankPeaks(rank=1)),
            unknown={"communicator_bytes": "not on CPU"},
        ),
        host=HostMemory(pss_peak_bytes=5, unknown={"pinned_bytes": "not on CPU"}),
        throughput=Throughput(step_times_s=(1.0,), steady_steps=0, unknown={"step_s": "too few"}),
        texts=Texts(kind="data", source="a.jsonl", texts=9, micro_batches=1, padded=False),
        attribution=Attribution(step=2, phase="backward", categories={"rest": 4}, total_bytes=4),
        cap=Cap(cap_bytes=9, allocator_limit_bytes=8, proven=True),
    )


def test_all_parts_of_schema_1_1_round_trip() -> None:
    record = everything()
    document = json.loads(json.dumps(to_json(record)))
    assert document["schema_version"] == "1.2"
    assert document["host"]["pinned_bytes"] is None
    assert document["host"]["pinned_bytes_unknown_reason"] == "not on CPU"
    assert document["world"]["ranks"][0]["allocated_peak_bytes"] == 7
    read = from_json(document)
    assert read == replace(record, sizes=read.sizes, workload=read.workload, strategy=read.strategy)
    assert read.record_id == record.record_id


def test_parts_of_a_later_minor_are_read_without_what_is_new() -> None:
    document = to_json(everything())
    document["schema_version"] = "1.9"
    document["host"]["swap_bytes"] = 3
    document["world"]["ranks"][0]["colour"] = "red"
    document["record_id"] = content_hash(document)
    read = from_json(document)
    assert read.host == everything().host
    assert read.world == everything().world


@pytest.mark.parametrize("part", ["world", "host", "throughput", "texts", "attribution", "cap"])
def test_a_hostile_part_is_one_clear_error(part: str) -> None:
    values: list[Any] = [3, [1], {}]
    for value in values:
        document = to_json(a_record()) | {part: value}
        document["record_id"] = content_hash(document)
        if part == "host" and value == {}:
            continue  # every field of it may be unknown
        with pytest.raises(SpecError):
            from_json(document)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(SpecError, match="unknown kind"):
        a_record(kind="guess")
