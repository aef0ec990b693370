"""Any strategy, really run: DDP, FSDP of worlds that are not there, adapters, real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.run.test_measure import ENCODER, a_source, job

import rigsize
from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.run.checks import check_options
from rigsize.run.compare import compare, predict_record
from rigsize.run.job import MeasureOptions
from rigsize.run.measure import measure
from rigsize.run.record import Record, from_json, to_json
from rigsize.spec import Strategy
from rigsize.texts.generated import generated_corpus, generated_tokenizer
from rigsize.texts.source import DataSource
from rigsize.texts.stats import LengthHistogram

XL = ENCODER | {"model_type": "xlm-roberta-xl"}
# As counted in test_measure; sharded parameters are padded to whole rows, hence the tolerance.
LAYER = 4 * (32 * 32 + 32) + 2 * (2 * 32) + (32 * 64 + 64) + (64 * 32 + 32)
PARAMETERS = (503 + 66 + 1 + 2) * 32 + 2 * LAYER + (32 * 32 + 32) + 2 * 32 + 503
BUFFERS = 2 * 66 * 8


def run(config: dict[str, Any], options: MeasureOptions, **strategy: Any) -> Record:
    chosen = Strategy(**{"micro_batch": 2, "optimizer": "adamw-fused", **strategy})
    record = measure(a_source(config), job("masked-lm"), chosen, "cpu", options=options)
    assert record.outcome == "ok", record.message
    assert from_json(json.loads(json.dumps(to_json(record)))).record_id == record.record_id
    return record


@pytest.mark.slow
@pytest.mark.parametrize("config", [ENCODER, XL], ids=["xlm-roberta", "xlm-roberta-xl"])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_a_rank_of_n_holds_an_nth(config: dict[str, Any], offload: str) -> None:
    for world in (1, 2, 4, 8):
        options = MeasureOptions(world=world, attribution=True)
        record = run(config, options, parallel="fsdp", offload=offload)
        assert record.attribution is not None
        held = record.attribution.categories
        share = 4 * PARAMETERS / world
        # A tensor of few rows is padded to one a rank: some 32 x 4 bytes for each of 40.
        assert share <= held["weights"] - BUFFERS < share + 40 * 128
        assert 2 * share <= held["optimizer_states"] < 2 * share + 2 * 40 * 132
        assert sum(held.values()) == record.memory.allocated_peak_bytes
        assert record.world is not None
        assert (record.world.size, record.world.fake) == (world, True)
        assert f"one rank of {world}" in record.notes[0]
        assert record.throughput is not None
        assert record.throughput.step_s is None


@pytest.mark.slow
def test_gradients_are_found_where_they_are_at_the_peak() -> None:
    # Accumulated gradients are alive in the second micro-step's forward and backward pass.
    options = MeasureOptions(attribution=True)
    held = run(ENCODER, options, accumulation=2).attribution
    assert held is not None
    assert held.categories["gradients"] == 4 * PARAMETERS
    # Two moments of each, and a step counter of 4 bytes a tensor.
    states = held.categories["optimizer_states"] - 8 * PARAMETERS
    assert 0 < states < 4 * 60
    assert held.categories["weights"] == 4 * PARAMETERS + BUFFERS
    assert held.categories["inputs"] == 3 * 2 * 16 * 8


@pytest.mark.slow
def test_ddp_says_that_one_rank_stands_for_all() -> None:
    record = run(ENCODER, MeasureOptions(world=4), parallel="ddp")
    assert record.world is not None
    assert (record.world.size, record.world.fake) == (1, False)
    assert "does not depend on how many" in record.world.note
    # DDP's buckets hold a second copy of the gradients.
    alone = run(ENCODER, MeasureOptions())
    more = record.phase_peaks_bytes["optimizer"] - alone.phase_peaks_bytes["optimizer"]
    assert 4 * PARAMETERS <= more < 4 * PARAMETERS + 10_000


@pytest.mark.slow
def test_adapters_have_states_of_their_own_alone() -> None:
    options = MeasureOptions(attribution=True)
    held = run(ENCODER, options, method="lora", lora_rank=2).attribution
    assert held is not None
    # Query and value of two layers: A [2, 32] and B [32, 2] each, two moments of 4 bytes, and a
    # counter of 4 bytes for each of 8 tensors.
    adapters = 2 * 2 * (2 * 32 + 32 * 2)
    assert held.categories["optimizer_states"] == 8 * adapters + 8 * 4


@pytest.mark.slow
def test_a_histograms_peak_is_that_of_its_worst_batch(tmp_path: Path) -> None:
    snapshot = tmp_path / "peak.json"
    options = MeasureOptions(
        histogram=LengthHistogram(((4, 30), (12, 2))), snapshot=snapshot, attribution=True
    )
    workload = job("masked-lm", padding="unpadded")
    record = measure(
        a_source(ENCODER),
        workload,
        Strategy(micro_batch=4, loss="chunked"),
        "cpu",
        steps=7,
        options=options,
    )
    assert record.outcome == "ok", record.message
    assert record.attribution is not None
    assert record.attribution.step == 2
    assert record.memory.allocated_peak_bytes == record.step_peaks_bytes[1]
    assert record.sizes["N"] >= 4 * 3 + 12
    assert record.throughput is not None
    assert len(record.throughput.step_times_s) == 7
    assert record.throughput.real_tokens_per_s is not None
    document = json.loads(snapshot.read_text())
    assert document["total_bytes"] == record.memory.allocated_peak_bytes
    assert document["categories"] == record.attribution.categories
    sizes = [one["bytes"] for one in document["allocations"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 40])
def test_real_texts_are_predicted_at_their_largest_batch(
    budget: int | None, tmp_path: Path
) -> None:
    workload = job("masked-lm", padding="unpadded")
    strategy = Strategy(micro_batch=4, loss="masked", tokens_per_batch=budget)
    record = measure(
        a_source(ENCODER),
        workload,
        strategy,
        "cpu",
        options=MeasureOptions(
            data=DataSource(path=str(generated_corpus(tmp_path / "texts.jsonl", 60, 0))),
            tokenizer=str(generated_tokenizer(tmp_path / "tokenizer")),
        ),
    )
    assert record.outcome == "ok", record.message
    assert record.texts is not None
    assert (record.texts.kind, record.texts.texts) == ("data", 60)
    assert (record.texts.micro_steps == 1) == (budget is None)
    comparison = compare(record, *predict_record(a_source(ENCODER), record))
    error = comparison.rows[0].error_percent
    assert error is not None
    assert abs(error) < 1


@pytest.mark.slow
def test_real_ranks_write_one_record(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ENCODER))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "rigsize", "measure", str(tmp_path)),
            *("--task", "masked-lm", "--max-length", "16", "--batch-size", "2"),
            *("--parallel", "fsdp", "--device", "cpu", "--out", str(tmp_path / "records")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PYTHONPATH": str(Path(rigsize.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "records").glob("*.json")
    record = from_json(json.loads(file.read_text()))
    assert record.world is not None
    assert [one.rank for one in record.world.ranks] == [0, 1]
    peaks = [one.allocated_peak_bytes or 0 for one in record.world.ranks]
    assert record.memory.allocated_peak_bytes == max(peaks)
    assert not record.world.fake
    assert record.host is not None
    assert (record.host.pss_peak_bytes or 0) > 10**8
    assert "no verdict: gloo keeps copies" in done.stdout


def test_options_that_nobody_has_a_use_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    single, fsdp = Strategy(), Strategy(parallel="fsdp")
    with pytest.raises(UnsupportedCombination, match="single is one rank"):
        check_options(MeasureOptions(world=2), single, "cpu")
    with pytest.raises(SpecError, match="world"):
        check_options(MeasureOptions(world=0), fsdp, "cpu")
    with pytest.raises(UnsupportedCombination, match="no caching allocator"):
        check_options(MeasureOptions(cap_bytes=2**30), single, "cpu")
    with pytest.raises(SpecError, match="folder does not exist"):
        check_options(MeasureOptions(snapshot=Path("/no/such/peak.json")), single, "cpu")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UnsupportedCombination, match="real ranks"):
        check_options(MeasureOptions(world=2), fsdp, "cpu")
