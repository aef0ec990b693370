"""Laws that hold for every estimate, tried on stored profiles and on one made by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rigsize.estimate import Estimate
from rigsize.memory.replay import replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.environment import Environment
from rigsize.spec import Strategy
from rigsize.spec.optimizers import OPTIMIZERS, SIXTEEN_BIT_ONLY
from tests.program import tiny_profile as tiny
from tests.stored import stored_estimate

TASKS = st.sampled_from(["sequence-classification", "masked-lm"])
# Lengths divisible by 8 and batches above 1: one proved domain, one sequence of events.
LENGTHS = st.integers(1, 64).map(lambda n: 8 * n)
BATCHES = st.integers(2, 96)
PRECISIONS = st.sampled_from(["fp32", "amp-bf16", "bf16"])
NAMES = st.sampled_from([name for name in OPTIMIZERS if name not in SIXTEEN_BIT_ONLY])
COUNTER_BYTES = 4
REAL = settings(max_examples=15)
"""A stored profile takes some 50 ms an estimate."""


def requested_peak(program: Program) -> int:
    """The highest sum of requested bytes: allocated less the allocator's rounding and slack."""
    return replay_exact(program).allocated_peak_bytes


def alive_at(program: Program, phase: str) -> int:
    """Requested bytes when a phase of the first micro-step begins."""
    starts = {name: index for index, name in program.phase_starts["first"]}
    sizes, total = program.timeline.sizes, 0
    for operation in [*program.slices["load"], *program.slices["first"][: starts[phase]]]:
        total += sizes[operation] if operation >= 0 else -sizes[~operation]
    return total


def tiny_program(
    batch: int, length: int, environment: Environment = tiny.A100, **strategy: Any
) -> Program:
    point = {"B": batch, "S": length, "T": 0}
    return build_program(tiny.profile(), point, Strategy(**strategy), environment)


def assert_consistent(answer: Estimate) -> None:
    memory = answer.memory
    assert memory.reserved_peak_bytes is not None
    assert memory.device_peak_bytes is not None
    assert sum(row.num_bytes for row in memory.ledger) == memory.device_peak_bytes
    assert len({row.name for row in memory.ledger}) == len(memory.ledger)
    assert all(row.num_bytes >= 0 for row in memory.ledger)
    assert answer.replay.live_requested_bytes <= memory.allocated_peak_bytes
    assert memory.allocated_peak_bytes <= memory.reserved_peak_bytes <= memory.device_peak_bytes
    assert memory.low_bytes <= memory.device_peak_bytes <= memory.high_bytes


@REAL
@given(
    task=TASKS,
    batch=st.integers(1, 64),
    length=st.integers(2, 256),
    precision=PRECISIONS,
    optimizer=NAMES,
    accumulation=st.integers(1, 4),
)
def test_ledger_rows_sum_to_the_device_peak(
    task: str, batch: int, length: int, precision: str, optimizer: str, accumulation: int
) -> None:
    answer = stored_estimate(
        task=task,
        max_length=length,
        micro_batch=batch,
        precision=precision,
        optimizer=optimizer,
        accumulation=accumulation,
    )
    assert_consistent(answer)


@REAL
@given(task=TASKS, batch=st.integers(1, 64), length=st.integers(2, 256))
def test_ledger_rows_sum_in_inference(task: str, batch: int, length: int) -> None:
    answer = stored_estimate(task=task, use="inference", max_length=length, micro_batch=batch)
    assert_consistent(answer)
    assert not any("gradients" in row.name for row in answer.memory.ledger)


@REAL
@given(
    task=TASKS,
    batch=BATCHES,
    more=st.integers(0, 32),
    length=LENGTHS,
    longer=st.integers(0, 8),
    precision=PRECISIONS,
)
def test_more_or_longer_texts_never_need_less(
    task: str, batch: int, more: int, length: int, longer: int, precision: str
) -> None:
    given: dict[str, Any] = {"task": task, "precision": precision, "optimizer": "adamw-fused"}
    longest = min(length + 8 * longer, 512)
    less = stored_estimate(**given, micro_batch=batch, max_length=length)
    full = stored_estimate(**given, micro_batch=batch + more, max_length=longest)
    assert requested_peak(less.program) <= requested_peak(full.program)


