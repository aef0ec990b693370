from __future__ import annotations

from typing import Any

import pytest
import torch

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.models.source import ModelSource
from rigsize.run import host
from rigsize.run.batch import batch_sizes, random_batch
from rigsize.run.compare import CPU_TOLERANCE, predict_record
from rigsize.run.execution import is_out_of_memory
from rigsize.run.measure import check_job, measure
from rigsize.run.meters import CpuMeter, storages
from rigsize.run.record import Record, from_json, to_json
from rigsize.spec import Strategy, Workload
from rigsize.trace.model import BuildOptions, load_config

ENCODER = {
    "model_type": "xlm-roberta",
    "vocab_size": 503,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BART = {
    "model_type": "bart",
    "vocab_size": 503,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 503,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 503,
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def a_source(config: dict[str, Any]) -> ModelSource:
    return ModelSource(
        name="tiny",
        origin="config",
        config=config,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )


def job(task: str, use: str = "fine-tuning", **more: Any) -> Workload:
    return Workload(model="tiny", task=task, use=use, max_length=16, **more)


def run(config: dict[str, Any], workload: Workload, **strategy: Any) -> Record:
    strategy = {"micro_batch": 2} | strategy
    return measure(a_source(config), workload, Strategy(**strategy), "cpu")


def test_a_training_run() -> None:
    record = run(ENCODER, job("masked-lm"))
    assert record.outcome == "ok", record.message
    assert from_json(to_json(record)).record_id == record.record_id
    peaks = record.phase_peaks_bytes
    assert set(peaks) == {"load", "forward", "backward", "optimizer"}
    assert record.memory.allocated_peak_bytes == max(peaks.values()) == max(record.step_peaks_bytes)
    assert len(record.step_times_s) == len(record.step_peaks_bytes) == record.steps == 3
    # Step 1 has no optimizer states; from step 2 on every step is the same.
    assert record.step_peaks_bytes[0] < record.step_peaks_bytes[1] == record.step_peaks_bytes[2]
    assert record.memory.reserved_peak_bytes is None
    assert record.memory.unknown["device_peak_bytes"] == "not on CPU"
    assert (record.memory.host_peak_bytes or 0) > 10 * 2**20
    assert record.versions.torch == torch.__version__


def test_the_load_is_parameters_buffers_and_batch() -> None:
    # XLM-R: word 503x32, position 66x32, type 1x32, norm 2x32; per layer 4 square matrices with
    # biases, two norms, 32x64 and 64x32 with biases; head 32x32 + 32, norm 2x32, bias 503.
    layer = 4 * (32 * 32 + 32) + 2 * (2 * 32) + (32 * 64 + 64) + (64 * 32 + 32)
    parameters = (503 + 66 + 1 + 2) * 32 + 2 * layer + (32 * 32 + 32) + 2 * 32 + 503
    buffers = 2 * 66 * 8  # position_ids and token_type_ids
    batch = 3 * 2 * 16 * 8  # input_ids, attention_mask, labels
    record = run(ENCODER, job("masked-lm"))
    assert record.phase_peaks_bytes["load"] == 4 * parameters + buffers + batch


def test_states_and_the_optimizers_copy_are_seen() -> None:
    # AdamW's step holds weights, gradients, two moments; foreach one more copy, the loop at most
    # two of the largest parameter (503x32, also the head's, tied).
    fused = run(ENCODER, job("sequence-classification"), optimizer="adamw-fused")
    foreach = run(ENCODER, job("sequence-classification"), optimizer="adamw-foreach")
    weights = fused.phase_peaks_bytes["load"]
    assert fused.phase_peaks_bytes["optimizer"] > 3.9 * weights
    difference = foreach.phase_peaks_bytes["optimizer"] - fused.phase_peaks_bytes["optimizer"]
    assert 0.9 * weights < difference <= weights


def test_inference_repeats_to_the_byte_and_keeps_no_output() -> None:
    record = run(ENCODER, job("masked-lm", "inference"))
    assert record.outcome == "ok", record.message
    assert len(set(record.step_peaks_bytes)) == 1
    assert set(record.phase_peaks_bytes) == {"load", "forward"}


@pytest.mark.parametrize(
    ("config", "task", "strategy"),
    [
        (ENCODER, "token-classification", {"precision": "amp-bf16", "accumulation": 2}),
        (ENCODER, "embedding", {"precision": "bf16"}),
        (ENCODER, "masked-lm", {"precision": "amp-fp16"}),
        (ENCODER, "masked-lm", {"recompute": "block", "attention": "eager"}),
        (LLAMA, "causal-lm", {"precision": "fp16-master", "optimizer": "adamw-loop"}),
        (LLAMA, "sequence-classification", {"optimizer": "sgd-momentum"}),
        (BART, "sequence-classification", {"hold_output": False}),
        (BART, "seq2seq-lm", {"optimizer": "adafactor", "max_grad_norm": None}),
        (T5, "seq2seq-lm", {"optimizer": "sgd"}),
        (T5, "sequence-classification", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_task_and_policy_runs(
    config: dict[str, Any], task: str, strategy: dict[str, Any]
) -> None:
    record = run(config, job(task), **strategy)
    assert record.outcome == "ok", record.message
    assert not [note for note in record.notes if "skipped" in note]


@pytest.mark.parametrize("config", [BART, T5], ids=["bart", "t5"])
def test_one_pass_of_an_encoder_decoder(config: dict[str, Any]) -> None:
    record = run(config, job("seq2seq-lm", "inference", max_target_length=4), precision="fp16")
    assert record.outcome == "ok", record.message


def writing(task: str, **more: int) -> Workload:
    return job(task, "inference", **({"prompt_length": 16, "max_new_tokens": 12} | more))


@pytest.mark.parametrize(
    ("config", "task", "texts"),
    [(LLAMA, "causal-lm", 1), (LLAMA, "causal-lm", 2), (T5, "seq2seq-lm", 2)],
)
def test_generation_repeats_to_the_byte(config: dict[str, Any], task: str, texts: int) -> None:
    record = run(config, writing(task), micro_batch=texts)
    assert record.outcome == "ok", record.message
    assert len(set(record.step_peaks_bytes)) == 1


def test_more_tokens_take_more_cache() -> None:
    short = run(LLAMA, writing("causal-lm", prompt_length=4, max_new_tokens=24))
    long = run(LLAMA, writing("causal-lm", prompt_length=4, max_new_tokens=54))
    # 30 keys and values more for 2 texts in 2 layers of 2 heads of 8, fp32; beside them those of
    # one layer of the step before, and the copies for all heads that a padded step makes.
    cache = 2 * 30 * 2 * 2 * 2 * 8 * 4
    grown = long.step_peaks_bytes[0] - short.step_peaks_bytes[0]
    assert cache < grown < 3 * cache


@pytest.mark.slow
@pytest.mark.parametrize("texts", [1, 2])
def test_generation_is_as_predicted(texts: int) -> None:
    config, workload = LLAMA | {"num_hidden_layers": 5}, writing("causal-lm")
    record = run(config, workload, micro_batch=texts)
    predicted, reason = predict_record(a_source(config), record)
    assert predicted is not None, reason
    measured = max(record.step_peaks_bytes)
    assert abs(predicted.allocated_peak_bytes / measured - 1) <= CPU_TOLERANCE


def test_releasing_the_output_saves_the_logits() -> None:
    # Backward's height has the logits, [2, 16, 503] fp32 = 64,384 B, among what is held.
    held = run(ENCODER, job("masked-lm"))
    released = run(ENCODER, job("masked-lm"), hold_output=False)
    saved = held.phase_peaks_bytes["backward"] - released.phase_peaks_bytes["backward"]
    assert saved == 2 * 16 * 503 * 4


def test_running_out_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    monkeypatch.setattr("rigsize.run.execution.train_step", fail)
    record = run(ENCODER, job("masked-lm"))
    assert record.outcome == "out_of_memory"
    assert record.message == "CUDA out of memory. Tried to allocate 2.00 GiB"
    # What was loaded before is known.
    assert record.memory.allocated_peak_bytes == record.phase_peaks_bytes["load"]


def test_the_cpu_allocators_own_refusal_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("rigsize.run.execution.train_step", fail)
    assert run(ENCODER, job("masked-lm")).outcome == "out_of_memory"


def test_a_run_that_breaks_is_a_failed_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nat line 3")

    monkeypatch.setattr("rigsize.run.execution.train_step", fail)
    record = run(ENCODER, job("masked-lm"))
    assert (record.outcome, record.message) == ("failed", "no kernel")
    monkeypatch.setattr("rigsize.run.execution.load_config", fail)
    record = run(ENCODER, job("masked-lm"))
    assert record.memory.allocated_peak_bytes is None


@pytest.mark.parametrize(
    ("workload", "strategy", "words"),
    [
        (job("seq2seq-lm"), Strategy(), "has no head for it"),
        (Workload(model="t", task="masked-lm", max_length=65), Strategy(), "has positions for"),
        (job("masked-lm"), Strategy(precision="fp16"), "cannot be trained without a master copy"),
        (job("masked-lm", "inference", max_new_tokens=2), Strategy(), "write tokens"),
        (
            job("masked-lm", padding="unpadded"),
            Strategy(attention="eager"),
            "unpadded attention is SDPA or flash",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before(
    workload: Workload, strategy: Strategy, words: str
) -> None:
    with pytest.raises((SpecError, UnsupportedCombination), match=words):
        check_job(a_source(ENCODER), workload, strategy, "cpu")


def test_bad_numbers_and_devices_are_refused() -> None:
    with pytest.raises(SpecError, match="device"):
        check_job(a_source(ENCODER), job("masked-lm"), Strategy(), "gpu")
    with pytest.raises(SpecError, match="steps"):
        check_job(a_source(ENCODER), job("masked-lm"), Strategy(), "cpu", steps=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_cuda_is_said() -> None:
    with pytest.raises(MeasurementFailed, match="torch sees no CUDA device"):
        measure(a_source(ENCODER), job("masked-lm"), Strategy(), "cuda")


def test_a_model_beyond_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_host_bytes", lambda: 1000)
    with pytest.raises(MeasurementFailed, match="1000 B of host memory are free"):
        run(ENCODER, job("masked-lm"))


@pytest.mark.parametrize(
    ("config", "task"),
    [(ENCODER, "masked-lm"), (BART, "sequence-classification"), (LLAMA, "causal-lm")],
    ids=["xlm-roberta", "bart", "llama"],
)
def test_the_batch_is_valid(config: dict[str, Any], task: str) -> None:
    options = BuildOptions(task=task, compute="fp32")
    loaded = load_config(config, options)
    sizes = batch_sizes(job(task), 3)
    batch = random_batch(loaded, options, sizes, padded=True, seed=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    padding = ids == loaded.pad_token_id
    assert torch.equal(padding, mask == 0)
    assert padding.sum() == 1
    if loaded.eos_token_id is not None:
        assert (ids == loaded.eos_token_id).sum(dim=1).tolist() == [1, 1, 1]
    assert 0 <= int(ids.min()) <= int(ids.max()) < loaded.vocab_size
    again = random_batch(loaded, options, sizes, padded=True, seed=0)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_without_padding_no_mask_is_handed_over() -> None:
    options = BuildOptions(task="masked-lm", compute="fp32")
    config = load_config(ENCODER, options)
    batch = random_batch(config, options, {"B": 2, "S": 8}, padded=False, seed=0)
    assert set(batch) == {"input_ids", "labels"}


def test_the_cpu_meter_counts_by_hand() -> None:
    # Kept 4,000 B. Forward makes 8,000 B and 12,000 B, frees the first, then makes 2,000 B:
    # peak 4,000 + 20,000; left 4,000 + 14,000.
    kept = torch.zeros(1000)
    meter = CpuMeter([kept, kept.view(10, 100)])
    meter.begin_step()
    meter.mark("forward")
    first, second = torch.empty(2000), torch.empty(3000)
    del first
    third = torch.empty(500)
    meter.mark("backward")
    del second
    meter.end_step()
    assert meter.phase_peaks == {"load": 4000, "forward": 24_000, "backward": 18_000}
    assert meter.step_peaks == [24_000]
    meter.begin_step()
    assert meter.step_peaks[-1] == 4000 + third.untyped_storage().nbytes()
    meter.abandon()


def test_shared_storages_count_once() -> None:
    table = torch.zeros(10, 4)
    assert sum(storages([table, table[3:], table.T, torch.empty(0)]).values()) == 160


def test_out_of_memory_in_other_words() -> None:
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(ValueError("out of memory"))
