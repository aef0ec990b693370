from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from rigsize.errors import SpecError
from rigsize.models.source import resolve_model
from rigsize.run.measure import check_job
from rigsize.run.specs import Spec, parse_spec, read_specs, spec_json
from rigsize.spec.strategy import QUANTIZATIONS

ROOT = Path(__file__).parents[2]
ENTRY = {"id": "a", "model": "tiny", "task": "masked-lm", "max_length": 40}


def test_the_command_lines_words_become_records() -> None:
    more = {"optim": "adamw", "batch_size": 4, "grad_accum": 2, "max_grad_norm": 0}
    spec = parse_spec(ENTRY | more)
    assert spec.strategy.optimizer == "adamw-foreach"
    assert spec.strategy.micro_batch == 4
    assert spec.strategy.accumulation == 2
    assert spec.strategy.max_grad_norm is None
    assert spec.steps == 3
    assert parse_spec(spec_json(spec)) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batchsize": 2}, "a: batchsize: unknown key.*batch_size"),
        ({"task": "masked"}, "a: task: unknown value.*masked-lm"),
        ({"task": ["masked-lm"]}, "not a text"),
        ({"max_length": 0}, "a: max-length"),
        ({"max_length": "40"}, "a: max-length"),
        ({"steps": 2}, "a: steps: not a number in range.*from 3"),
        ({"seed": -1}, "seed"),
        ({"padding_in_batch": 1}, "not a switch"),
        ({"max_grad_norm": -1.0}, "not a norm"),
        ({"max_grad_norm": float("nan")}, "not a norm"),
        ({"precision": "fp6"}, "precision"),
        ({"histogram": [[5]]}, "not a histogram"),
        ({"histogram": [[5, 1], [5, 1]]}, "histogram"),
        ({"cap": 40}, "not a text"),
        ({"cap": "40"}, "not a size with a unit"),
        ({"parallel": "fspd"}, "parallel"),
        ({"id": ""}, "not a name"),
        ({"id": "a\nb"}, "not a name"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_spec(ENTRY | change)


def test_missing_keys_are_named() -> None:
    with pytest.raises(SpecError, match="max_length: missing"):
        parse_spec({"id": "a", "model": "tiny", "task": "masked-lm"})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.toml", "spec = 3", "not of"),
        ("s.toml", "[[spec]\n", "not TOML"),
        ("s.toml", "", "no specs"),
        ("s.toml", "[other]\n", "unknown table"),
        ("s.jsonl", "{}{}", "not one JSON object a line"),
        ("s.jsonl", "[1]\n", "not one JSON object a line"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=words):
        read_specs(tmp_path / name)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SpecError, match="no such file"):
            read_specs(path)


def test_ids_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    line = '{"id": "a", "model": "m", "task": "masked-lm", "max_length": 8}\n'
    file.write_text(line * 2)
    with pytest.raises(SpecError, match="used twice"):
        read_specs(file)


GPU_SUITE = read_specs(ROOT / "benchmarks" / "gpu" / "suite.toml")


def test_the_gpu_suite_begins_with_the_seeds_rows_and_is_broad() -> None:
    names = [spec.id for spec in GPU_SUITE]
    assert [name.startswith("seed-") for name in names] == [True] * 8 + [False] * (len(names) - 8)
    assert len(names) >= 68
    strategies = [spec.strategy for spec in GPU_SUITE]
    every = {"fp32", "tf32", "amp-bf16", "amp-fp16", "bf16", "fp16", "fp16-master"}
    assert {strategy.precision for strategy in strategies} == every
    assert {strategy.recompute for strategy in strategies} == {"none", "block"}
    assert {strategy.attention for strategy in strategies} == {"sdpa", "eager", "flash"}
    assert len({strategy.optimizer for strategy in strategies}) >= 6
    assert {spec.workload.padding_in_batch for spec in GPU_SUITE} == {True, False}
    assert {spec.workload.training for spec in GPU_SUITE} == {True, False}


@pytest.mark.parametrize("spec", GPU_SUITE, ids=lambda spec: spec.id)
def test_every_job_of_the_gpu_suite_could_run(spec: Spec) -> None:
    source = resolve_model(spec.workload.model, allow_network=False)
    assert source.origin == "bundled"
    check_job(source, spec.workload, spec.strategy, "cuda", steps=spec.steps, seed=spec.seed)


RUNS = read_specs(ROOT / "benchmarks" / "gpu" / "suite_runs.toml")


def test_the_suite_of_real_runs_begins_with_the_seeds_rows() -> None:
    assert RUNS[:8] == GPU_SUITE[:8]
    kinds = [(s.strategy.parallel, s.workload.padding) for s in RUNS[8:]]
    ends = (kinds.index(("ddp", "fixed")), kinds.index(("single", "unpadded")))
    assert set(kinds[: ends[0]]) == {("fsdp", "fixed")}
    assert {padding for _, padding in kinds[ends[1] :]} == {"unpadded"}
    worlds = {spec.options.world for spec in RUNS if spec.strategy.parallel == "fsdp"}
    assert worlds == {2, 4, 8}
    assert {spec.strategy.offload for spec in RUNS} == {"none", "cpu"}


