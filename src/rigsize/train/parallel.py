"""One device or many: the process group, and the model as DDP or FSDP2 hold it.

The recipe for FSDP2 is torchtitan's: `fully_shard` on every layer, then on the root, which keeps
embeddings and head (tied ones once). Ranks other than 0 never hold the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.spec import Strategy
from rigsize.trace.capture import find_stacks
from rigsize.trace.model import materialize

__all__ = [
    "World",
    "apply_fully_shard",
    "before_micro",
    "check_ranks",
    "load_full",
    "reshard",
    "shard",
    "start_world",
    "stop_world",
    "unwrap",
]

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""gloo beside nccl: clipping sums norms of gradients that CPU offload keeps on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device
    distributed: bool = False
    """A process group is there; also with a single rank under DDP or FSDP."""
    fake: bool = False
    """A fake process group: memory is a rank's own, numbers and times mean nothing."""

    @property
    def first(self) -> bool:
        """The rank that talks and writes."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks."""
        if not self.distributed or self.fake:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def any(self, happened: bool) -> bool:
        """Whether it happened on any rank."""
        return self.sum(float(happened))[0] > 0

    def gather(self, thing: Any) -> list[Any]:
        """The thing of every rank, in their order; plain data only."""
        if not self.distributed or self.fake:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing)
        return found

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.distributed and not self.fake:
            dist.barrier()


def start_world(strategy: Strategy, device: str) -> World:
    """The process group of torchrun's environment, or of this process alone.

    Raises SpecError for a world that the strategy has no use for, MeasurementFailed where the
    ranks do not find one another.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _place(device, local_rank)
    if strategy.parallel == "single":
        if size > 1:
            raise SpecError(
                "parallel",
                "single",
                f"torchrun started {size} ranks, and each would train its own model",
                allowed=("ddp", "fsdp"),
            )
        return World(device=place)
    if not dist.is_initialized():
        _initialise(device, size)
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=local_rank,
        device=place,
        distributed=True,
    )


def _place(device: str, local_rank: int) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise MeasurementFailed("device", "cuda", "torch sees no CUDA device", hint="--device cpu")
    if local_rank >= torch.cuda.device_count():
        raise MeasurementFailed(
            "ranks",
            local_rank + 1,
            f"this node has {torch.cuda.device_count()} CUDA devices, one a rank",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _initialise(device: str, size: int) -> None:
    try:
        if "RANK" in os.environ:
            dist.init_process_group(_BACKENDS[device])
        else:
            assert size == 1
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(_BACKENDS[device], store=store, rank=0, world_size=1)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise MeasurementFailed(
            "ranks",
            address,
            f"the ranks did not find one another ({str(error).splitlines()[0]})",
            hint="a port in use? torchrun --standalone takes a free one; --rdzv-endpoint HOST:PORT",
        ) from error


def stop_world(world: World) -> None:
    """Leaves the process group."""
    if world.distributed and dist.is_initialized():
        dist.destroy_process_group()


Build = Callable[[str], torch.nn.Module]
"""A model on a device, `cpu` or `meta`; the same weights at every call on the CPU."""


def shard(
    build: Build, strategy: Strategy, world: World, *, training: bool = True
) -> torch.nn.Module:
    """The model as the strategy's ranks hold it, on the device, with `build`'s weights.

    Without training DDP has nothing to do: it sends gradients.
    """
    if strategy.parallel == "fsdp":
        return _fully_sharded(build, strategy, world)
    model = build("cpu").to(world.device)
    if strategy.parallel == "single" or not training:
        return model
    from torch.nn.parallel import DistributedDataParallel

    ids = [world.local_rank] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model,
        device_ids=ids,
        find_unused_parameters=has_unused(model),
        gradient_as_bucket_view=strategy.bucket_view,
    )


def has_unused(model: torch.nn.Module) -> bool:
    """Whether parameters get no gradient: the pooler of a bare backbone, which is mean-pooled."""
    return getattr(model, "pooler", None) is not None and not hasattr(model, "classifier")


def _fully_sharded(build: Build, strategy: Strategy, world: World) -> torch.nn.Module:
    model = build("meta")
    apply_fully_shard(model, strategy, world)
    home = torch.device("cpu") if strategy.offload == "cpu" else world.device
    materialize(model, home)
    _assert_sharded(model)
    if not world.fake:
        load_full(model, build("cpu") if world.first else None)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(world.device)
    return model


def apply_fully_shard(model: torch.nn.Module, strategy: Strategy, world: World) -> None:
    """Every layer of the stacks is a group of its own; what is left belongs to the root."""
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
    )

    options: dict[str, Any] = {"mesh": _device_mesh(strategy, world)}
    if not strategy.reshard_after_forward:
        options["reshard_after_forward"] = False  # torch's own default spares the root alone
    if strategy.policy.compute == "amp":
        half = getattr(torch, strategy.policy.half_dtype)
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    if strategy.offload == "cpu":
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    for _, layers in find_stacks(model):
        for layer in layers:
            fully_shard(layer, **options)
    fully_shard(model, **options)
    assert isinstance(model, FSDPModule)


def _device_mesh(strategy: Strategy, world: World) -> Any:
    """All ranks in a row, or under hsdp copies times shards; a node's ranks hold one copy."""
    from torch.distributed.device_mesh import init_device_mesh

    kind = world.device.type
    if strategy.parallel != "hsdp":
        return init_device_mesh(kind, (world.size,))
    shard = strategy.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    copies = world.size // shard
    return init_device_mesh(kind, (copies, shard), mesh_dim_names=("replicate", "shard"))


def _assert_sharded(model: torch.nn.Module) -> None:
    """Accelerate on a CPU silently gives DDP instead; ours must not."""
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is not sharded"


def load_full(model: torch.nn.Module, full: torch.nn.Module | None) -> None:
    """Weights and buffers of a whole model on rank 0 into the sharded one of every rank."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: Mapping[str, Any] = {} if full is None else full.state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(state), options=options)
    # What a state dict leaves out: rotary frequencies, position ids.
    theirs = {} if full is None else dict(full.named_buffers())
    for name, buffer in model.named_buffers():
        value = theirs[name].to(buffer.device) if full is not None else torch.empty_like(buffer)
        dist.broadcast(value, src=0)
        buffer.copy_(value)


def before_micro(model: torch.nn.Module) -> Callable[[bool], None]:
    """For `run.step.train_step`: DDP sums gradients at the last micro-step alone (`no_sync`).

    FSDP reduces at every one: kept whole, the gradients would be those of one device.
    """

    def tell(last: bool) -> None:
        if hasattr(model, "require_backward_grad_sync"):
            model.require_backward_grad_sync = last  # type: ignore[assignment]

    return tell


def reshard(model: torch.nn.Module) -> None:
    """Shards again what a forward pass without a backward one left whole: FSDP2's root."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside DDP; FSDP2 wraps nothing."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


def check_ranks(strategy: Strategy, asked: int | None) -> None:
    """Refuses ranks that nobody would use."""
    if asked is not None and asked > 1 and strategy.parallel == "single":
        raise UnsupportedCombination(
            "ranks", asked, "parallel single is one rank", allowed=("ddp", "fsdp"), nearest="ddp"
        )
