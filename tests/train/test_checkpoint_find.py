"""Names of checkpoints, what the ranks agree on, and who hashes what."""

from __future__ import annotations

from pathlib import Path

from rigsize.train.checkpoint_find import Order, View, common, folders, leftovers, share, unused

HERE, THERE = ("host-a", 1, 2), ("host-b", 1, 2)


def view(
    digests: dict[Order, str],
    problems: dict[Order, str] | None = None,
    place: tuple[str, int, int] = HERE,
) -> View:
    return View(place=place, digests=digests, problems=problems or {})


def test_names(tmp_path: Path) -> None:
    names = ["step-9", "step-10", "step-10-1", "step-10.tmp", "step-9.old.tmp", "step-x", "step-1"]
    for name in names[:-1]:
        (tmp_path / name).mkdir()
    (tmp_path / "step-1").symlink_to(tmp_path / "step-9")
    assert [order for order, _ in folders(tmp_path)] == [(9, 0), (10, 0), (10, 1)]
    assert [path.name for path in leftovers(tmp_path)] == ["step-10.tmp", "step-9.old.tmp"]
    assert unused(tmp_path, 8).name == "step-8"
    assert unused(tmp_path, 9).name == "step-9-1"
    assert unused(tmp_path, 10).name == "step-10-2"


def test_only_what_all_ranks_see_alike_is_common() -> None:
    views = [
        view({(1, 0): "a", (2, 0): "b", (3, 0): "c", (4, 0): "d"}),
        view({(1, 0): "a", (2, 0): "other", (4, 0): "d"}, {(5, 0): "state.json is missing"}),
    ]
    assert common(views) == [
        ((5, 0), "state.json is missing"),
        ((4, 0), ""),
        ((3, 0), "not every rank sees it"),
        ((2, 0), "the ranks see different ones"),
        ((1, 0), ""),
    ]


def test_each_place_hashes_every_file_once() -> None:
    """Ranks 0 and 2 share a disk, rank 1 has its own copy."""
    views = [view({}), view({}, place=THERE), view({})]
    names = ["a", "b", "c"]
    assert [share(names, rank, views) for rank in range(3)] == [["a", "c"], names, ["b"]]
