"""Estimates of a hand-made profile on hand-made cards, and one stored profile's real figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigsize.errors import SizingError, SpecError, UnsupportedCombination
from rigsize.estimate import (
    Estimate,
    Fit,
    build,
    check_workload,
    estimate,
    fits_on,
    with_batch,
)
from rigsize.hardware import Accelerator, find_accelerator
from rigsize.hardware.accelerators import Band
from rigsize.keys import trace_key
from rigsize.ledgers import ledger
from rigsize.memory.outside import LINKED
from rigsize.models import resolve_model
from rigsize.program.timeline import Place
from rigsize.provenance import Sourced
from rigsize.spec import Cluster, Strategy, Workload
from tests.program import tiny_profile as tiny
from tests.stored import stored_estimate

MIB = 1 << 20
CONTEXT = Band(1 * MIB, 2 * MIB, 4 * MIB)
RESERVED = 22 * MIB
"""Of the tiny profile with fused AdamW on an A100 (tests/memory/test_replay.py)."""
SOURCE = resolve_model("xlm-roberta-base")


def workload(**more: Any) -> Workload:
    given = {"task": "sequence-classification", "max_length": 8, **more}
    return Workload(model="xlm-roberta-base", **given)


def card(capacity_bytes: int | None) -> Accelerator:
    """An A100 with another capacity and a context of 1, 2 or 4 MiB."""

    def sourced(value: Any) -> Sourced[Any]:
        return Sourced(value=value, source="by hand", as_of="2026-11-23", basis="assumed")

    capacity = None if capacity_bytes is None else sourced(capacity_bytes)
    own = find_accelerator("A100-40GB")
    return replace(own, capacity=capacity, context_bytes=sourced(CONTEXT))


def tiny_estimate(
    accelerator: Accelerator | None = None, use: str = "fine-tuning", **strategy: Any
) -> Estimate:
    chosen = Strategy(**{"micro_batch": 2, "optimizer": "adamw-fused", **strategy})
    cluster = Cluster(accelerator=accelerator or card(1 << 30))
    kind = "inference" if use == "inference" else "training"
    profile = tiny.profile(use=kind)
    return estimate(SOURCE, workload(use=use), chosen, cluster, profile=profile)


@pytest.mark.parametrize(
    ("half_mib", "verdict", "fits", "headroom_mib"),
    [
        (52, "fits", True, 2.0),  # 22 reserved and 4 of context: room to the last byte
        (51, "tight", True, 1.5),  # at 4 MiB of context 21.5 are left
        (48, "tight", True, 0.0),
        (47, "tight", True, -0.5),  # only the low end of the context leaves 22
        (46, "tight", True, -1.0),
        (45, "does_not_fit", False, -1.5),
    ],
)
def test_verdicts_over_the_band(
    half_mib: int, verdict: str, fits: bool, headroom_mib: float
) -> None:
    answer = tiny_estimate(card(half_mib * MIB // 2))
    assert (answer.fit.verdict, answer.fit.fits) == (verdict, fits)
    assert answer.fit.headroom_bytes == int(headroom_mib * MIB)
    # What does not fit is still told whole: the replay without a limit.
    assert answer.memory.reserved_peak_bytes == RESERVED
    assert answer.replay.out_of_memory is None


def test_ranks_add_communicators_and_share_states() -> None:
    alone, four = (
        estimate(
            SOURCE,
            workload(),
            Strategy(micro_batch=2, optimizer="adamw-fused", parallel=parallel),
            Cluster(accelerator=card(1 << 36), per_node=ranks),
            profile=tiny.profile(),
        )
        for parallel, ranks in (("single", 1), ("fsdp", 4))
    )
    rows = {row.name: row for row in four.memory.ledger}
    assert (rows["communication"].num_bytes, rows["communication"].basis) == (
        LINKED.value.mid,
        "assumed",
    )
    assert "communication" not in {row.name for row in alone.memory.ledger}
    assert four.memory.reserved_peak_bytes is not None
    assert four.memory.device_peak_bytes == sum(row.num_bytes for row in rows.values())
    assert four.memory.low_bytes == (
        four.memory.reserved_peak_bytes + CONTEXT.low + LINKED.value.low
    )
    assert four.memory.high_bytes == (
        four.memory.reserved_peak_bytes + CONTEXT.high + LINKED.value.high
    )
    # Whole counts stay whole; the optimizer steps on a quarter, uneven rows rounded up.
    assert four.parameters == alone.parameters
    shards = 250 * 64 + 3 * (16 * 64 + 16) + 64
    assert sum(p.numel for p in four.program.stepped) == shards
    assert any("NCCL 0.70 GiB" in line for line in four.assumptions)


def test_fsdp_computes_as_half_does_under_amp() -> None:
    for parallel, compute in (("single", "amp"), ("ddp", "amp"), ("fsdp", "half")):
        strategy = Strategy(precision="amp-bf16", parallel=parallel)
        assert trace_key(SOURCE, workload(), strategy, device="cuda").compute == compute


def test_a_card_of_unknown_capacity() -> None:
    answer = tiny_estimate(card(None))
    assert answer.fit == Fit(verdict="unknown", capacity_bytes=None, headroom_bytes=None)
    assert not answer.fit.fits
    assert answer.memory.device_peak_bytes == RESERVED + 2 * MIB


def test_memory_and_its_band() -> None:
    memory = tiny_estimate().memory
    assert memory.device_peak_bytes == RESERVED + CONTEXT.mid
    assert (memory.low_bytes, memory.high_bytes) == (RESERVED + MIB, RESERVED + 4 * MIB)
    assert sum(row.num_bytes for row in memory.ledger) == memory.device_peak_bytes
    assert memory.peak_moment == "backward of step 2, at embedding_dense_backward in embeddings"


def test_the_ledger_at_the_peak() -> None:
    # The second step's backward (program/test_build.py): all gradients are there, and what the
    # embedding saved; fused AdamW's counters are on the device.
    rows = {row.name: (row.num_bytes, row.basis) for row in tiny_estimate().memory.ledger}
    requested = tiny.LOADED + 3 * tiny.WEIGHTS + 8 * 4 + 2 * 8_519_680 + 2 * 4096 + 16
    assert rows == {
        "workspaces": (2 * 8_519_680, "derived"),
        "optimizer_states": (2 * tiny.WEIGHTS + 8 * 4, "derived"),
        "gradients": (tiny.WEIGHTS, "traced"),
        "weights.embeddings": (256_000, "traced"),
        "weights.blocks": (49_920, "traced"),
        "activations.embeddings_and_head": (4096 + 16, "traced"),
        "temporaries": (4096, "traced"),
        "buffers": (1024, "traced"),
        "weights.lm_head": (512, "traced"),
        "inputs": (128, "traced"),
        "allocator": (RESERVED - requested, "derived"),
        "context": (CONTEXT.mid, "assumed"),
    }


def test_a_row_is_as_weak_as_its_weakest_storage() -> None:
    answer = tiny_estimate()
    places = answer.program.timeline.places
    for position, basis in ((0, "assumed"), (1, "derived"), (2, "traced")):
        places[answer.replay.live[position]] = Place("one", "load", basis=basis)
    rows = {row.name: row.basis for row in ledger(answer.program, answer.replay)}
    assert rows["one"] == "assumed"


def test_other_moments() -> None:
    foreach = tiny_estimate(optimizer="adamw-foreach").memory.peak_moment
    assert foreach == "optimizer step of step 1, at adamw-foreach._foreach_sqrt"
    more = tiny_estimate(accumulation=2).memory.peak_moment
    assert more.startswith("backward of step 2, a later micro-step, at embedding_dense_backward")
    # The tiny second layer makes its product beside what the first one left.
    assert tiny_estimate(use="inference").memory.peak_moment.startswith("forward of step 1")


def test_on_the_cpu_live_bytes_are_the_answer() -> None:
    answer = tiny_estimate(find_accelerator("cpu"))
    memory = answer.memory
    assert memory.allocated_peak_bytes == 622_224 + 2 * tiny.WEIGHTS + 8 * 4
    assert (memory.reserved_peak_bytes, memory.device_peak_bytes) == (None, None)
    assert (memory.low_bytes, memory.high_bytes) == (memory.allocated_peak_bytes,) * 2
    assert sum(row.num_bytes for row in memory.ledger) == memory.allocated_peak_bytes
    assert answer.fit.verdict == "unknown"
    assert answer.assumptions == answer.host.assumptions


def test_parameters_are_counted_thrice() -> None:
    parameters = tiny_estimate().parameters
    assert (parameters.model, parameters.trainable, parameters.head) == (76_608, 76_608, 128)
    assert parameters.checkpoint == SOURCE.checkpoint_parameters


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("K80", "no wheel of torch 2.13 has kernels for sm_37"),
        ("P100", "default wheels have no kernels for sm_60"),
        ("V100-32GB-SXM2", "default wheels have no kernels for sm_70"),
        ("T4", None),
        ("cpu", None),
    ],
)
def test_old_cards_need_another_build_of_torch(name: str, said: str | None) -> None:
    lines = [line for line in tiny_estimate(find_accelerator(name)).assumptions if "wheel" in line]
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


@pytest.mark.parametrize("parallel", ["fsdp", "hsdp", "zero1", "zero2", "zero3"])
def test_more_shards_than_elements_are_refused(parallel: str) -> None:
    # The largest tensor has 1,000 x 64 elements. Stages 1 and 2 cut one flat vector of them all.
    elements = tiny.PARAMETERS if parallel in ("zero1", "zero2") else 1000 * 64

    def on(ranks: int) -> Estimate:
        shard = ranks if parallel == "hsdp" else None
        strategy = Strategy(optimizer="adamw-fused", parallel=parallel, shard_size=shard)
        cluster = Cluster(accelerator=card(1 << 40), per_node=16, nodes=ranks // 16)
        return estimate(SOURCE, workload(), strategy, cluster, profile=tiny.profile())

    with pytest.raises(UnsupportedCombination, match=f"has {elements:,} elements, fewer than"):
        on(elements + 16)
    if parallel in ("fsdp", "zero3"):  # a single element of it each
        assert on(elements).memory.allocated_peak_bytes > 0


@pytest.mark.parametrize(
    ("logits_mib", "verdict"), [(1, "fits"), (20, "fits"), (60, "tight"), (4000, "tight")]
)
def test_evaluation_that_has_no_room_beside_the_steps_is_said(
    logits_mib: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 64 MiB less 4 of context at most; the steps reserve 22 of them and hold less than one between.
    logits = "rigsize.program.beside_steps.logits_bytes"
    monkeypatch.setattr(logits, lambda _: logits_mib * MIB)
    answer = tiny_estimate(card(64 * MIB))
    assert answer.fit.verdict == verdict
    said = [note for note in answer.notes if "evaluation beside them may not" in note]
    assert len(said) == (verdict == "tight")
    assert answer.memory.reserved_peak_bytes == RESERVED  # of the steps, as before


def test_assumptions_name_context_versions_and_capacity() -> None:
    context, versions, capacity, host = tiny_estimate().assumptions
    assert context == "CUDA context 0.00 GiB (0.00 to 0.00), assumed: by hand"
    assert versions == "torch 2.13, cuDNN 9.20.0: kernel choice and workspaces"
    assert capacity == "capacity assumed: by hand"
    assert host.startswith("host: interpreters and libraries 2.50 GiB (1.00 GiB to 4.00 GiB)")


@pytest.mark.parametrize(
    ("gpu", "strategy", "note"),
    [
        ("T4", {"precision": "tf32"}, "tf32 has no effect on T4"),
        ("A100-40GB", {"precision": "amp-bf16", "attention": "flash"}, "flash with padding"),
    ],
)
def test_notes(gpu: str, strategy: dict[str, Any], note: str) -> None:
    assert any(
        text.startswith(note) for text in tiny_estimate(find_accelerator(gpu), **strategy).notes
    )


@pytest.mark.parametrize(
    ("precision", "instead"), [("bf16", "fp16-master"), ("amp-bf16", "amp-fp16")]
)
def test_a_card_without_bf16_refuses_it(precision: str, instead: str) -> None:
    with pytest.raises(UnsupportedCombination, match=f"T4 has no bf16.*did you mean {instead}"):
        tiny_estimate(find_accelerator("T4"), precision=precision)


@pytest.mark.parametrize(
    ("gpu", "precision"), [("T4", "amp-fp16"), ("A100-40GB", "fp32"), ("MI300X", "fp32")]
)
def test_flash_and_other_vendors_are_refused(gpu: str, precision: str) -> None:
    with pytest.raises(UnsupportedCombination):
        tiny_estimate(find_accelerator(gpu), precision=precision, attention="flash")


@pytest.mark.parametrize(
    ("given", "strategy", "message"),
    [
        ({"max_length": 513}, {}, "positions for 512 tokens"),
        ({"max_target_length": 8}, {}, "only seq2seq-lm has target tokens"),
        ({}, {"precision": "fp16"}, "cannot be trained"),
        ({"task": "seq2seq-lm"}, {}, "seq2seq-lm"),
    ],
)
def test_what_each_record_alone_cannot_see(
    given: dict[str, Any], strategy: dict[str, Any], message: str
) -> None:
    with pytest.raises(SizingError, match=message):
        check_workload(SOURCE, workload(**given), Strategy(**strategy))
    check_workload(SOURCE, workload(use="inference"), Strategy(precision="fp16"))


def test_a_length_too_long_is_a_value_error() -> None:
    with pytest.raises(SpecError):
        tiny_estimate_of_length(513)


def tiny_estimate_of_length(length: int) -> Estimate:
    cluster = Cluster(accelerator=card(1 << 30))
    profile = tiny.profile()
    return estimate(SOURCE, workload(max_length=length), Strategy(), cluster, profile=profile)


def test_trace_key_keeps_what_shapes_the_trace_and_nothing_else() -> None:
    def key(strategy: Strategy, **given: Any) -> Any:
        return trace_key(SOURCE, workload(**given), strategy, device="cuda")

    plain = key(Strategy())
    assert (plain.compute, plain.use, plain.device) == ("fp32", "training", "accelerator")
    same = Strategy(optimizer="sgd", micro_batch=7, accumulation=9, precision="tf32")
    assert key(same, max_length=64, use="pre-training") == plain
    assert key(Strategy(attention="flash")) == plain
    assert key(Strategy(attention="eager")).attention == "eager"
    assert key(Strategy(precision="amp-fp16")) == key(Strategy(precision="amp-bf16")) != plain
    assert key(Strategy(recompute="block")).recompute == "block"
    # In inference nothing is computed again, and the output is always held.
    inference = key(Strategy(recompute="block", hold_output=False), use="inference")
    assert (inference.recompute, inference.hold_output) == ("none", True)
    assert key(Strategy(), task="masked-lm", num_labels=9).num_labels == 3
    assert key(Strategy(), num_labels=9).num_labels == 9


def test_trace_key_of_selected_rows_and_unpadded_texts() -> None:
    def key(precision: str, capability: tuple[int, int], device: str = "cuda") -> Any:
        row = workload(task="masked-lm", padding="unpadded")
        strategy = Strategy(precision=precision, loss="masked")
        return trace_key(SOURCE, row, strategy, device=device, capability=capability)

    flash = key("amp-bf16", (8, 0))
    assert (flash.loss, flash.unpadded, flash.padded) == ("masked", "flash", False)
    assert key("bf16", (9, 0)).unpadded == "flash"
    # No FlashAttention in fp32, before Ampere or on a CPU.
    for grid in (key("fp32", (8, 0)), key("amp-fp16", (7, 5)), key("amp-bf16", (8, 0), "cpu")):
        assert grid.unpadded == "grid"


def test_sizes_of_a_real_run_replace_what_was_expected() -> None:
    cluster = Cluster(accelerator=card(1 << 30))
    given = {"B": 3, "S": 16, "T": 0, "M": 3, "N": 0}  # M is not of this step: no rows selected
    strategy = Strategy(micro_batch=2)
    profile = tiny.profile()
    answer = estimate(SOURCE, workload(), strategy, cluster, profile=profile, sizes=given)
    assert answer.point == {"B": 3, "S": 16, "T": 0}


def test_with_batch() -> None:
    strategy = Strategy(micro_batch=8, accumulation=4, optimizer="sgd")
    assert with_batch(strategy, 2) == replace(strategy, micro_batch=2)
    assert with_batch(strategy, 2, 16) == replace(strategy, micro_batch=2, accumulation=16)
    # a budget of tokens goes with the texts: 1,000 for 8 is 250 for 2
    packed = replace(strategy, tokens_per_batch=1000)
    assert with_batch(packed, 2).tokens_per_batch == 250


def test_fits_on_asks_the_high_end_of_the_context() -> None:
    strategy = Strategy(micro_batch=2, optimizer="adamw-fused")
    program = build(
        SOURCE, tiny.profile(), strategy, Cluster(accelerator=card(1 << 30)), {"B": 2, "S": 8}
    )
    # 22 MiB reserved and 4 of context.
    assert fits_on(program, card(26 * MIB))
    assert not fits_on(program, card(26 * MIB - 1))
    for unknown in (card(None), find_accelerator("cpu")):
        with pytest.raises(UnsupportedCombination, match="no capacity is known"):
            fits_on(program, unknown)


def test_xlm_roberta_base_fine_tuning() -> None:
    # 277,453,056 of the backbone without its pooler, 592,899 of the head: 278,045,955 parameters.
    answer = stored_estimate()
    assert (answer.parameters.model, answer.parameters.head) == (278_045_955, 592_899)
    weights = 278_045_955 * 4
    rows = {row.name: row.num_bytes for row in answer.memory.ledger}
    # The peak is in the optimizer: foreach AdamW makes the roots of all second moments at once.
    assert rows["gradients"] == rows["temporaries"] == weights
    assert rows["optimizer_states"] == 2 * weights
    assert sum(size for name, size in rows.items() if name.startswith("weights")) == weights
    # Two cuBLAS workspaces; ids and mask of 16 x 128 and 16 labels; two rows of 514 positions.
    assert rows["workspaces"] == 2 * 8_519_680
    assert rows["inputs"] == 2 * 16 * 128 * 8 + 16 * 8
    assert rows["buffers"] == 2 * 514 * 8
    requested = 5 * weights + rows["workspaces"] + rows["inputs"] + rows["buffers"]
    assert answer.replay.live_requested_bytes == requested == 5_577_999_580
    # Rounding to 512 bytes and blocks that are not split: at most a MiB for each large block.
    assert 0 <= answer.memory.allocated_peak_bytes - requested < 16 * MIB
    assert answer.memory.peak_moment.startswith("optimizer step of step 1")
    assert answer.fit.verdict == "fits"
