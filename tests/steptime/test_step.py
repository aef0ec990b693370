"""The laws that every step keeps, and small cases by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.steptime.works import encoder_work

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.spec import Cluster, Strategy
from rigsize.steptime import StepTime, collective, memory_bound, step_time
from rigsize.steptime import step as step_module
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.constants import PCIE_SHARE
from rigsize.steptime.links import Links
from rigsize.steptime.prices import Pricer
from rigsize.steptime.schedule import ADDING, schedule
from rigsize.steptime.step import SLOWED
from rigsize.steptime.streams import COPIES, HOST, HOST_STEP, HOST_SUM, LINKS, Clock, Stage, run

A100 = find_accelerator("A100-80GB-SXM")
ONE = Cluster(accelerator=A100)
PLAIN = Strategy(precision="bf16", micro_batch=16, max_grad_norm=None, optimizer="adamw-fused")


def seconds_of(answer: StepTime, name: str) -> float:
    return sum(part.seconds for part in answer.parts if part.name == name)


def busy_of(answer: StepTime) -> float:
    waits = (HOST, HOST_STEP, HOST_SUM, LINKS, COPIES)
    return sum(part.seconds for part in answer.parts if part.name not in waits)


parallels = st.sampled_from(("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"))


@settings(max_examples=25, deadline=None)
@given(
    parallel=parallels,
    accumulation=st.integers(1, 5),
    per_node=st.sampled_from((1, 2, 8)),
    nodes=st.sampled_from((1, 2)),
    precision=st.sampled_from(("bf16", "fp32", "tf32")),
)
def test_parts_sum_and_quantiles_are_in_order(
    parallel: str, accumulation: int, per_node: int, nodes: int, precision: str
) -> None:
    strategy = Strategy(precision=precision, parallel=parallel, accumulation=accumulation)
    cluster = Cluster(accelerator=A100, per_node=per_node, nodes=nodes)
    dtype = "bfloat16" if precision == "bf16" else "float32"
    answer = step_time(encoder_work(layers=2, dtype=dtype), strategy, cluster, draws=40)
    assert sum(part.seconds for part in answer.parts) == pytest.approx(answer.step_s.p50)
    assert answer.step_s.p10 <= answer.step_s.p50 <= answer.step_s.p90
    assert answer.micro_s * accumulation + answer.update_s == pytest.approx(answer.step_s.p50)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 40), more=st.integers(1, 40))
def test_more_tokens_are_never_faster(batch: int, more: int) -> None:
    few, many = (
        step_time(
            encoder_work(layers=2, batch=b, dtype="float32"),
            replace(PLAIN, precision="fp32"),
            ONE,
            draws=0,
        )
        for b in (batch, batch + more)
    )
    # The tile model is exact about waves, the table of 16-bit products is measured: only the former
    # is monotone, and it is so up to the choice of a tile.
    assert many.step_s.p50 >= few.step_s.p50 * 0.98


@settings(max_examples=20, deadline=None)
@given(parallel=parallels, ranks=st.sampled_from((2, 4, 8)))
def test_more_ranks_never_raise_what_a_rank_computes(parallel: str, ranks: int) -> None:
    work = encoder_work(layers=2)
    strategy = replace(PLAIN, parallel=parallel)
    one, many = (
        step_time(work, strategy, Cluster(accelerator=A100, per_node=n), draws=0)
        for n in (1, ranks)
    )
    beside = sum(p.seconds for p in many.parts if p.name.startswith("compute slowed"))
    assert busy_of(many) - beside <= busy_of(one) * (1 + 1e-9)


def test_ddp_by_hand() -> None:
    # No layer trains but the head: one tensor, one bucket, reduced behind the backward pass. The
    # step is that of one device and the all-reduce, exposed whole.
    work = encoder_work(layers=2)
    head = work.trainable[0]
    work = replace(work, trainable=(head, 0, 0), tensors=1)
    alone = step_time(work, PLAIN, ONE, draws=0)
    eight = Cluster(accelerator=A100, per_node=8)
    together = step_time(work, replace(PLAIN, parallel="ddp"), eight, draws=0)
    reduced = collective(A100, "all_reduce", head * 2, 8).seconds
    assert seconds_of(together, LINKS) == pytest.approx(reduced, rel=1e-6)
    assert together.step_s.p50 == pytest.approx(alone.step_s.p50 + reduced, rel=0.01)


def test_ddp_reduces_once_a_step() -> None:
    work, eight = encoder_work(layers=2), Cluster(accelerator=A100, per_node=8)
    one, four = (
        step_time(work, replace(PLAIN, parallel="ddp", accumulation=n), eight, draws=0)
        for n in (1, 4)
    )
    assert seconds_of(four, LINKS) == pytest.approx(seconds_of(one, LINKS), rel=0.2)


def test_accumulation_by_hand() -> None:
    # Later micro-steps add in place: two reads and a write of bf16, 6 bytes a parameter, in three
    # of four micro-steps, tensor by tensor.
    work = encoder_work(layers=2)
    answer = step_time(work, replace(PLAIN, accumulation=4), ONE, draws=0)
    launches = round(work.tensors / 3)
    by_hand = sum(
        launches * memory_bound(A100, round(6 * numel / launches), "optimizer").seconds
        for numel in work.trainable
    )
    assert seconds_of(answer, ADDING) == pytest.approx(3 * by_hand, rel=1e-6)


def play_all(clock: Clock, stages: list[Stage], times: int) -> None:
    for _ in range(times):
        run(clock, stages)


@settings(max_examples=40, deadline=None)
@given(
    accumulation=st.integers(3, 12),
    parallel=st.sampled_from(("single", "ddp", "fsdp", "zero2", "zero3")),
    batch=st.integers(1, 16),
    hidden=st.sampled_from((64, 256, 512, 768)),
    offloads=st.booleans(),
)
def test_micro_steps_alike_take_what_playing_each_takes(
    accumulation: int, parallel: str, batch: int, hidden: int, offloads: bool
) -> None:
    # Small batches wait for the host in some layers alone: its lead grows or shrinks over them.
    strategy = replace(PLAIN, parallel=parallel, accumulation=accumulation)
    if offloads and parallel in ("fsdp", "zero3"):
        strategy = replace(strategy, offload="cpu")
    work = encoder_work(layers=3, hidden=hidden, batch=batch, vocabulary=20_000)
    cluster = Cluster(accelerator=A100, per_node=1 if parallel == "single" else 4)
    found = step_time(work, strategy, cluster, draws=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step_module, "_repeat", play_all)
        played = step_time(work, strategy, cluster, draws=0)
    assert found.step_s.p50 == pytest.approx(played.step_s.p50, rel=1e-6)
    for part in played.parts:
        assert seconds_of(found, part.name) == pytest.approx(part.seconds, rel=1e-6, abs=1e-12)


def test_fsdp_gathers_the_root_first_and_reduces_it_last() -> None:
    # With layers too small to matter, what is exposed is the root's gather and reduction.
    work, eight = (
        encoder_work(layers=1, hidden=64, vocabulary=2**21),
        Cluster(accelerator=A100, per_node=8),
    )
    answer = step_time(work, replace(PLAIN, parallel="fsdp"), eight, draws=0)
    root = work.weight_bytes[0]
    by_hand = sum(collective(A100, op, root, 8).seconds for op in ("all_gather", "reduce_scatter"))
    assert seconds_of(answer, LINKS) == pytest.approx(by_hand, rel=0.05)


def test_offload_moves_shards_over_pcie_and_steps_on_the_host() -> None:
    work = encoder_work(layers=4, hidden=1024, batch=1)
    strategy = replace(PLAIN, parallel="fsdp", offload="cpu")
    answer = step_time(work, strategy, ONE, draws=0)
    rate = (A100.pcie_bytes_per_s or 0) * PCIE_SHARE.value.mid
    # In: each layer twice (forward and backward), the root once. Out, beside it: the gradients.
    layers = sum(work.weight_bytes[1:])
    moved_s = (2 * layers + work.weight_bytes[0]) / rate
    least = moved_s + sum(work.trainable) * 0.24e-9
    assert seconds_of(answer, HOST_STEP) == pytest.approx(sum(work.trainable) * 0.24e-9)
    assert least <= answer.step_s.p50 <= least + busy_of(answer) + sum(work.weight_bytes) / rate
    two = step_time(work, strategy, Cluster(accelerator=A100, per_node=2), draws=0)
    # The shard halves and the host is shared: its step takes as long.
    assert seconds_of(two, HOST_STEP) == pytest.approx(seconds_of(answer, HOST_STEP))


def test_host_bound_and_said_so() -> None:
    small = encoder_work(layers=12, hidden=64, batch=1, length=8, vocabulary=64)
    answer = step_time(small, PLAIN, ONE)
    assert answer.bound_by == "host launches"
    assert answer.widest == "the host's speed"
    compiled = step_time(small, replace(PLAIN, compile=True), ONE)
    assert compiled.step_s.p50 < answer.step_s.p50


def test_a_calibration_speaks_for_its_device_alone() -> None:
    work = encoder_work(layers=2)
    twice = Calibration(accelerator=A100.id, gemm={"bf16": 2.0})
    plain, slow = (step_time(work, PLAIN, ONE, calibration=c, draws=200) for c in (None, twice))
    name = "matrix products"
    assert seconds_of(slow, name) == pytest.approx(2 * seconds_of(plain, name))
    other = Calibration(accelerator="H100-80GB-SXM")
    with pytest.raises(UnsupportedCombination, match="calibration"):
        step_time(work, PLAIN, ONE, calibration=other)


@pytest.mark.parametrize(
    ("strategy", "gpu", "why"),
    [
        (PLAIN, "cpu", "no time model"),
        (replace(PLAIN, optimizer="muon"), "A100-80GB-SXM", "no matrix inside the layers"),
        (
            replace(PLAIN, optimizer="muon", offload="optimizer"),
            "A100-80GB-SXM",
            "products on the host",
        ),
        (replace(PLAIN, offload="activations"), "A100-80GB-SXM", "saved bytes"),
    ],
)
def test_what_has_no_model_gets_no_number(strategy: Strategy, gpu: str, why: str) -> None:
    with pytest.raises(UnsupportedCombination, match=why):
        step_time(encoder_work(layers=1), strategy, Cluster(accelerator=find_accelerator(gpu)))


def test_the_network_is_the_clusters() -> None:
    # Two nodes of one card all-reduce 2 * 1/2 of the gradients: 100 Gbit/s are 12.5 GB/s.
    strategy = replace(PLAIN, parallel="ddp")
    work = encoder_work(layers=2)
    known = Cluster(accelerator=A100, nodes=2, network_bytes_per_s=12.5e9)
    unknown = Cluster(accelerator=A100, nodes=2)
    answers = [step_time(work, strategy, cluster, draws=0) for cluster in (known, unknown)]
    assert answers[0].step_s == answers[1].step_s
    said = ["100 Gbit/s between nodes" in answer.assumptions for answer in answers]
    assert said == [False, True]
    sent = Links.of(work, strategy, replace(known, network_bytes_per_s=1e9), None)
    # 1 GB at 1 GB/s, and two exchanges of 15 us.
    assert sent.between_copies(10**9) == pytest.approx(1 + 30e-6)
    with pytest.raises(SpecError, match="network"):
        replace(known, network_bytes_per_s=0.0)


def test_collectives_over_a_network_slow_less() -> None:
    # 15 % of what they hide where NVLink carries them, 2 % over a network.
    work = encoder_work(layers=4, hidden=1024, batch=32)
    strategy = replace(PLAIN, parallel="fsdp")
    for nodes, share in ((1, 0.15), (2, 0.02)):
        cluster = Cluster(accelerator=A100, per_node=8, nodes=nodes, network_bytes_per_s=400e9)
        answer = step_time(work, strategy, cluster, draws=0)
        plan = schedule(
            work,
            strategy,
            Pricer(A100, strategy, None),
            Links.of(work, strategy, cluster, None),
            None,
        )
        sent = sum(row.gather_s + sum(s for _, s in row.reductions) for row in plan.last)
        hidden = sent - seconds_of(answer, LINKS)
        assert 0 < hidden < busy_of(answer)
        assert seconds_of(answer, SLOWED) == pytest.approx(share * hidden, rel=0.02)


def test_a_penalty_without_a_rate_of_its_dtype_is_still_assumed() -> None:
    # A head over 250,002 words: rows that no calibrated product stands for.
    work = encoder_work(layers=2, vocabulary=250_002)
    line = "products with misaligned rows at twice their time, between 1 and 3 times"
    half = Calibration(accelerator=A100.id, misaligned=2.5)
    both = replace(half, gemm={"bf16": 1.0})
    plain, without, measured = (
        step_time(work, PLAIN, ONE, calibration=c, draws=200) for c in (None, half, both)
    )
    assert line in plain.assumptions
    assert line in without.assumptions
    assert without.step_s == pytest.approx(plain.step_s)
    assert line not in measured.assumptions


def test_deterministic_and_inference_has_no_update() -> None:
    work = encoder_work(layers=2, training=False)
    one, two = (step_time(work, PLAIN, ONE, draws=100) for _ in range(2))
    assert one == two
    assert one.update_s == 0
    assert one.mfu is not None
    assert 0 < one.mfu < 1
