"""How the ranks of a run share its states. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.errors import UnsupportedCombination
from rigsize.spec import Cluster, Strategy

__all__ = ["ALONE", "Mesh", "accumulation_for", "check_shards", "mesh_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Ranks, one a device: each copy of the states is spread over `shard` of them."""

    shard: int = 1
    """Ranks that hold one copy of what is sharded."""
    replicas: int = 1
    """Copies."""
    per_node: int = 1
    """Ranks of one machine, which share its host memory."""

    @property
    def ranks(self) -> int:
        """All of them: a step's micro-batches come from each."""
        return self.shard * self.replicas


ALONE = Mesh()
"""One rank."""


def mesh_of(strategy: Strategy, cluster: Cluster, *, training: bool = True) -> Mesh:
    """The mesh of a strategy on a cluster.

    single is one rank; in inference its layers may lie on several devices of a machine
    (`program.placement`).

    ddp copies the states to every rank; fsdp and zero spread one copy over all; hsdp spreads one
    over `shard_size` ranks (a node's, where none is given) and copies that. Raises
    UnsupportedCombination where the ranks do not divide, or nobody would use them.
    """
    ranks, per_node = cluster.devices, cluster.per_node
    parallel = strategy.parallel
    if strategy.shard_size is not None and parallel != "hsdp":
        raise UnsupportedCombination(
            "shard-size", strategy.shard_size, f"parallel is {parallel}", nearest="--parallel hsdp"
        )
    if parallel == "single":
        if ranks > 1 and not training:
            _check_one_machine(cluster)
        elif ranks > 1:
            raise UnsupportedCombination(
                "parallel",
                "single",
                f"{ranks:,} devices would be there and one of them used",
                allowed=("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"),
                nearest="ddp",
            )
        return Mesh()
    if parallel == "ddp":
        return Mesh(replicas=ranks, per_node=per_node)
    if parallel != "hsdp":
        return Mesh(shard=ranks, per_node=per_node)
    shard = strategy.shard_size or per_node
    if ranks % shard:
        raise UnsupportedCombination(
            "shard-size",
            shard,
            f"{ranks:,} devices are no whole number of copies",
            allowed=tuple(str(n) for n in range(1, min(ranks, 1024) + 1) if ranks % n == 0),
        )
    return Mesh(shard=shard, replicas=ranks // shard, per_node=per_node)


def check_shards(shards: int, elements: int, what: str, hint: str = "") -> None:
    """Refuses more shards than `what` has elements: some would be padding alone."""
    if shards > elements > 0:
        raise UnsupportedCombination(
            "gpus",
            shards,
            f"{what} has {elements:,} elements, fewer than there are shards",
            hint=hint or f"at most {elements:,} ranks, or --parallel ddp",
        )


def _check_one_machine(cluster: Cluster) -> None:
    if cluster.nodes > 1:
        raise UnsupportedCombination(
            "gpus",
            f"{cluster.accelerator.id}:{cluster.per_node}x{cluster.nodes}",
            "a device_map spreads one model over the devices of one machine",
            nearest=f"{cluster.accelerator.id}:{cluster.per_node}",
        )


def accumulation_for(global_batch: int, micro_batch: int, ranks: int = 1) -> int:
    """`ceil(global / (micro x ranks))`; the batch really run may be larger."""
    return -(-global_batch // (micro_batch * ranks))
