"""Hours by hand: an invented step of ten seconds, counted over invented texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.hardware import find_accelerator
from rigsize.program.mesh import mesh_of
from rigsize.program.work import Kernel, Work, WorkSegment
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime import run_lines
from rigsize.steptime.run_lines import Around, RunTime, run_time_of, steps_of
from rigsize.steptime.step import Quantiles, StepTime

CARD = find_accelerator("A100-40GB-SXM")
ONE = Cluster(accelerator=CARD)
TUNING = Workload(
    model="tiny", task="sequence-classification", max_length=128, examples=1_000, epochs=3
)
STRATEGY = Strategy(micro_batch=16, accumulation=4)
ALONE = Around(checkpoint_every_s=None, downloads=False, prepared=True)


def work_of(batch: int = 16, length: int = 128) -> Work:
    """A model of 10 million parameters in one layer, fp32."""
    kernel = Kernel("gemm", "float32", (1, batch * length, 1_000, 10_000), "nn")
    return Work(
        segments=(
            WorkSegment("forward", 1, (kernel,), 10),
            WorkSegment("backward", 1, (kernel, kernel), 20),
        ),
        parameters=(0, 10_000_000),
        trainable=(0, 10_000_000),
        tensors=1,
        weight_bytes=(0, 40_000_000),
        training=True,
        point={"B": batch, "S": length, "T": 0},
    )


def step_of(micro_s: float = 2.0, update_s: float = 2.0, accumulation: int = 4) -> StepTime:
    """A step of `accumulation` micro-steps and an update, a fifth faster or a half slower."""
    seconds = accumulation * micro_s + update_s
    return StepTime(
        step_s=Quantiles(0.8 * seconds, seconds, 1.5 * seconds),
        micro_s=micro_s,
        update_s=update_s,
        parts=(),
        bound_by="compute",
        widest="the GPU",
        flops=work_of().flops,
        mfu=0.5,
        assumptions=("invented",),
    )


def run_of(workload: Workload = TUNING, cluster: Cluster = ONE, around: Around = ALONE) -> RunTime:
    return run_time_of(work_of(), step_of(), workload, STRATEGY, cluster, around=around)


def test_counts_by_hand() -> None:
    # 1,000 texts in steps of 64: 15 whole ones and a last of 40, which takes 3 micro-steps of 16.
    steps = steps_of(TUNING, STRATEGY, mesh_of(STRATEGY, ONE))
    assert steps is not None
    assert (steps.global_batch, steps.updates, steps.last_batch) == (64, 16, 40)
    assert steps.micro_steps == 15 * 4 + 3


def test_counts_over_ranks() -> None:
    # 4 ranks: 256 texts a step; 3 whole ones and a last of 232, 58 a rank in 4 micro-steps.
    ddp = replace(STRATEGY, parallel="ddp")
    steps = steps_of(TUNING, ddp, mesh_of(ddp, Cluster(accelerator=CARD, per_node=4)))
    assert steps is not None
    assert (steps.updates, steps.last_batch, steps.micro_steps) == (4, 232, 16)


def test_inference_has_no_steps_to_accumulate_and_one_epoch() -> None:
    steps = steps_of(replace(TUNING, use="inference"), STRATEGY, mesh_of(STRATEGY, ONE))
    assert steps is not None
    assert (steps.epochs, steps.micro_steps, steps.global_batch) == (1, 63, 16)


def test_training_by_hand() -> None:
    # An epoch: 63 micro-steps of 2 s and 16 updates of 2 s are 158 s; three of them 474 s.
    training = run_of().lines[0]
    assert training.name == "training"
    assert training.seconds == pytest.approx((0.8 * 474, 474, 1.5 * 474))
    epoch = run_of().epoch_hours
    assert epoch is not None
    assert epoch.p50 == pytest.approx(158 / 3600)
    assert "the last of 40 texts" in training.note


def test_tokens_are_computed_ones() -> None:
    assert run_of().tokens == 3 * 63 * 16 * 128


def test_every_line_is_there_and_they_add_up() -> None:
    around = Around(evaluated=0, checkpoint_every_s=100, downloads=True)
    found = run_of(around=around)
    names = [line.name for line in found.lines]
    assert names == ["training", "warm-up", "checkpoints", "start-up", "download", "data"]
    for bound in range(3):
        assert found.total_s[bound] == pytest.approx(sum(x.seconds[bound] for x in found.lines))
    assert found.hours.p50 * 3600 == pytest.approx(found.total_s.p50)


def test_checkpoints_by_hand() -> None:
    # 4 + 8 bytes of 10 million parameters are 0.12 GB, 0.15 s at 0.8 GB/s; in 474 s 4 and the last.
    (line,) = [x for x in run_of(around=Around(checkpoint_every_s=100)).lines if "check" in x.name]
    assert line.seconds.p50 == pytest.approx(5 * 0.12 / 0.8, rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "precision", "states"),
    [("adamw-fused", "fp32", 8), ("adamw-fused", "bf16", 4), ("sgd", "fp32", 0)],
)
def test_checkpoints_keep_the_optimizers_states(
    optimizer: str, precision: str, states: int
) -> None:
    strategy = replace(STRATEGY, optimizer=optimizer, precision=precision)
    around = Around(checkpoint_every_s=1e9)
    found = run_time_of(work_of(), step_of(), TUNING, strategy, ONE, around=around)
    (line,) = [x for x in found.lines if x.name == "checkpoints"]
    # The invented layer stores 4 bytes a weight whatever the precision is.
    assert line.seconds.p50 == pytest.approx((4 + states) * 10e6 / 0.8e9, rel=1e-3)


@pytest.mark.parametrize(("adapter_dtype", "each"), [("fp32", 4 + 8), ("same", 2 + 4)])
def test_checkpoints_of_adapters_hold_no_base(adapter_dtype: str, each: int) -> None:
    # 100,000 of 10 million parameters train: only they and their two states are written.
    work = replace(work_of(), trainable=(0, 100_000))
    strategy = replace(STRATEGY, method="lora", precision="bf16", adapter_dtype=adapter_dtype)
    around = Around(checkpoint_every_s=1e9)
    found = run_time_of(work, step_of(), TUNING, strategy, ONE, around=around)
    (line,) = [x for x in found.lines if x.name == "checkpoints"]
    assert line.seconds.p50 == pytest.approx(each * 100_000 / 0.8e9)


def test_what_is_downloaded_is_the_published_file_not_what_the_run_keeps() -> None:
    # 16 GB published and 4 bits a weight on the card: the file is downloaded and read.
    work = replace(
        work_of(), published_bytes=16_000_000_000, published_note="published in bfloat16"
    )
    around = Around(checkpoint_every_s=None, downloads=True)
    found = run_time_of(work, step_of(), TUNING, STRATEGY, ONE, around=around)
    lines = {line.name: line for line in found.lines}
    assert "16.0 GB" in lines["start-up"].note
    assert "16.0 GB to each machine, once; published in bfloat16" in lines["download"].note
    plain = {line.name: line for line in run_of(around=around).lines}
    ratio = lines["download"].seconds.p50 / plain["download"].seconds.p50
    assert ratio == pytest.approx(16e9 / 40e6)  # 40 MB are kept where nothing is published


def test_checkpoints_of_autocast_keep_fp32_weights_however_the_trace_casts_them() -> None:
    # FSDP2 gathers in bf16: the trace has 2 bytes a weight, the shards 4, and AdamW 8 more.
    work = replace(work_of(), weight_bytes=(0, 20_000_000))
    strategy = replace(STRATEGY, parallel="fsdp", precision="amp-bf16")
    around = Around(checkpoint_every_s=1e9)
    two = Cluster(accelerator=CARD, per_node=2)
    found = run_time_of(work, step_of(), TUNING, strategy, two, around=around)
    (line,) = [x for x in found.lines if x.name == "checkpoints"]
    assert line.seconds.p50 == pytest.approx((4 + 8) * 10e6 / 0.8e9, rel=1e-3)


def test_evaluation_runs_the_forward_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Work] = []

    def pass_of(work: Work, *_: object, **__: object) -> StepTime:
        seen.append(work)
        return replace(step_of(), step_s=Quantiles(0.5, 1.0, 2.0))

    monkeypatch.setattr(run_lines, "step_time", pass_of)
    found = run_of(around=replace(ALONE, evaluated=100))
    (line,) = [x for x in found.lines if x.name == "evaluation"]
    assert line.seconds == (3 * 7 * 0.5, 3 * 7 * 1.0, 3 * 7 * 2.0)  # 7 batches, after 3 epochs
    (work,) = seen
    assert [segment.phase for segment in work.segments] == ["forward"]
    assert not work.training


def test_a_step_faster_than_its_batches_is_bound_by_the_loader() -> None:
    # 2,048 positions at 10 million a second are 0.2 ms: a micro-step of 0.1 ms has to wait.
    fast = run_time_of(work_of(), step_of(1e-4, 0.0), TUNING, STRATEGY, ONE, around=ALONE)
    assert fast.bound_by == "the data loader"
    assert fast.lines[0].seconds.p50 == pytest.approx(3 * 63 * 2048 / 10e6)
    assert run_of().bound_by == "compute"


def test_compiling_is_in_the_first_step() -> None:
    compiled = replace(STRATEGY, compile=True)
    found = run_time_of(work_of(), step_of(), TUNING, compiled, ONE, around=ALONE)
    assert found.lines[1].seconds.p50 == run_of().lines[1].seconds.p50 + 60


def test_energy_by_hand() -> None:
    found = run_of()
    assert CARD.tdp_w == 400
    assert found.energy_kwh is not None
    assert found.energy_kwh.p50 == pytest.approx(0.4 * 0.75 * found.hours.p50)
    assert run_of(cluster=Cluster(accelerator=find_accelerator("cpu"))).energy_kwh is None


def test_without_a_number_of_texts_only_the_step_is_known() -> None:
    found = run_of(replace(TUNING, examples=None))
    assert (found.steps, found.lines, found.epoch_hours) == (None, (), None)
    assert found.step == step_of()


@given(
    examples=st.integers(1, 10**7),
    epochs=st.integers(1, 20),
    micro=st.integers(1, 512),
    accumulation=st.integers(1, 512),
    ranks=st.integers(1, 64),
)
def test_laws_of_counting(
    examples: int, epochs: int, micro: int, accumulation: int, ranks: int
) -> None:
    strategy = Strategy(micro_batch=micro, accumulation=accumulation, parallel="ddp")
    cluster = Cluster(accelerator=CARD, per_node=ranks)
    workload = replace(TUNING, examples=examples, epochs=epochs)
    steps = steps_of(workload, strategy, mesh_of(strategy, cluster))
    assert steps is not None
    together = micro * ranks
    assert (steps.updates - 1) * steps.global_batch + steps.last_batch == examples
    assert steps.micro_steps * together >= examples > (steps.micro_steps - 1) * together
    assert steps.updates <= steps.micro_steps <= steps.updates * accumulation
    step = step_of(accumulation=accumulation)
    found = run_time_of(work_of(), step, workload, strategy, cluster, around=ALONE)
    assert found.total_s.p10 <= found.total_s.p50 <= found.total_s.p90
    # No more than whole steps would take, and no less than the texts' share of them.
    whole = steps.updates * epochs * step.step_s.p50
    assert found.lines[0].seconds.p50 <= whole * (1 + 1e-9)
