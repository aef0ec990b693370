"""What one rank keeps in host memory because it left the device: tensor by tensor.

Each function mirrors one implementation and names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rigsize.memory.host_records import HostItem, Weight
from rigsize.program.foreach import place
from rigsize.program.mesh import Mesh
from rigsize.program.optimizer import MIN_OFFLOADED_NUMEL, Optimizer, optimizer_phase
from rigsize.program.timeline import Parameter, Timeline
from rigsize.spec import Strategy

__all__ = [
    "HostStep",
    "fsdp_items",
    "optimizer_items",
    "saved_items",
    "step_items",
    "step_on_host",
]

_NO_STORAGE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStep:
    """An optimizer step on the host: states, and the most that its temporaries take at once."""

    states_bytes: int
    temporaries_bytes: int


def fsdp_items(
    weights: Iterable[Weight], strategy: Strategy, mesh: Mesh, *, training: bool = True
) -> Iterator[HostItem]:
    """FSDP2's `CPUOffloadPolicy(pin_memory=True)`: shards, their gradients, states, the step.

    Parameters: `FSDPParam._init_sharded_param` and `reset_sharded_param` pin each shard. Gradients:
    `foreach_reduce` copies each to the host, pinned while it does not accumulate, else pageable,
    one at a time. Source: torch/distributed/fsdp/_fully_shard (`_fsdp_param.py`,
    `_fsdp_collectives.py`). Rank 0's shards, the largest.
    """
    shards = [weight.shard(mesh.shard) for weight in weights]
    for shard in shards:
        size = shard.numel * shard.itemsize
        yield HostItem(row="offload.parameters", num_bytes=size, pinned=True)
    trained = [shard for shard in shards if shard.trainable and training]
    for shard in trained:
        size = shard.numel * shard.itemsize
        yield HostItem(row="offload.gradients", num_bytes=size, pinned=True)
    if strategy.accumulation > 1 and trained:
        largest = max(shard.numel * shard.itemsize for shard in trained)
        yield HostItem(row="offload.gradients", num_bytes=largest)
    yield from step_items(trained, strategy)


def optimizer_items(weights: Iterable[Weight], strategy: Strategy) -> Iterator[HostItem]:
    """`run.optimizers.HostOptimizer`: pinned copies of weights and gradients, states, the step.

    The layout of torchao's `CPUOffloadOptimizer` (torchao/optim/cpu_offload.py): tensors below its
    `minimal_size` stay on the device.
    """
    master = strategy.policy.master_bytes
    moved = [w for w in weights if w.trainable and w.numel >= MIN_OFFLOADED_NUMEL]
    for weight in moved:
        size = weight.numel * (master or weight.itemsize)
        yield HostItem(row="offload.parameters", num_bytes=size, pinned=True)
        yield HostItem(row="offload.gradients", num_bytes=size, pinned=True)
    yield from step_items([replace(w, itemsize=master or w.itemsize) for w in moved], strategy)


def saved_items(saved: Mapping[str, Sequence[int]]) -> Iterator[HostItem]:
    """`torch.autograd.graph.save_on_cpu(pin_memory=True)`: a copy for every save of every node.

    Weights and tensors that two nodes save are copied each time (torch/autograd/graph.py). All of
    a forward pass are alive when the backward pass begins.
    """
    rows = {"save": "offload.activations", "save_weight": "offload.saved_weights"}
    for name, sizes in saved.items():
        for size in sizes:
            yield HostItem(row=rows[name], num_bytes=size, pinned=True)


def step_items(stepped: Sequence[Weight], strategy: Strategy) -> Iterator[HostItem]:
    """States and temporaries of a step on the host."""
    step = step_on_host(stepped, strategy)
    yield HostItem(row="offload.optimizer_states", num_bytes=step.states_bytes)
    yield HostItem(row="temporaries", num_bytes=step.temporaries_bytes)


def step_on_host(stepped: Sequence[Weight], strategy: Strategy) -> HostStep:
    """The optimizer's own events (`program.optimizer`), with the host for a device."""
    weights = tuple((w.name, w.shape, w.itemsize) for w in stepped)
    return _stepped(weights, strategy.optimizer, strategy.max_grad_norm is not None)


@lru_cache(maxsize=64)  # equal for all ways of a plan that spread the same model alike
def _stepped(
    weights: tuple[tuple[str, tuple[int, ...], int], ...], optimizer_name: str, clips: bool
) -> HostStep:
    timeline, start = Timeline(), 0
    parameters = [
        Parameter(name, shape, itemsize, True, _NO_STORAGE) for name, shape, itemsize in weights
    ]
    optimizer = Optimizer(name=optimizer_name)
    for _ in range(2):  # the first step makes the states
        start = len(timeline.operations)
        for parameter in parameters:  # counted as items of their own
            parameter.gradient = timeline.alloc(0, place("gradients", "host"))
        optimizer_phase(timeline, optimizer, parameters, device="cpu", clip=clips)
    return _weigh(timeline, start)


def _weigh(timeline: Timeline, start: int) -> HostStep:
    """States of the whole timeline, and the peak of what comes and goes from `start` on."""
    places, sizes = timeline.places, timeline.sizes
    states = sum(s for p, s in zip(places, sizes, strict=True) if p.category == "optimizer_states")
    live = peak = 0
    for operation in timeline.operations[start:]:
        live += sizes[operation] if operation >= 0 else -sizes[~operation]
        peak = max(peak, live)
    return HostStep(states_bytes=states, temporaries_bytes=peak)
