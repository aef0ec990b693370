"""One model on several devices, by the hand-made profiles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.program import tiny_generation, tiny_profile
from tests.program.tiny_profile import CPU, KIB, WEIGHTS

from rigsize.memory.replay import replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.generation import build_generation
from rigsize.program.placement import HOME, Placement, split
from rigsize.spec import Strategy

LAYERS = tuple(f"encoder.layer.{n}" for n in range(3))
MAP = {
    "embeddings": 0,
    "encoder.layer.0": 0,
    "encoder.layer.1": 1,
    "encoder.layer.2": 1,
    "classifier": 1,
}


def placement(devices: int = 2) -> Placement:
    return Placement.of(MAP, LAYERS, devices)


def one_pass() -> Program:
    profile = tiny_profile.profile(use="inference")
    return build_program(profile, tiny_profile.POINT, Strategy(), CPU)


def generating(B: int = 2, S: int = 8, new: int = 20) -> Program:
    point = {"B": B, "S": S, "T": 0, "C": S + new - 1}
    return build_generation(tiny_generation.profile(), point, Strategy(), CPU)


def loaded(program: Program) -> int:
    return sum(program.timeline.sizes[o] for o in program.slices["load"] if o >= 0)


def alive(program: Program, names: list[str]) -> set[int]:
    found: set[int] = set()
    for name in names:
        for operation in program.slices[name]:
            if operation >= 0:
                found.add(operation)
            else:
                found.remove(~operation)
    return found


def test_a_module_is_where_its_path_or_a_part_of_it_says() -> None:
    where = placement()
    assert where.of_module("encoder.layer.1.dense.weight") == 1
    assert where.of_module("embeddings.word_embeddings.weight") == 0
    assert where.of_module("encoder") == HOME
    assert [where.of_layer(group) for group in (1, 2, 3)] == [0, 1, 1]


def test_what_no_device_has_room_for_is_counted_on_the_last() -> None:
    found = Placement.of({"embeddings": 0, "encoder": "disk"}, LAYERS, 2)
    assert found.of_layer(3) == 1
    assert found.left_out == ("encoder",)


def test_weights_by_hand() -> None:
    parts = split(one_pass(), placement())
    # The embeddings, their buffer, the batch and a layer of 4,160 parameters; two layers and head.
    assert loaded(parts[0]) == 256_000 + KIB + 128 + 4 * 4160
    assert loaded(parts[1]) == 2 * 4 * 4160 + 512
    assert sum(map(loaded, parts)) == WEIGHTS + KIB + 128


def test_the_first_layer_of_a_device_gets_a_copy_of_the_hidden_states() -> None:
    parts = split(one_pass(), placement())
    sent = [
        o
        for o in parts[1].slices["first"]
        if o >= 0 and parts[1].timeline.places[o].op == "send_to_device"
    ]
    # Layer 2 alone reads from the other device: 256 x 16 bytes, what layer 1 has made.
    assert [parts[1].timeline.sizes[o] for o in sent] == [4096]
    assert ~sent[0] in parts[1].slices["first"]


def test_every_device_runs_the_whole_schedule() -> None:
    program = generating()
    for part in split(program, placement()):
        assert part.step(0) == program.step(0)
        assert not alive(part, part.step(0)[:-1]) & alive(program, ["load"])
        assert not alive(part, part.step(0))


@given(st.integers(1, 4), st.integers(2, 20), st.integers(2, 30))
def test_nothing_is_lost_between_devices(B: int, S: int, new: int) -> None:
    whole = replay_exact(generating(B, S, new)).allocated_peak_bytes
    parts = [replay_exact(p) for p in split(generating(B, S, new), placement())]
    assert max(p.allocated_peak_bytes for p in parts) <= whole + 256 * B * S
    assert sum(p.allocated_peak_bytes for p in parts) >= whole
