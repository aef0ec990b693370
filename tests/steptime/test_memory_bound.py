import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.steptime import memory_bound
from rigsize.steptime.memory_bound import traffic_of

A100 = find_accelerator("A100-80GB-PCIe")


def test_a_measured_card_by_hand() -> None:
    # NeuSight: share .876 of 1935 GB/s, nothing beyond the event floor: 1 GB takes .590 ms + 3 us.
    answer = memory_bound(A100, 10**9)
    assert answer.seconds == pytest.approx(3e-6 + 1e9 / (1.935e12 * 0.876), rel=1e-3)
    assert answer.basis == "derived"


def test_measured_add_of_three_passes() -> None:
    # NeuSight, A100 80GB PCIe: add of 2097152 x 2048 fp32 took 30.374 ms.
    moved = 3 * 4 * 2097152 * 2048
    assert memory_bound(A100, moved).seconds == pytest.approx(30.374e-3, rel=0.05)


def test_classes_are_ordered() -> None:
    kinds = ("elementwise", "layernorm", "layernorm-backward", "embedding-backward")
    times = [memory_bound(A100, 10**9, kind).seconds for kind in kinds]
    assert times == sorted(times)
    assert memory_bound(A100, 10**9, "embedding-backward").basis == "assumed"


def test_unmeasured_cards_are_less_sure() -> None:
    l40s = find_accelerator("L40S")
    assert traffic_of(l40s, "elementwise").sigma > traffic_of(A100, "elementwise").sigma


def test_a_large_cache_serves_what_was_just_written() -> None:
    # L40S: products served up to 17.9 MB 24.9 times faster. 17.866 MB: half from memory, half at
    # 1/24.854, at 864 GB/s times the mean share of the measured cards.
    l40s = find_accelerator("L40S")
    moved, share = 17_866_000, traffic_of(l40s, "elementwise").share
    by_hand = 3e-6 + moved * (0.5 + 0.5 / 24.854) / (864e9 * share)
    assert memory_bound(l40s, moved).seconds == pytest.approx(by_hand, rel=1e-3)
    cold = memory_bound(l40s, moved, "optimizer").seconds
    assert cold == pytest.approx(3e-6 + moved / (864e9 * share), rel=1e-3)
    sizes = [2**n for n in range(12, 32)]
    times = [memory_bound(l40s, size).seconds for size in sizes]
    assert times == sorted(times)


def test_the_host_has_no_model() -> None:
    with pytest.raises(UnsupportedCombination):
        memory_bound(find_accelerator("cpu"), 1)


@given(st.integers(1, 2**40), st.integers(1, 2**30))
def test_more_bytes_take_longer(moved: int, more: int) -> None:
    assert memory_bound(A100, moved + more).seconds > memory_bound(A100, moved).seconds
