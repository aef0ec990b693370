"""The referee of FSDP2's offload: real `fully_shard` on the fake accelerator.

On a CPU, shards that are offloaded are where they were. Under the fake
accelerator the same code runs its device's branches; every storage of the device is followed from
birth to death, those that FSDP2 resizes too.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tests.program.fsdp_referee import Sharding, Watched, config_of, point_of, profile_of, source_of
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.program import fsdp, fsdp_offload
from rigsize.program.build import Program, build_program
from rigsize.program.environment import environment_of
from rigsize.run.job import options_of
from rigsize.run.step import StepRecipe, micro_step
from rigsize.trace import fake_accelerator
from rigsize.trace.model import build, forward_arguments, load_config, make_batch, materialize
from rigsize.train.parallel import World, apply_fully_shard

GPU = "A100-40GB"
HOOKS = ("pre_forward", "post_forward", "pre_backward", "post_backward")


@dataclass(slots=True)
class Hook:
    """What a hook allocates: nothing but FSDP2 runs in it."""

    name: str
    grown_bytes: int
    """Between its beginning and its end; negative where it frees."""
    peak_bytes: int
    """At most, beyond its beginning."""


class Account:
    """Bytes alive and the hooks that were told of."""

    def __init__(self) -> None:
        self.live = 0
        self.hooks: list[Hook] = []
        self._open: tuple[str, int, int] | None = None

    def grow(self, num_bytes: int) -> None:
        self.live += num_bytes
        if self._open is not None:
            name, start, peak = self._open
            self._open = (name, start, max(peak, self.live))

    def begin(self, name: str) -> None:
        self._open = (name, self.live, self.live)

    def end(self) -> None:
        assert self._open is not None
        name, start, peak = self._open
        self._open = None
        if (peak, self.live) != (start, start):
            self.hooks.append(Hook(name, self.live - start, peak - start))


class Follower(TorchDispatchMode):
    """The bytes of every storage of the device that was born under it, by the stream it is of."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.account = device, Account()
        self._sizes: dict[int, int] = {}
        self._refs: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self._born(tensor.untyped_storage())
        return out

    def adopt(self, tensors: Iterable[torch.Tensor]) -> None:
        """What was there before is not counted."""
        for tensor in tensors:
            storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
            self._sizes[storage._cdata] = 0

    def _born(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._refs[key] = weakref.ref(storage, functools.partial(self._died, key))
            self._sizes[key] = 0
            self.resized(storage, storage.nbytes())

    def resized(self, storage: Any, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._sizes:
            self.account.grow(num_bytes - self._sizes[key])
            self._sizes[key] = num_bytes

    def _died(self, key: int, _ref: Any) -> None:
        self.account.grow(-self._sizes.pop(key, 0))
        self._refs.pop(key, None)


@contextlib.contextmanager
def fake_ranks(size: int) -> Iterator[DeviceMesh]:
    """`init_device_mesh` wants a device whose name is of letters alone."""
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield DeviceMesh(fake_accelerator.DEVICE_TYPE, list(range(size)))
    finally:
        dist.destroy_process_group()


def real(run: Sharding, *, offload: bool) -> list[Hook]:
    """The hooks of one micro-step of the real model."""
    device = fake_accelerator.register()
    options = options_of(run.workload, run.strategy)
    with fake_ranks(run.world) as mesh, fake_accelerator.fake_mode():
        config = load_config(config_of(run.family), options)
        model = build(config, options, "meta")
        materialize(model, device)
        _shard(model, run, mesh, offload=offload)
        batch = make_batch(options, point_of(run.task), device, padded=True)
        batch |= forward_arguments(config, options)
        recipe = StepRecipe(task=run.task, device_type=device.type, hold_output=True)
        follower = Follower(device.type)
        with _watched(follower), torch.autograd.set_multithreading_enabled(False), follower:
            follower.adopt([*model.parameters(), *model.buffers(), *batch_tensors(batch)])
            micro_step(model, batch, recipe)
    return follower.account.hooks


def batch_tensors(batch: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


def _shard(model: torch.nn.Module, run: Sharding, mesh: DeviceMesh, *, offload: bool) -> None:
    """By the function that shards real runs."""
    world = World(size=run.world, device=fake_accelerator.register(), distributed=True, fake=True)
    strategy = replace(run.strategy, offload="cpu" if offload else "none")
    with mock.patch("torch.distributed.device_mesh.init_device_mesh", return_value=mesh):
        apply_fully_shard(model, strategy, world)


@contextlib.contextmanager
def _watched(follower: Follower) -> Iterator[None]:
    """Tells of each hook's beginning and end, and of every storage that is resized."""
    group = _fsdp_param_group.FSDPParamGroup

    def hooked(name: str) -> Any:
        original = getattr(group, name)

        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            layer = (self._module_fqn or "").rpartition(".")[2]
            follower.account.begin(f"{name} of {f'layer {layer}' if layer else 'root'}")
            try:
                return original(self, *args, **kwargs)
            finally:
                follower.account.end()

        return mock.patch.object(group, name, hook)

    def resizing(name: str) -> Any:
        original = getattr(_fsdp_param, name)

        def resize(tensor: torch.Tensor) -> None:
            original(tensor)
            storage = tensor.untyped_storage()
            follower.resized(storage, storage.size())

        return resize

    with contextlib.ExitStack() as stack:
        for name in HOOKS:
            stack.enter_context(hooked(name))
        for name in ("alloc_storage", "free_storage"):
            resize = resizing(name)
            stack.enter_context(mock.patch.object(_fsdp_param, name, resize))
            if hasattr(_fsdp_param_group, name):
                stack.enter_context(mock.patch.object(_fsdp_param_group, name, resize))
        yield


# -- the Program ----------------------------------------------------------------------------------


class WatchedOffload(Watched, fsdp_offload.OffloadedShards):
    """The same marks in the offloaded way."""


def predicted(run: Sharding, *, offload: bool) -> list[Hook]:
    """The hooks of a later step's first micro-step."""
    program = program_of(run, offload=offload)
    timeline, account = program.timeline, Account()
    for operation in program.slices["micro"]:
        storage = operation if operation >= 0 else ~operation
        place = timeline.places[storage]
        if place.category != "mark":
            size = timeline.sizes[storage]
            account.grow(size if operation >= 0 else -size)
        elif operation >= 0 and place.op.endswith(" begins"):
            account.begin(place.op.removesuffix(" begins"))
        elif operation >= 0:
            account.end()
    return account.hooks


def program_of(run: Sharding, *, offload: bool) -> Program:
    strategy = replace(run.strategy, offload="cpu" if offload else "none")
    key = trace_key(source_of(run.family), run.workload, strategy, device="cuda")
    environment = environment_of(find_accelerator(GPU), strategy)
    with (
        mock.patch.object(fsdp, "FullySharded", Watched),
        mock.patch.object(fsdp_offload, "OffloadedShards", WatchedOffload),
    ):
        profile = profile_of(key, run.family)
        return build_program(profile, point_of(run.task), strategy, environment, run.mesh)
