import pytest

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.steptime import collective
from rigsize.steptime.collectives import sent_share

A100 = find_accelerator("A100-80GB-SXM")
L40 = find_accelerator("L40")


def test_a_measured_size_is_its_measurement() -> None:
    answer = collective(A100, "all_reduce", 33554432, 8)
    assert answer.seconds == pytest.approx(0.367e-3, rel=1e-4)
    assert answer.basis == "measured"


def test_between_sizes_linear_in_logarithms() -> None:
    # Between .2165 ms at 16 MiB and .367 ms at 32 MiB, halfway: sqrt(.2165 * .367) = .28188 ms.
    halfway = round(16 * 2**20 * 2**0.5)
    assert collective(A100, "all_reduce", halfway, 8).seconds == pytest.approx(2.8188e-4, rel=1e-3)


def test_beyond_the_table_the_last_bandwidth() -> None:
    assert collective(A100, "all_reduce", 2**30, 8).seconds == pytest.approx(
        2 * 4.2259e-3, rel=1e-4
    )


def test_between_counts_lies_between() -> None:
    two, three, four = (collective(A100, "all_gather", 2**26, n).seconds for n in (2, 3, 4))
    assert two < three < four
    assert collective(A100, "all_gather", 2**26, 3).basis == "derived"


def test_pcie_where_no_link_joins_the_cards() -> None:
    # L40: PCIe 4 x16 at 32 GB/s x .6 between two; 1 GB all-reduced sends 1 GB from each.
    answer = collective(L40, "all_reduce", 10**9, 2)
    assert answer.seconds == pytest.approx(1 / (32 * 0.6) + 11e-6, rel=1e-3)
    assert answer.basis == "assumed"


def test_over_nodes_by_hand() -> None:
    inside = sum(collective(A100, op, 10**9, 8).seconds for op in ("reduce_scatter", "all_gather"))
    # Two nodes at 25 GB/s: 2 * 1/2 * 1 GB = 40 ms, and two exchanges of 15 us.
    answer = collective(A100, "all_reduce", 10**9, 16, nodes=2, network_bytes_per_s=25e9)
    assert answer.seconds == pytest.approx(inside + 0.04 + 30e-6)
    assumed = collective(A100, "all_reduce", 10**9, 16, nodes=2)
    assert assumed.note == "100 Gbit/s between nodes"


def test_shares_and_nothing_to_do() -> None:
    assert sent_share("all_reduce", 4) == 1.5
    assert sent_share("reduce_scatter", 4) == 0.75
    assert collective(A100, "all_reduce", 10**9, 1).seconds == 0
    assert collective(A100, "all_reduce", 0, 8).seconds == 0
    with pytest.raises(UnsupportedCombination, match="not the same number"):
        collective(A100, "all_reduce", 1, 9, nodes=2)


def test_a_table_of_a_broken_node_says_so() -> None:
    # Eight L40S exchange 1.4 GB/s over links of 32; two reach 20.
    card = find_accelerator("L40S")
    for ranks, broken in ((2, False), (4, False), (6, True), (8, True)):
        note = collective(card, "all_reduce", 1 << 28, ranks).note
        assert ("broken topology" in note) == broken
    assert not collective(find_accelerator("RTX-PRO-6000-BSE"), "all_reduce", 1 << 28, 8).note
