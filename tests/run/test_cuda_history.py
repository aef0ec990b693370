from __future__ import annotations

from rigsize.run.cuda_history import replayed


def entry(time_us: int, action: str, addr: int, size: int, **more: object) -> dict[str, object]:
    return {"time_us": time_us, "action": action, "addr": addr, "size": size, **more}


def test_the_allocators_trace_gives_the_peak_and_who_held_it() -> None:
    # 512 of weights while loading; in step 1 a temporary of 1,024 on top of 2,048 of gradients.
    frames = [{"name": "step", "filename": "/a/loop.py", "line": 3}]
    trace = [
        entry(10, "alloc", 1, 512),
        entry(20, "alloc", 2, 2048, frames=frames),
        entry(30, "alloc", 3, 1024),
        entry(35, "free_requested", 3, 1024),
        entry(36, "free_completed", 3, 1024),
        entry(50, "alloc", 3, 256),
    ]
    marks = [
        (15, 1, "backward", {1: "weights"}),
        (40, 1, "optimizer", {1: "weights", 2: "gradients"}),
        (60, 1, "optimizer", {3: "optimizer_states"}),
    ]
    tally = replayed(trace, marks)
    assert tally.peak_bytes == 3584
    assert (tally.peak.step, tally.peak.phase) == (1, "backward")
    found = {name: size for name, size in tally.peak.by_category().items() if size}
    assert found == {"weights": 512, "gradients": 2048, "rest": 1024}
    assert [one.op for one in tally.peak.live if one.op] == ["step (loop.py:3)"]
    assert tally.bytes == 512 + 2048 + 256
