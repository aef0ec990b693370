from __future__ import annotations

from rigsize.run.tally import CATEGORIES, Tally, named


def test_the_peak_is_rebuilt_from_the_windows_events() -> None:
    # 100 kept; +50 +30 (180, the peak), -50, +20: 150 at the end.
    tally = Tally({1: 100}, keeps_peak=True)
    tally.step, tally.phase = 1, "forward"
    tally.add(2, 50, "first")
    tally.add(3, 30, "second")
    tally.remove(2)
    tally.add(4, 20)
    tally.close_window()
    assert (tally.bytes, tally.peak_bytes) == (150, 180)
    assert sorted(one.num_bytes for one in tally.peak.live) == [30, 50, 100]
    assert tally.peak.total_bytes == 180
    assert (tally.peak.step, tally.peak.phase) == (1, "forward")


def test_a_lower_window_leaves_the_peak_as_it_was() -> None:
    tally = Tally({}, keeps_peak=True)
    tally.add(1, 100)
    tally.close_window()
    tally.remove(1)
    tally.add(1, 60)
    tally.close_window()
    assert [one.num_bytes for one in tally.peak.live] == [100]


def test_a_name_belongs_to_the_allocation_and_not_to_its_address() -> None:
    # Address 7 holds a temporary of 40 at the peak, and a gradient of 10 afterwards.
    tally = Tally({1: 5}, keeps_peak=True)
    tally.name({1: "weights"})
    tally.add(7, 40)
    tally.remove(7)
    tally.add(7, 10)
    tally.name({7: "gradients", 99: "inputs"})
    tally.close_window()
    found = tally.peak.by_category()
    assert found == dict.fromkeys(CATEGORIES, 0) | {"weights": 5, "rest": 40}


def test_what_was_not_counted_when_born_is_not_when_it_dies() -> None:
    tally = Tally({1: 5})
    tally.remove(2)
    assert tally.bytes == 5


def test_the_first_category_that_claims_an_address_has_it() -> None:
    assert named([("weights", [1, 2]), ("optimizer_states", [2, 3])]) == {
        1: "weights",
        2: "weights",
        3: "optimizer_states",
    }
