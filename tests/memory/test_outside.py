"""What lies outside the allocator, by hand."""

from __future__ import annotations

import pytest

from rigsize.hardware import find_accelerator
from rigsize.memory.outside import LINKED, UNLINKED, communication, communicators, outside
from rigsize.program.mesh import ALONE, Mesh

HSDP = Mesh(shard=8, replicas=2, per_node=8)


@pytest.mark.parametrize(
    ("mesh", "number"),
    [
        (ALONE, 0),
        (Mesh(replicas=4), 1),  # ddp
        (Mesh(shard=4), 1),  # fsdp, zero: gather and reduce share one
        (HSDP, 2),
        (Mesh(shard=1, replicas=8), 1),
    ],
)
def test_communicators_of_a_rank(mesh: Mesh, number: int) -> None:
    assert communicators(mesh) == number


def test_linked_devices_keep_more() -> None:
    linked = communication(Mesh(shard=4), find_accelerator("A100-80GB-SXM"))
    alone = communication(Mesh(shard=4), find_accelerator("L4"))
    assert linked is not None
    assert alone is not None
    assert (linked.value, linked.basis) == (LINKED.value, "assumed")
    assert alone.value == UNLINKED.value
    assert alone.value.high <= linked.value.low


def test_two_communicators_take_twice_as_much() -> None:
    found = communication(HSDP, find_accelerator("H100-80GB-SXM"))
    assert found is not None
    assert tuple(found.value) == tuple(2 * size for size in LINKED.value)


def test_bands_add_up() -> None:
    card = find_accelerator("A100-80GB-SXM")
    assert outside(ALONE, card) == card.context_bytes.value
    assert outside(Mesh(shard=2), card) == tuple(
        a + b for a, b in zip(card.context_bytes.value, LINKED.value, strict=True)
    )


def test_a_cpu_has_none() -> None:
    assert communication(Mesh(shard=4), find_accelerator("cpu")) is None
