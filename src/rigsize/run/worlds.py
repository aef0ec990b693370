"""The ranks of a measurement: real ones of torchrun, a group of one, or a fake group of any size.

In a fake process group collectives do nothing and take no time: one process holds what one rank of
N holds. What it cannot show is said in `FAKE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from rigsize.errors import SpecError
from rigsize.run.job import Job
from rigsize.train.parallel import World, start_world, stop_world
from rigsize.units import format_bytes

__all__ = [
    "FAKE",
    "CardUse",
    "card_use",
    "enter_world",
    "leave_world",
    "limit_allocator",
    "world_note",
]

FAKE = (
    "fake process group: one rank of {size}, communication and its memory left out, times"
    " meaningless"
)
_ONE = "one rank was run: what DDP holds on a rank does not depend on how many there are"


def enter_world(job: Job) -> World:
    """The ranks that the job runs on; `leave_world` ends their process group."""
    size = job.fake_world
    return start_world(job.strategy, job.device) if size is None else _fake_world(job, size)


def leave_world(world: World, *, clean: bool) -> None:
    """Leaves the group, unless other ranks may still wait in a collective for this one."""
    if clean or world.fake or world.size == 1:
        stop_world(world)


def _fake_world(job: Job, size: int) -> World:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if job.device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    place = torch.device("cuda", 0) if job.device == "cuda" else torch.device("cpu")
    return World(size=size, device=place, distributed=True, fake=True)


def world_note(job: Job, world: World) -> str:
    """What qualifies figures of a world that is not really there."""
    if world.fake:
        return FAKE.format(size=world.size)
    asked = job.options.world
    return _ONE if asked is not None and asked > world.size else ""


@dataclass(slots=True)
class CardUse:
    """What the driver says of the card outside torch's allocator, in bytes."""

    context_start_bytes: int | None = None
    communicator_bytes: int | None = None
    unknown: dict[str, str] = field(default_factory=dict)


def card_use(world: World, used_before_bytes: int | None) -> CardUse:
    """The context after the first tensor, and what the first collective adds to it."""
    if world.device.type != "cuda":
        reason = "not on CPU"
        return CardUse(
            unknown={"context_start_bytes": reason, "communicator_bytes": reason},
        )
    tensor = torch.zeros(1, device=world.device)
    started = _outside_allocator() - (used_before_bytes or 0)
    use = CardUse(context_start_bytes=max(started, 0))
    if world.distributed and not world.fake:
        dist.all_reduce(tensor)
        grown = _outside_allocator() - (used_before_bytes or 0) - started
        use.communicator_bytes = max(grown, 0)
    else:
        use.unknown["communicator_bytes"] = "no collective was really made"
    del tensor
    torch.cuda.empty_cache()  # or the model would begin in this tensor's segment
    return use


def limit_allocator(cap_bytes: int | None, use: CardUse) -> int | None:
    """Lets the allocator have the cap less the context; returns that limit, None without a cap."""
    if cap_bytes is None or use.context_start_bytes is None:
        return None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    limit = min(cap_bytes, total) - use.context_start_bytes
    if limit <= 0:
        raise SpecError(
            "cap",
            cap_bytes,
            f"the context alone takes {format_bytes(use.context_start_bytes)}",
            hint="a larger cap",
        )
    torch.cuda.memory.set_per_process_memory_fraction(limit / total)
    return limit


def _outside_allocator() -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())