@given(
    batch=st.integers(1, 10_000),
    more=st.integers(0, 10_000),
    length=st.integers(2, 10_000),
    optimizer=NAMES,
)
def test_more_texts_never_need_less_by_hand(
    batch: int, more: int, length: int, optimizer: str
) -> None:
    less = tiny_program(batch, length, optimizer=optimizer)
    full = tiny_program(batch + more, length, optimizer=optimizer)
    assert requested_peak(less) <= requested_peak(full)


@REAL
@given(task=TASKS, batch=BATCHES, length=LENGTHS, accumulation=st.integers(1, 3))
def test_fused_adamw_never_needs_more_than_foreach(
    task: str, batch: int, length: int, accumulation: int
) -> None:
    # Its step counters apart: they are on the device, those of foreach on the host.
    fused, foreach = (
        stored_estimate(
            task=task,
            micro_batch=batch,
            max_length=length,
            accumulation=accumulation,
            optimizer=optimizer,
        ).program
        for optimizer in ("adamw-fused", "adamw-foreach")
    )
    counters = COUNTER_BYTES * len(fused.parameters)
    assert requested_peak(fused) - counters <= requested_peak(foreach)


@given(batch=st.integers(1, 4000), length=st.integers(2, 600))
def test_no_other_adamw_needs_less_than_fused(batch: int, length: int) -> None:
    # On the host all of them keep their counters there. The loop may need more than foreach: twice
    # the largest parameter, where that is more than all parameters once.
    fused, loop, foreach = (
        requested_peak(tiny_program(batch, length, tiny.CPU, optimizer=f"adamw-{name}"))
        for name in ("fused", "loop", "foreach")
    )
    assert fused <= min(loop, foreach)


@REAL
@given(task=TASKS, batch=BATCHES, length=LENGTHS, use=st.sampled_from(["inference", "fine-tuning"]))
def test_half_the_bytes_an_element_never_need_more(
    task: str, batch: int, length: int, use: str
) -> None:
    full, half = (
        stored_estimate(
            task=task, use=use, micro_batch=batch, max_length=length, precision=precision
        ).program
        for precision in ("fp32", "bf16")
    )
    assert requested_peak(half) <= requested_peak(full)


@REAL
@given(task=TASKS, batch=BATCHES, length=LENGTHS, accumulation=st.integers(2, 64), optimizer=NAMES)
def test_accumulation_never_needs_less_than_none(
    task: str, batch: int, length: int, accumulation: int, optimizer: str
) -> None:
    given: dict[str, Any] = {
        "task": task,
        "micro_batch": batch,
        "max_length": length,
        "optimizer": optimizer,
    }
    none, some = stored_estimate(**given), stored_estimate(**given, accumulation=accumulation)
    assert requested_peak(none.program) <= requested_peak(some.program)


@given(
    batch=st.integers(1, 4000),
    length=st.integers(2, 600),
    accumulation=st.integers(2, 64),
    optimizer=NAMES,
)
def test_two_micro_steps_more_are_all_that_accumulation_ever_needs(
    batch: int, length: int, accumulation: int, optimizer: str
) -> None:
    none, two, some = (
        requested_peak(tiny_program(batch, length, accumulation=n, optimizer=optimizer))
        for n in (1, 2, accumulation)
    )
    assert none <= two == some


@REAL
@given(task=TASKS, batch=BATCHES, length=LENGTHS, precision=PRECISIONS)
def test_recompute_never_keeps_more_activations(
    task: str, batch: int, length: int, precision: str
) -> None:
    given: dict[str, Any] = {
        "task": task,
        "micro_batch": batch,
        "max_length": length,
        "precision": precision,
    }
    kept, again = stored_estimate(**given), stored_estimate(**given, recompute="block")
    assert alive_at(again.program, "backward") <= alive_at(kept.program, "backward")
