"""What travels between the ranks of a mesh and over PCIe, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from rigsize.errors import UnsupportedCombination
from rigsize.program.mesh import Mesh, mesh_of
from rigsize.program.work import Work
from rigsize.spec import Cluster, Strategy
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.collectives import Collective, collective
from rigsize.steptime.constants import (
    CPU_ADAM_BYTES_PER_PARAM,
    CPU_ADAM_LOOP_S_PER_PARAM,
    CPU_ADAM_S_PER_PARAM,
    NETWORK_BYTES_PER_S,
    OVERLAP_COST,
    PCIE_SHARE,
    Span,
)

__all__ = ["Links"]

_SIGMA_CALIBRATED = 0.05


@dataclass(slots=True, kw_only=True)
class Links:
    """The ways between one rank, the others and its host."""

    cluster: Cluster
    mesh: Mesh
    strategy: Strategy
    calibration: Calibration | None = None
    network_bytes_per_s: float | None = None
    """Of a node; None takes the assumed one. `of` takes the cluster's where none is given."""
    sigmas: dict[str, float] = field(default_factory=dict)
    """Widest of the answers given so far, by `collectives`."""
    notes: dict[str, None] = field(default_factory=dict)
    _known: dict[tuple[str, int], float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        work: Work,
        strategy: Strategy,
        cluster: Cluster,
        calibration: Calibration | None,
    ) -> Links:
        """Those of a rank of this run."""
        return cls(
            cluster=cluster,
            mesh=mesh_of(strategy, cluster, training=work.training),
            strategy=strategy,
            calibration=calibration,
            network_bytes_per_s=cluster.network_bytes_per_s,
        )

    @property
    def over_network(self) -> bool:
        """Whether ranks stand in several nodes."""
        return self.mesh.ranks > self.mesh.per_node

    @property
    def overlap_cost(self) -> float:
        """Share of the device that a collective takes from what computes beside it."""
        cost = OVERLAP_COST.value
        return cost.low if self.over_network else cost.mid

    def within_copy(self, op: Collective, total_bytes: int) -> float:
        """A collective over the ranks that hold one copy of the states together."""
        known = self._known.get((op, total_bytes))
        if known is None:
            shard = self.mesh.shard
            nodes = max(1, shard // self.mesh.per_node)
            known = self._collective(op, total_bytes, shard, nodes, sharing=1)
            self._known[op, total_bytes] = known
        return known

    def between_copies(self, total_bytes: int) -> float:
        """The all-reduce of what each rank holds over the copies of the states.

        The ranks of a node that hold different shards share its network.
        """
        known = self._known.get(("copies", total_bytes))
        if known is None:
            shard, replicas, per_node = self.mesh.shard, self.mesh.replicas, self.mesh.per_node
            nodes = max(1, replicas // max(1, per_node // shard))
            sharing = min(shard, per_node)
            known = self._collective("all_reduce", total_bytes, replicas, nodes, sharing=sharing)
            self._known["copies", total_bytes] = known
        return known

    def _collective(
        self, op: Collective, total_bytes: int, ranks: int, nodes: int, *, sharing: int
    ) -> float:
        rate = self.network_bytes_per_s
        if nodes > 1 and sharing > 1:
            if rate is None:
                self.notes["100 Gbit/s between nodes"] = None
            rate = (rate or NETWORK_BYTES_PER_S.value.mid) / sharing
        answer = collective(
            self.cluster.accelerator,
            op,
            total_bytes,
            ranks,
            nodes=nodes,
            network_bytes_per_s=rate,
        )
        if answer.note:
            self.notes[answer.note] = None
        known = self.calibration.collective.get(op) if self.calibration and nodes == 1 else None
        sigma = answer.sigma if known is None else _SIGMA_CALIBRATED
        if answer.seconds:
            self.sigmas["collectives"] = max(self.sigmas.get("collectives", 0.0), sigma)
        return answer.seconds * (known or 1.0)

    def to_device(self, num_bytes: float) -> float:
        """A pinned copy from the host; raises where the card's PCIe rate is unknown."""
        known = self.calibration.to_device_bytes_per_s if self.calibration else None
        return num_bytes / (known or self._pcie()) if num_bytes else 0.0

    def to_host(self, num_bytes: float) -> float:
        """A pinned copy to the host."""
        known = self.calibration.to_host_bytes_per_s if self.calibration else None
        return num_bytes / (known or self._pcie()) if num_bytes else 0.0

    def _pcie(self) -> float:
        gpu = self.cluster.accelerator
        if gpu.pcie_bytes_per_s is None:
            raise UnsupportedCombination(
                "offload", self.strategy.offload, f"no PCIe rate is published for {gpu.id}"
            )
        return gpu.pcie_bytes_per_s * PCIE_SHARE.value.mid

    @property
    def host_adam(self) -> Span:
        """Seconds a parameter of the host's AdamW, with the whole socket."""
        vectorised = (
            self.strategy.optimizer == "adamw-fused" or self.strategy.parallel[:4] == "zero"
        )
        if (known := self._measured_adam(vectorised)) is not None:
            return Span(known, known, known)
        chosen = CPU_ADAM_S_PER_PARAM if vectorised else CPU_ADAM_LOOP_S_PER_PARAM
        return chosen.value

    def _measured_adam(self, vectorised: bool) -> float | None:
        known = self.calibration
        if known is None:
            return None
        return known.cpu_adam_fused_s_per_param if vectorised else known.cpu_adam_s_per_param

    def host_step(self, numel: float, *, clipped_bytes: float = 0.0) -> float:
        """The optimizer step over a rank's elements; the ranks of a node share its memory."""
        clip = clipped_bytes / CPU_ADAM_BYTES_PER_PARAM * CPU_ADAM_S_PER_PARAM.value.mid
        return (numel * self.host_adam.mid + clip) * self.mesh.per_node

    def host_sum(self, num_bytes: float) -> float:
        """Adding gradients on the host: three times their bytes through its memory."""
        per_byte = CPU_ADAM_S_PER_PARAM.value.mid / CPU_ADAM_BYTES_PER_PARAM
        return 3 * num_bytes * per_byte * self.mesh.per_node