SHARDING = read_specs(ROOT / "benchmarks" / "gpu" / "suite_sharding.toml")


def test_the_suite_of_offload_has_each_kind() -> None:
    assert {spec.strategy.offload for spec in SHARDING} >= {
        "none",
        "cpu",
        "optimizer",
        "activations",
    }


@pytest.mark.parametrize("spec", [*RUNS, *SHARDING], ids=lambda spec: spec.id)
def test_every_real_run_could_be_made(spec: Spec) -> None:
    source = resolve_model(spec.workload.model, allow_network=False)
    check_job(source, spec.workload, spec.strategy, "cuda", steps=spec.steps, options=spec.options)
    assert parse_spec(spec_json(spec)) == replace(spec, note="")


QUANTISED = read_specs(ROOT / "benchmarks" / "gpu" / "suite_quantised.toml")


def test_the_quantised_suite_has_every_storing_of_weights() -> None:
    assert {s.strategy.stored_as for s in QUANTISED} == set(QUANTIZATIONS) - {"none"}
    assert {s.workload.training for s in QUANTISED} == {True, False}


@pytest.mark.parametrize("spec", QUANTISED, ids=lambda spec: spec.id)
def test_every_quantised_run_could_be_made(spec: Spec) -> None:
    source = resolve_model(spec.workload.model, allow_network=False)
    check_job(source, spec.workload, spec.strategy, "cuda", steps=spec.steps)
    assert parse_spec(spec_json(spec)) == replace(spec, note="")


ADAPTERS = read_specs(ROOT / "benchmarks" / "gpu" / "suite_adapters.toml")


@pytest.mark.parametrize("spec", ADAPTERS, ids=lambda spec: spec.id)
def test_every_adapted_run_could_be_made(spec: Spec) -> None:
    assert spec.strategy.method != "full"
    source = resolve_model(spec.workload.model, allow_network=False)
    check_job(source, spec.workload, spec.strategy, "cuda", steps=spec.steps, options=spec.options)
    assert parse_spec(spec_json(spec)) == replace(spec, note="")


INFERENCE = read_specs(ROOT / "benchmarks" / "gpu" / "suite_inference.toml")


@pytest.mark.parametrize("spec", INFERENCE, ids=lambda spec: spec.id)
def test_every_generation_could_be_run(spec: Spec) -> None:
    assert spec.workload.generates
    source = resolve_model(spec.workload.model, allow_network=False)
    check_job(source, spec.workload, spec.strategy, "cuda", steps=spec.steps, options=spec.options)
    assert parse_spec(spec_json(spec)) == replace(spec, note="")


def test_any_strategy_and_what_is_measured_beside_it() -> None:
    more = {
        "parallel": "fsdp",
        "offload": "cpu",
        "world": 4,
        "loss": "masked",
        "padding": "unpadded",
        "cap": "40GiB",
        "histogram": [[5, 3], [9, 1]],
        "attribution": True,
    }
    spec = parse_spec(ENTRY | more)
    assert spec.options.world == 4
    assert spec.options.cap_bytes == 40 * 2**30
    assert spec.options.histogram is not None
    assert spec.options.histogram.pairs == ((5, 3), (9, 1))
    assert spec.strategy.offload == "cpu"
    # The id stands for the file's name.
    assert parse_spec(spec_json(spec)) == spec


def load_questions() -> ModuleType:
    file = ROOT / "benchmarks" / "gpu" / "questions.py"
    found = importlib.util.spec_from_file_location("gpu_questions", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["gpu_questions"] = module
    found.loader.exec_module(module)
    return module


def test_the_ten_questions_import_without_a_gpu() -> None:
    questions = load_questions()
    assert list(questions.QUESTIONS) == list(range(1, 11))
    assert all(function.__doc__ for function in questions.QUESTIONS.values())


def test_the_rules_of_the_attention_question() -> None:
    # b16 s128 h12 d64 fp32, memory-efficient: q, k and v have 6 MiB each. Forward keeps out and
    # a logsumexp of 16 * 12 * 128 * 4 B = 96 KiB; backward makes three gradients of 6 MiB and at
    # its height the product or workspace of 6 MiB beside them and delta.
    questions = load_questions()
    card = questions.Card(
        torch=None,
        capability=(8, 0),
        torch_version=(2, 13),
        sm_count=108,
        max_threads_per_sm=2048,
        name="NVIDIA A100-SXM4-40GB",
    )
    shape = questions.Attention(**questions.BERT_LIKE, dtype="float32")
    forward_peak, kept, backward_peak = questions.attention_expected(card, "efficient", shape)
    assert forward_peak == kept == 6 * 2**20 + 16 * 12 * 128 * 4
    assert 24 * 2**20 < backward_peak < 25 * 2**20
