"""On which stream real `fully_shard` allocates, on the fake accelerator and a fake process group.

Nothing is computed; the host's code runs as on a GPU. What is born while another stream than the
compute stream is current is told in order, by stream and bytes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from tests.program.fsdp_referee import Sharding, config_of, fake_world, half_reduce
from tests.trace.tiny import SIZES
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode

from rigsize.program.timeline import ALL_GATHER, ALL_REDUCE, COPY_IN, REDUCE_SCATTER
from rigsize.run.job import options_of
from rigsize.run.step import StepRecipe, micro_step
from rigsize.trace import fake_accelerator
from rigsize.trace.model import build, forward_arguments, load_config, make_batch, materialize
from rigsize.train.parallel import apply_fully_shard

NAMES = {
    "all_gather_copy_in_stream": COPY_IN,
    "all_gather_stream": ALL_GATHER,
    "reduce_scatter_stream": REDUCE_SCATTER,
    "all_reduce_stream": ALL_REDUCE,
}
Born = tuple[int, int]
"""(stream, bytes)."""


class Births(TorchDispatchMode):
    """New storages of the fake device, with the stream that was current."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current: list[Any] = []
        self.found: list[tuple[Any, int]] = []
        self.known: dict[int, Any] = {}

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known[storage._cdata] = storage  # kept, so that no address comes twice
                    if self.current:
                        self.found.append((self.current[-1], storage.nbytes()))
        return out


def device_mesh(run: Sharding, device: torch.device) -> DeviceMesh:
    """`init_device_mesh` takes the underscore in the fake device's name for an index."""
    ranks = torch.arange(run.world)
    if run.parallel != "hsdp":
        return DeviceMesh(device.type, ranks)
    grid = ranks.view(run.mesh.replicas, run.mesh.shard)
    return DeviceMesh(device.type, grid, mesh_dim_names=("replicate", "shard"))


def births(run: Sharding) -> list[Born]:
    """What one micro-step makes on other streams than the compute stream."""
    device = fake_accelerator.register()
    options = options_of(run.workload, run.strategy)
    config = load_config(config_of(run.family), options)
    model, told = build(config, options, "meta"), Births()
    with fake_world(run.world, str(device)) as world:
        mesh = device_mesh(run, device)
        with (
            mock.patch("torch.distributed.device_mesh.init_device_mesh", return_value=mesh),
            mock.patch.object(fake_accelerator._BackendModule, "stream", told.stream),
            half_reduce() if run.half_reduce else contextlib.nullcontext(),
            torch.autograd.set_multithreading_enabled(False),
            fake_accelerator.fake_mode(),
        ):
            apply_fully_shard(model, run.strategy, world)
            materialize(model, device)
            batch = make_batch(options, {**SIZES}, device, padded=True)
            recipe = StepRecipe(task=run.task, device_type=device.type)
            with told, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # XLM-R's logits are a view
                micro_step(model, batch | forward_arguments(config, options), recipe)
    context: Any = model._get_fsdp_state()._comm_ctx  # type: ignore[operator]
    numbers = {id(getattr(context, name)): number for name, number in NAMES.items()}
    return [(numbers[id(stream)], size) for stream, size in told.found]
