"""Searches: the bisection by itself, the order of the edits, and both on a hand-made profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rigsize import search
from rigsize.errors import TraceFailed
from rigsize.estimate import Estimate, Fit, estimate
from rigsize.hardware import Accelerator, find_accelerator
from rigsize.models import ModelSource, resolve_model
from rigsize.program.mesh import accumulation_for
from rigsize.provenance import Sourced
from rigsize.search import (
    MOST_REPLAYS,
    Edit,
    cheapest_edits,
    largest_batch,
    longest_context,
)
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.spec.workload import MAX_BATCH
from rigsize.trace.profile import Profile, TraceKey
from tests.program import tiny_profile as tiny
from tests.stored import stored_estimate

MIB = 1 << 20
SOURCE = resolve_model("xlm-roberta-base")
A100 = find_accelerator("A100-40GB")


def workload(use: str = "fine-tuning", max_length: int = 512) -> Workload:
    task = "sequence-classification"
    return Workload(model="xlm-roberta-base", task=task, use=use, max_length=max_length)


def card(capacity_bytes: int) -> Accelerator:
    """An A100 of another capacity."""
    capacity = Sourced(value=capacity_bytes, source="hand", as_of="2026-11-23", basis="assumed")
    return replace(A100, capacity=capacity)


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_profile(source: ModelSource, key: TraceKey, point: object) -> Profile:
        return tiny.profile(use=key.use)

    monkeypatch.setattr("rigsize.estimate.find_profile", find_profile)


def bisected(monkeypatch: pytest.MonkeyPatch, limit: int) -> tuple[int, int]:
    """The answer where batches up to `limit` fit, and how many were asked."""
    asked: list[int] = []

    def fits(_: Workload, strategy: Strategy) -> bool:
        batch = strategy.micro_batch
        assert 1 <= batch <= MAX_BATCH
        asked.append(batch)
        return batch <= limit

    monkeypatch.setattr(search, "_fits", lambda *_: fits)
    return largest_batch(SOURCE, workload(), Strategy(), Cluster(accelerator=A100)), len(asked)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 7, 8, 52, 1023, MAX_BATCH - 1, MAX_BATCH])
def test_bisection_finds_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    found, asked = bisected(monkeypatch, limit)
    assert found == limit
    assert asked <= 2 * max(limit, 1).bit_length() + 1  # doubling, then as many halvings


def test_batches_end_at_the_largest_that_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bisected(monkeypatch, 10 * MAX_BATCH)[0] == MAX_BATCH


@pytest.mark.parametrize("limit", [0, 7, 8, 9, 100, 4096, 130_000])
def test_the_longest_context_is_found_in_steps_of_eight(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(search, "_fits", lambda *_: lambda w, _: w.prompt_tokens <= limit)
    asked = replace(
        workload(), task="causal-lm", use="inference", prompt_length=1, max_new_tokens=100
    )
    llama = resolve_model("meta-llama/Llama-3.1-8B")
    found = longest_context(llama, asked, Strategy(), Cluster(accelerator=A100))
    assert found == limit // 8 * 8


def test_the_longest_context_ends_at_the_models_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_fits", lambda *_: lambda *_: True)
    asked = replace(
        workload(), task="causal-lm", use="inference", prompt_length=1, max_new_tokens=100
    )
    llama = resolve_model("meta-llama/Llama-3.1-8B")
    cluster = Cluster(accelerator=A100)
    # 131,072 positions less 100 tokens that are written, in steps of 8.
    assert longest_context(llama, asked, Strategy(), cluster) == (131_072 - 100) // 8 * 8


@pytest.mark.usefixtures("_tiny")
def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    strategy = Strategy(optimizer="adamw-fused")
    cluster = Cluster(accelerator=card(1 << 30))
    found = largest_batch(SOURCE, workload(), strategy, cluster)
    # 358 MiB beside the context at its high end. A text of 512 tokens has activations of 128 KiB:
    # seven of them at the end of forward, eight and a bit in backward.
    assert 280 < found < 406
    for batch, fits in ((found, True), (found + 1, False)):
        tried = estimate(SOURCE, workload(), replace(strategy, micro_batch=batch), cluster)
        assert (tried.fit.verdict == "fits") == fits


@pytest.mark.usefixtures("_tiny")
def test_the_largest_batch_leaves_the_host_its_room() -> None:
    # Shards and states lie on the host: loader and batches grow there with the texts.
    strategy = Strategy(optimizer="adamw-fused", parallel="fsdp", offload="cpu")
    cluster = Cluster(accelerator=card(1 << 30))
    free = largest_batch(SOURCE, workload(), strategy, cluster)
    host = estimate(SOURCE, workload(), replace(strategy, micro_batch=free // 2), cluster).host
    limited = replace(cluster, host_memory_bytes=host.high_bytes)
    found = largest_batch(SOURCE, workload(), strategy, limited)
    assert free // 2 <= found < free
    for batch, fits in ((found, True), (found + 1, False)):
        tried = estimate(SOURCE, workload(), replace(strategy, micro_batch=batch), limited)
        assert (tried.fit.verdict == "fits") == fits
    none = replace(cluster, host_memory_bytes=host.low_bytes // 2)
    assert largest_batch(SOURCE, workload(), strategy, none) == 0


@pytest.mark.usefixtures("_tiny")
def test_on_a_cpu_the_host_decides_the_batch() -> None:
    cluster = Cluster(accelerator=find_accelerator("cpu"), host_memory_bytes=4 << 30)
    found = largest_batch(SOURCE, workload(), Strategy(), cluster)
    assert found > 0
    for batch, fits in ((found, True), (found + 1, False)):
        tried = estimate(SOURCE, workload(), Strategy(micro_batch=batch), cluster)
        assert (tried.fit.verdict == "fits") == fits


def test_offload_makes_xlm_roberta_xxl_fit_one_card() -> None:
    # 10.7 B parameters: bf16 weights, gradients and 8-bit states alone, 6 bytes, are too many.
    source = resolve_model("facebook/xlm-roberta-xxl")
    asked = replace(workload(), model=source.name)
    found = estimate(source, asked, Strategy(micro_batch=8), Cluster(accelerator=A100))
    edits = cheapest_edits(found)
    assert edits
    assert all("--offload" in edit.flags and edit.verdict == "fits" for edit in edits)
    # fp32 weights, gradients and both states of AdamW lie there.
    assert min(edit.host_peak_bytes for edit in edits) > 16 * found.parameters.model
    small = replace(found, cluster=replace(found.cluster, host_memory_bytes=64 << 30))
    assert all(edit.verdict == "does_not_fit" for edit in cheapest_edits(small))


@pytest.mark.usefixtures("_tiny")
def test_no_batch_at_all() -> None:
    cluster = Cluster(accelerator=card(512 * MIB + 20 * MIB))
    assert largest_batch(SOURCE, workload(), Strategy(), cluster) == 0


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "expected"),
    [(8192, 16, 1, 512), (8192, 26, 1, 316), (8192, 36, 1, 228), (4096, 8, 2, 256), (3, 8, 1, 1)],
)
def test_accumulation(total: int, micro: int, ranks: int, expected: int) -> None:
    assert accumulation_for(total, micro, ranks) == expected


# Edits


def asking(use: str = "fine-tuning", **strategy: Any) -> Estimate:
    chosen = Strategy(**{"micro_batch": 64, **strategy})
    cluster = Cluster(accelerator=card(1 << 30))
    profile = tiny.profile(use="inference" if use == "inference" else "training")
    return estimate(SOURCE, workload(use), chosen, cluster, profile=profile)


def flags_of(answer: Estimate) -> list[str]:
    return [change.flags for change in search._changes(answer)]


def test_changes_stand_in_order_of_what_they_cost() -> None:
    assert flags_of(asking(accumulation=2)) == [
        "--optim adamw-fused",
        "--batch-size 32 --grad-accum 4",
        "--batch-size 8 --grad-accum 16",
        "--batch-size 4 --grad-accum 32",
        "--batch-size 2 --grad-accum 64",
        "--batch-size 1 --grad-accum 128",
        "--recompute block",
        "--precision amp-bf16",
        "--precision bf16",
        "--optim adamw-8bit",
        "--offload optimizer",
        "--parallel fsdp --offload cpu",
        "--offload activations",
    ]


def test_no_change_to_what_is_so_already() -> None:
    lean = asking(micro_batch=1, optimizer="sgd", recompute="block", precision="bf16")
    assert flags_of(replace(lean, strategy=replace(lean.strategy, offload="optimizer"))) == []
    assert flags_of(asking(micro_batch=1, precision="amp-bf16", optimizer="adamw-fused")) == [
        "--recompute block",
        "--precision bf16",
        "--optim adamw-8bit",
        "--offload optimizer",
        "--parallel fsdp --offload cpu",
        "--offload activations",
    ]


@pytest.mark.parametrize(
    ("parallel", "offered"),
    [
        ("ddp", ["--offload optimizer", "--parallel fsdp --offload cpu", "--offload activations"]),
        ("fsdp", ["--offload cpu", "--offload activations"]),
        ("zero1", ["--offload optimizer", "--offload activations"]),
        ("zero3", ["--offload optimizer", "--offload cpu", "--offload activations"]),
    ],
)
def test_what_can_go_to_the_host_depends_on_who_holds_it(parallel: str, offered: list[str]) -> None:
    answer = asking()
    sharded = replace(answer, strategy=replace(answer.strategy, parallel=parallel))
    assert [f for f in flags_of(sharded) if "offload" in f] == offered


def test_no_two_changes_of_one_flag() -> None:
    combinations = list(search._combinations(asking()))
    flags = [" ".join(c.flags for c in found).split() for found in combinations]
    assert len(flags) > 50
    for words in flags:
        names = [w for w in words if w.startswith("--")]
        assert len(names) == len(set(names))


def test_inference_changes_batch_and_weights_only() -> None:
    assert flags_of(asking("inference", micro_batch=4)) == [
        "--batch-size 2",
        "--batch-size 1",
        "--precision bf16",
        "--parallel fsdp --offload cpu",
    ]
    assert flags_of(asking("inference", micro_batch=1, precision="fp16")) == [
        "--parallel fsdp --offload cpu"
    ]


def test_the_bound_is_weights_gradients_and_states() -> None:
    # Fused AdamW: 16 bytes for each of 76,608 parameters, and eight counters.
    answer = asking(optimizer="adamw-fused")
    need = 16 * tiny.PARAMETERS + 8 * 4 + A100.context_bytes.value.low
    for capacity, could in ((need, True), (need - 1, False)):
        limited = replace(answer, cluster=Cluster(accelerator=card(capacity)))
        assert search._could_fit(limited, limited.strategy) is could
    sgd = replace(answer.strategy, optimizer="sgd")
    limited = replace(answer, cluster=Cluster(accelerator=card(need - 8 * tiny.PARAMETERS - 32)))
    assert search._could_fit(limited, sgd)


Need = Callable[[Strategy], int]


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Edit], int]]:
    """Edits where `need` says what a strategy takes of 100 bytes, and how many were replayed."""

    def searched(
        need: Need, stored: Callable[[Strategy], bool] = lambda _: True, **strategy: Any
    ) -> tuple[list[Edit], int]:
        replays = 0

        def judged(answer: Estimate, chosen: Strategy) -> Estimate:
            memory = replace(answer.memory, device_peak_bytes=need(chosen))
            verdict = "fits" if need(chosen) <= 100 else "does_not_fit"
            fit = Fit(verdict=verdict, capacity_bytes=100, headroom_bytes=100 - need(chosen))  # type: ignore[arg-type]
            return replace(answer, strategy=chosen, memory=memory, fit=fit)

        answer = asking(**strategy)

        def stand_in(_source: object, _workload: object, chosen: Strategy, _on: object) -> Estimate:
            nonlocal replays
            replays += 1
            return judged(answer, chosen)

        monkeypatch.setattr(search, "estimate", stand_in)
        monkeypatch.setattr(search, "_is_stored", lambda _answer, chosen: stored(chosen))
        return cheapest_edits(judged(answer, answer.strategy)), replays

    return searched


def test_one_cheap_edit_is_enough(searching: Any) -> None:
    def need(s: Strategy) -> int:
        return s.micro_batch + (50 if s.optimizer == "adamw-foreach" else 20)

    edits, _ = searching(need)  # 114 of 100
    assert [edit.flags for edit in edits] == [
        "--optim adamw-fused",
        "--batch-size 32 --grad-accum 2",  # a smaller one than fits is no other change
        "--optim adamw-8bit",
    ]
    assert [edit.device_peak_bytes for edit in edits] == [84, 82, 84]
    assert [edit.saved_bytes for edit in edits] == [30, 32, 30]
    assert edits[0].strategy == replace(asking().strategy, optimizer="adamw-fused")


def test_pairs_come_where_no_single_edit_is_enough(searching: Any) -> None:
    def need(s: Strategy) -> int:
        saved = 20 * (s.optimizer == "adamw-fused") + 20 * (s.recompute == "block")
        return 140 - saved

    edits, _ = searching(need)
    assert edits[0].flags == "--optim adamw-fused --recompute block"
    assert edits[0].name == "fused AdamW, same mathematics + recompute per block"
    # No triple that holds this pair.
    assert all(edits[0].flags not in edit.flags for edit in edits[1:])


def test_where_nothing_fits_those_that_save_most(searching: Any) -> None:
    edits, _ = searching(lambda s: 1000 + s.micro_batch - 5 * (s.optimizer == "adamw-fused"))
    assert len(edits) == 3
    assert all(edit.verdict == "does_not_fit" for edit in edits)
    saved = [edit.saved_bytes for edit in edits]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] >= 63


def test_replays_are_limited_whatever_they_say(searching: Any) -> None:
    edits, replays = searching(lambda s: 1000)  # nothing saves anything
    assert (edits, replays) == ([], MOST_REPLAYS)


def test_two_new_traces_at_most(searching: Any) -> None:
    def stored(s: Strategy) -> bool:
        return s.precision == "fp32"

    edits, _ = searching(lambda s: 90 if s.precision != "fp32" else 110, stored, optimizer="sgd")
    # amp-bf16 and bf16 are traced, each once; no pair with either is.
    assert [edit.flags for edit in edits] == ["--precision amp-bf16", "--precision bf16"]


def test_an_edit_that_cannot_be_answered_is_left_out(
    searching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(s: Strategy) -> int:
        if s.recompute == "block":
            raise TraceFailed("recompute", "block", "no block to recompute")
        return 90 if s.precision != "fp32" else 110

    edits, _ = searching(need, micro_batch=1, optimizer="sgd")
    assert [edit.flags for edit in edits] == ["--precision amp-bf16", "--precision bf16"]


def test_fused_adamw_makes_a_real_fine_tuning_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    foreach, fused = stored_estimate(), stored_estimate(optimizer="adamw-fused")
    needs = [a.memory.device_peak_bytes for a in (fused, foreach)]
    assert needs[0] is not None
    assert needs[1] is not None
    between = (needs[0] + needs[1]) // 2

    def known(source: ModelSource, workload: Workload, strategy: Strategy, _on: Any) -> Estimate:
        given = {f: getattr(strategy, f) for f in ("micro_batch", "accumulation", "optimizer")}
        return stored_estimate(**given, precision=strategy.precision, recompute=strategy.recompute)

    monkeypatch.setattr(search, "estimate", known)
    monkeypatch.setattr(search, "_is_stored", lambda *_: True)
    limited = replace(foreach, cluster=Cluster(accelerator=card(between)))
    edits = cheapest_edits(limited, count=1)
    assert [edit.flags for edit in edits] == ["--optim adamw-fused"]
