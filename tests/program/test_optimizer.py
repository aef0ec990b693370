"""Hand-worked optimizer steps, and laws that hold for every list of parameters."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.memory.kernel_scratch import column_sum_scratch_bytes
from rigsize.program.clipping import LossScaler, clip_events, zero_grad_events
from rigsize.program.foreach import Device, dtype_groups
from rigsize.program.optimizer import (
    Optimizer,
    make_optimizer,
    optimizer_phase,
)
from rigsize.program.optimizer_sizes import paged_sizes, state_bytes
from rigsize.program.optimizer_steps import STEPS
from rigsize.program.timeline import Parameter, Place, Timeline
from rigsize.spec.optimizers import OPTIMIZERS
from rigsize.spec.strategy import Strategy

WEIGHT = Place("weights", "load")
GRADIENT = Place("gradients", "backward")


def name_of(index: int) -> str:
    return f"layers.{index}.p" if index % 2 else f"p{index}"


def on_timeline(*tensors: tuple[tuple[int, ...], int]) -> tuple[Timeline, list[Parameter]]:
    """A timeline that holds weights and gradients of these (shape, itemsize).

    Every other name is that of a layer's parameter, as Muon asks.
    """
    timeline = Timeline()
    parameters = []
    for index, (shape, itemsize) in enumerate(tensors):
        parameter = Parameter(name_of(index), shape, itemsize, True, -1)
        parameter.storage = timeline.alloc(parameter.num_bytes, WEIGHT)
        parameters.append(parameter)
    give_gradients(timeline, parameters)
    return timeline, parameters


def give_gradients(timeline: Timeline, parameters: list[Parameter]) -> None:
    for parameter in parameters:
        parameter.gradient = timeline.alloc(parameter.num_bytes, GRADIENT)


def signed(timeline: Timeline, start: int = 0) -> list[int]:
    """Requested bytes of each event, negative for a free."""
    return [
        event.num_bytes if event.action == "alloc" else -event.num_bytes
        for event in timeline.events(start)
    ]


def live_and_peak(sizes: list[int]) -> tuple[int, int]:
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    return live, peak


def step_sizes(
    name: str, *tensors: tuple[tuple[int, ...], int], device: Device = "cuda"
) -> tuple[list[int], list[int]]:
    """The events of the first and of the second step."""
    timeline, parameters = on_timeline(*tensors)
    optimizer = Optimizer(name=name)
    start = len(timeline.operations)
    optimizer.step(timeline, parameters, device=device)
    middle = len(timeline.operations)
    optimizer.step(timeline, parameters, device=device)
    return signed(timeline)[start:middle], signed(timeline)[middle:]


# Two fp32 matrices of 400 and 48 bytes, one bf16 vector of 20 between them.
THREE = (((10, 10), 4), ((10,), 2), ((3, 4), 4))


def test_every_optimizer_of_the_contract_has_a_step() -> None:
    assert set(STEPS) == set(OPTIMIZERS)


def test_groups_come_last_dtype_first() -> None:
    _, parameters = on_timeline(*THREE)
    assert [[p.name for p in group] for group in dtype_groups(parameters)] == [
        [name_of(1)],
        [name_of(0), name_of(2)],
    ]


def test_adamw_foreach_by_hand() -> None:
    first, second = step_sizes("adamw-foreach", *THREE)
    states = [400, 400, 20, 20, 48, 48]
    # The bf16 root lives until the fp32 roots are made; a list dies from its end.
    assert second == [20, 400, 48, -20, -48, -400]
    assert first == states + second
    assert live_and_peak(second) == (0, 468)


def test_adamw_foreach_on_the_cpu_differs_by_the_step_counters() -> None:
    first, second = step_sizes("adamw-foreach", *THREE, device="cpu")
    assert first[:9] == [4, 400, 400, 4, 20, 20, 4, 48, 48]
    assert second == step_sizes("adamw-foreach", *THREE)[1]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_adamw_fused_by_hand(device: Device) -> None:
    # `_init_group`: step on the parameter's device with fused, whatever it is.
    first, second = step_sizes("adamw-fused", *THREE, device=device)
    assert first == [4, 400, 400, 4, 20, 20, 4, 48, 48]
    assert second == []


def test_adamw_loop_by_hand() -> None:
    _, second = step_sizes("adamw-loop", *THREE)
    # Root, quotient, end of the root, end of the denominator before.
    assert second == [400, 400, -400, 20, 20, -20, -400, 48, 48, -48, -20, -48]
    assert live_and_peak(second) == (0, 800)


def test_adamw_loop_peaks_at_three_copies_of_two_equal_neighbours() -> None:
    _, second = step_sizes("adamw-loop", ((100,), 4), ((100,), 4))
    assert live_and_peak(second) == (0, 1200)


def test_sgd_by_hand() -> None:
    assert step_sizes("sgd", *THREE) == ([], [])
    # The clones of the first step, group by group.
    assert step_sizes("sgd-momentum", *THREE) == ([20, 400, 48], [])


def test_adafactor_by_hand() -> None:
    first, second = step_sizes("adafactor", *THREE)
    # Rows and columns of 10 x 10, the vector whole, rows and columns of 3 x 4.
    assert first[:5] == [40, 40, 20, 12, 16]
    assert second == [
        *(40, 40, 400, 4, -4),  # row norm, column norm, outer product, mean
        *(20, 20, -400),  # squared gradient, clone; the product before dies
        *(12, -40, 16, -40, 48, 4, -4, -20),
        *(-12, -16, -20, -48),  # the local names, in their order
    ]
    assert live_and_peak(second)[1] == 40 + 40 + 400 + 20 + 20


def test_adafactor_stages_column_norms_on_cuda_alone() -> None:
    # 2048 rows of 768 on 108 SMs: 12 MiB and 24 semaphores, as every sum over rows.
    scratch = sum(column_sum_scratch_bytes(2048, 768, 108, 2048))
    for device in ("cuda", "cpu"):
        timeline, parameters = on_timeline(((2048, 768), 4))
        optimizer = make_optimizer(
            Strategy(optimizer="adafactor"),
            column_scratch=lambda rows, columns: sum(
                column_sum_scratch_bytes(rows, columns, 108, 2048)
            ),
        )
        optimizer.step(timeline, parameters, device=device)
        staged = [size for size in timeline.sizes if size == scratch]
        assert len(staged) == (device == "cuda")


def test_adamw_8bit_by_hand() -> None:
    # What bitsandbytes 0.50.2 AdamW8bit holds for these four after a step on the CPU:
    # 8,320 + 15,648 + 512 + 32,760 bytes and two shared code tables: 59,288.
    shapes = [(64, 64), (100, 77), (64,), (63, 65)]
    assert state_bytes("adamw-8bit", shapes, 4) == 59_288
    first, second = step_sizes("adamw-8bit", *((shape, 4) for shape in shapes))
    assert first == [
        *(1024, 1024, 4096, 4096, 64, 64),
        *(7700, 7700, 124, 124),
        *(256, 256),
        *(16_380, 16_380),
    ]
    assert second == []


def test_8bit_states_do_not_depend_on_the_weight_dtype() -> None:
    shapes = [(63, 65), (4096,)]
    assert state_bytes("adamw-8bit", shapes, 2) == state_bytes("adamw-8bit", shapes, 4)


def test_8bit_bytes_an_element() -> None:
    # 2 + 8/256 bytes, and the tables.
    assert state_bytes("adamw-8bit", [(1 << 20,)], 4) - 2048 == 2.03125 * (1 << 20)


def test_torchao_states_by_hand() -> None:
    # 8192 elements: codes, an fp32 scale a block of 256 (4-bit: 128), and a code table a state.
    shape = (64, 128)
    assert state_bytes("adamw-8bit-torchao", [shape], 4) == 2 * (8192 + 32 * 4 + 1024)
    assert state_bytes("adamw-4bit", [shape], 4) == 2 * (4096 + 64 * 4 + 64)
    assert state_bytes("adamw-fp8", [shape], 4) == 2 * (8192 + 32 * 4)
    # 8320 = 65 * 128: whole blocks of 128, not of 256, so the states keep the weight's dtype.
    assert state_bytes("adamw-4bit", [(65, 128)], 2) == 2 * (4160 + 65 * 4 + 64)
    assert state_bytes("adamw-fp8", [(65, 128)], 2) == 2 * 2 * 8320
    assert state_bytes("adamw-sr", [shape], 2) == 2 * 2 * 8192


def test_paged_states_leave_the_allocator_where_they_are_large() -> None:
    # 99,999 elements stay; of 100,000 the moments are managed, and the 391 maxima of 256 stay.
    assert state_bytes("paged-adamw", [(99_999,)], 4) == 2 * 4 * 99_999
    assert state_bytes("paged-adamw", [(100_000,)], 4) == 0
    assert sum(paged_sizes("paged-adamw", (100_000,))) == 2 * 4 * 100_000
    assert state_bytes("paged-adamw-8bit", [(100_000,)], 4) == 2 * 4 * 391 + 2048
    assert paged_sizes("paged-adamw-8bit", (100_000,)) == [100_000, 100_000]
    assert paged_sizes("paged-adamw-8bit", (100_000,), "cpu") == []


def test_muon_by_hand() -> None:
    # An embedding, and a matrix [4, 6] of a layer in fp32: momentum 96 bytes; the update 96, the
    # bf16 iterate 48, products 4 x 4 of 32 bytes. AdamW's states of the embedding come last.
    first, second = step_sizes("muon", ((5, 4), 4), ((4, 6), 4))
    iteration = [32, -32, 32, -32, 48, -48]
    assert second == [96, 48, 32, 32, 48, -48, *iteration * 4, -32, -32, -96, -48]
    assert first == [96, *second, 4, 80, 80]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("adamw-foreach", "cuda", 2 * 4 * 124),
        ("adamw-foreach", "cpu", 2 * 4 * 124 + 8),
        ("adamw-fused", "cuda", 2 * 4 * 124 + 8),
        ("adamw-loop", "cuda", 2 * 4 * 124),
        ("sgd", "cuda", 0),
        ("sgd-momentum", "cpu", 4 * 124),
        ("adafactor", "cuda", 4 * (24 + 30 + 4)),  # [6, 4, 1], [6, 1, 5], and the vector
        ("adafactor", "cpu", 4 * (24 + 30 + 4) + 8),
        ("adamw-8bit", "cuda", 2 * 4 * 124),
        ("rmsprop", "cuda", 4 * 124),
        ("lion", "cuda", 4 * 124),
        ("lion-8bit", "cuda", 4 * 124),
        ("adafactor-hf", "cuda", 4 * (24 + 30 + 1 + 4 + 1)),
        ("adamw-4bit", "cuda", 2 * 4 * 124),  # too small to be quantised
        ("adamw-4bit", "cpu", 2 * 4 * 124 + 8),
        ("paged-adamw", "cuda", 2 * 4 * 124),  # too small to be paged
    ],
)
def test_state_bytes(name: str, device: Device, expected: int) -> None:
    shapes: list[tuple[int, ...]] = [(6, 4, 5), (4,)]
    assert state_bytes(name, shapes, 4, device=device) == expected


def test_a_parameter_without_a_gradient_gets_no_state() -> None:
    timeline, parameters = on_timeline(((10,), 4), ((5,), 4))
    parameters[0].gradient = -1
    optimizer = make_optimizer(Strategy(optimizer="adamw-fused"))
    optimizer.step(timeline, parameters, device="cuda")
    assert list(optimizer.state.states) == [name_of(1)]
    give_gradients(timeline, parameters[:1])
    optimizer.step(timeline, parameters, device="cuda")
    assert list(optimizer.state.states) == [name_of(1), name_of(0)]


def test_places_name_the_ledger_row_and_the_rule() -> None:
    timeline, parameters = on_timeline(((10,), 4))
    make_optimizer(Strategy()).step(timeline, parameters, device="cuda")
    state, root = timeline.places[2], timeline.places[-1]
    assert (state.category, state.phase, state.basis) == (
        "optimizer_states",
        "optimizer",
        "derived",
    )
    assert (root.category, root.op) == ("temporaries", "adamw-foreach._foreach_sqrt")


def test_clip_on_cuda_by_hand() -> None:
    # The 2-byte group comes first: 210,000 elements are 4 chunks of 65,536, 4 bytes each; then
    # 2 tensors of 1 chunk. Norms keep their gradient's dtype, the stack takes the wider one.
    timeline, parameters = on_timeline(((10, 10), 4), ((3, 70_000), 2), ((3, 4), 4))
    start = len(timeline.operations)
    clip_events(timeline, parameters, device="cuda")
    assert signed(timeline, start) == [
        *(16, 2, -16),
        *(8, 4, 4, -8),
        *(12, 4, -12, -4, -4, -2),  # stack and total; the list of norms dies
        *(4, 4, 4, -4, -4, 4, -4, -4),  # + 1e-6, reciprocal, product, clamp
        -4,
    ]


def test_clip_on_the_cpu_has_no_partial_sums() -> None:
    timeline, parameters = on_timeline(((3, 70_000), 4))
    start = len(timeline.operations)
    clip_events(timeline, parameters, device="cpu")
    assert live_and_peak(signed(timeline, start)) == (0, 16)
    assert max(signed(timeline, start)) == 4


def test_clip_without_gradients_does_nothing() -> None:
    timeline, parameters = on_timeline(((3,), 4))
    parameters[0].gradient = -1
    before = len(timeline.operations)
    clip_events(timeline, parameters, device="cuda")
    assert len(timeline.operations) == before


def test_zero_grad_frees_in_order() -> None:
    timeline, parameters = on_timeline(*THREE)
    start = len(timeline.operations)
    zero_grad_events(timeline, parameters)
    assert signed(timeline, start) == [-400, -20, -48]
    assert [parameter.gradient for parameter in parameters] == [-1, -1, -1]
    zero_grad_events(timeline, parameters)
    assert len(timeline.operations) == start + 3


def test_scaler_by_hand() -> None:
    timeline, scaler = Timeline(), LossScaler()
    for expected in ([4, 4, 4], [4]):  # scale and growth counter once, the scaled loss each time
        start = len(timeline.operations)
        loss = scaler.scale(timeline)
        assert signed(timeline, start) == expected
        timeline.free(loss)
        start = len(timeline.operations)
        scaler.unscale(timeline)
        assert signed(timeline, start) == [8, 8, -8, 4, -8, 4, -4]  # found_inf stays
        scaler.update(timeline)
    assert live_and_peak(signed(timeline))[0] == 8


def test_fp16_master_by_hand() -> None:
    timeline, parameters = on_timeline(((10, 10), 2), ((6,), 2))
    optimizer = make_optimizer(Strategy(precision="fp16-master"))
    start = len(timeline.operations)
    optimizer_phase(timeline, optimizer, parameters, device="cuda", clip=False)
    assert signed(timeline, start) == [
        *(400, 24),  # masters
        *(400, 24),  # fp32 gradients
        *(400, 400, 24, 24),  # states on the masters
        *(400, 24, -24, -400),  # roots
        *(-400, -24, -200, -12),  # the masters' gradients, then the weights'
    ]
    assert timeline.places[4].category == "master_copy"
    give_gradients(timeline, parameters)
    start = len(timeline.operations)
    optimizer_phase(timeline, optimizer, parameters, device="cuda", clip=False)
    live, peak = live_and_peak(signed(timeline, start))
    assert (live, peak) == (-212, 2 * 424)


def test_phase_marks_its_moments() -> None:
    timeline, parameters = on_timeline(((10,), 4))
    scaler = LossScaler()
    optimizer_phase(
        timeline, make_optimizer(Strategy()), parameters, device="cuda", clip=True, scaler=scaler
    )
    assert [label for _, label in timeline.marks] == ["optimizer", "zero_grad"]
    assert live_and_peak(signed(timeline))[0] == 40 + 80


def test_a_step_over_800_parameters_is_fast() -> None:
    shapes = [((1024, 1024) if index % 2 else (1024,), 4) for index in range(800)]
    for name in OPTIMIZERS:
        best = 1.0
        optimizer = Optimizer(name=name)
        timeline, parameters = on_timeline(*shapes)
        for _ in range(10):
            begin = time.process_time()
            optimizer.step(timeline, parameters, device="cuda")
            best = min(best, time.process_time() - begin)
        # At most 4 ms (Muon, transformers' Adafactor) of a processor's time, whoever else is at it.
        assert best < 0.02, name


SHAPES = st.lists(st.integers(1, 70), min_size=0, max_size=3).map(tuple)
# A fused step counter (4 bytes) may outweigh the root of a smaller parameter.
TENSORS = st.lists(
    st.tuples(SHAPES, st.sampled_from([2, 4])).filter(
        lambda t: t[1] == 4 or t[0] not in ((), (1,))
    ),
    min_size=1,
    max_size=8,
)
NAMES = st.sampled_from(OPTIMIZERS)
DEVICES = st.sampled_from(["cuda", "cpu"])


def peaks(name: str, tensors: list[tuple[tuple[int, ...], int]], device: Device) -> list[int]:
    first, second = step_sizes(name, *tensors, device=device)
    live, peak = live_and_peak(first)
    return [peak, live + live_and_peak(second)[1]]


def product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@given(TENSORS, DEVICES)
def test_fused_never_needs_more_than_foreach(
    tensors: list[tuple[tuple[int, ...], int]], device: Device
) -> None:
    tensors = [t for t in tensors if product(t[0]) * t[1] >= 4]
    fused, foreach = (peaks(n, tensors, device) for n in ("adamw-fused", "adamw-foreach"))
    assert all(a <= b for a, b in zip(fused, foreach, strict=True))


@given(NAMES, TENSORS, DEVICES)
def test_one_more_parameter_never_needs_less(
    name: str, tensors: list[tuple[tuple[int, ...], int]], device: Device
) -> None:
    fewer, more = peaks(name, tensors[:-1], device), peaks(name, tensors, device)
    assert all(a <= b for a, b in zip(fewer, more, strict=True))


@given(NAMES, st.lists(SHAPES, max_size=6), st.sampled_from([2, 4]), DEVICES)
def test_what_stays_after_a_step_is_state_bytes(
    name: str, shapes: list[tuple[int, ...]], itemsize: int, device: Device
) -> None:
    first, second = step_sizes(name, *((shape, itemsize) for shape in shapes), device=device)
    names = [name_of(index) for index in range(len(shapes))]
    expected = state_bytes(name, shapes, itemsize, device=device, names=names)
    assert live_and_peak(first)[0] == expected
    assert live_and_peak(second)[0] == 0


@given(NAMES, st.lists(SHAPES, max_size=6))
def test_wider_elements_never_need_less(name: str, shapes: list[tuple[int, ...]]) -> None:
    names = [name_of(index) for index in range(len(shapes))]
    half, whole = (state_bytes(name, shapes, itemsize, names=names) for itemsize in (2, 4))
    assert half <= whole


@given(st.integers(1, 10**7))
def test_fewer_bits_never_need_more(numel: int) -> None:
    """Of whole blocks, and beyond the tables: 4 bits within 8 bits within 32."""
    shape, tables = (256 * numel,), 2 * 1024 + 128
    four, eight, whole = (
        state_bytes(name, [shape], 4) for name in ("adamw-4bit", "adamw-8bit", "adamw-foreach")
    )
    assert four <= eight + tables
    assert eight <= whole + tables


@given(NAMES, TENSORS, st.booleans(), st.booleans(), DEVICES)
def test_every_storage_dies_once_and_after_its_birth(
    name: str,
    tensors: list[tuple[tuple[int, ...], int]],
    masters: bool,
    clip: bool,
    device: Device,
) -> None:
    timeline, parameters = on_timeline(*tensors)
    optimizer = Optimizer(name=name, has_masters=masters)
    for _ in range(2):
        optimizer_phase(timeline, optimizer, parameters, device=device, clip=clip)
        give_gradients(timeline, parameters)
    alive: set[int] = set()
    for event in timeline.events():
        if event.action == "alloc":
            alive.add(event.storage)
        else:
            alive.remove(event.storage)
    kept = {s for states in optimizer.state.states.values() for s in states}
    kept |= set(optimizer.state.shared) | {m.storage for m in optimizer.state.masters.values()}
    kept |= {p.storage for p in parameters} | {p.gradient for p in parameters}
    assert alive == kept
