"""What one node's host memory holds at each moment of a run, by row, processes apart.

The run is that of `rigsize.train`: weights loaded from safetensors, steps, checkpoints, export.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rigsize.memory.host_items import fsdp_items, optimizer_items, saved_items, step_on_host
from rigsize.memory.host_records import HostItem, Weight
from rigsize.memory.host_zero import zero_items
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy, Workload
from rigsize.spec.strategy import FSDPS
from rigsize.spec.zero import ZEROS
from rigsize.units import GIB

__all__ = ["FILE_ROWS", "HostRun", "Moments"]

Rows = dict[str, int]

FILE_ROWS = ("load.checkpoint", "data.texts")
"""Pages of mapped files: a resident set counts them, and the kernel drops them under pressure."""
CHECKPOINT_FILE_BYTES = 1 * GIB
"""A rank's share of one file (`train.checkpoint_tensors`)."""
TOKEN_BYTES, OFFSET_BYTES = 4, 8
"""Of tokenised texts on disk (`texts.store.ARRAYS`)."""
WINDOWS = 2
"""The next optimizer step's batches are made while this one runs (`train.feed`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRun:
    """What the host's memory depends on."""

    workload: Workload
    strategy: Strategy
    mesh: Mesh
    weights: tuple[Weight, ...]
    """Every parameter, whole."""
    batch_bytes: int
    """Inputs of one micro-batch."""
    file_itemsize: int
    """Bytes a weight of the published file: 4 or 2."""
    saved: Mapping[str, Sequence[int]]
    """Copies that the forward pass saves on the host (`Program.saved_on_host`)."""
    paged_bytes: int = 0
    """States of a rank in CUDA managed memory, whose pages are the host's when evicted."""
    tensors_bytes: int | None = None
    """Where the host is the run's device: the peak of all tensors of a rank. None elsewhere."""

    @property
    def ranks(self) -> int:
        """On one node, the fullest."""
        return min(self.mesh.per_node, self.mesh.ranks)

    @property
    def on_cpu(self) -> bool:
        """The host is the device."""
        return self.tensors_bytes is not None

    @property
    def loaded(self) -> int:
        """Parameters that are read from a file; adapters are born."""
        adapted = self.strategy.method != "full"
        return sum(w.numel for w in self.weights if not (adapted and w.trainable))

    @property
    def converted_bytes(self) -> int:
        """Of a rank that loads: weights of the file's dtype are its mapped pages, others copies.

        Quantised weights are made on the device, tensor by tensor. Measured: docs/host.md.
        """
        itemsize = self.strategy.policy.weight_bytes
        mapped = itemsize == self.file_itemsize or self.strategy.stored_as != "none"
        return 0 if mapped else itemsize * self.loaded


class Moments:
    """The moments of one run."""

    def __init__(self, run: HostRun) -> None:
        self.run = run
        self.items = list(_items(run))
        trained = [w for w in run.weights if w.trainable] if run.workload.training else []
        master = run.strategy.policy.master_bytes
        stepped = [replace(w, itemsize=master or w.itemsize) for w in trained]
        self._trained_bytes = _bytes_of(trained) + (_bytes_of(stepped) if master else 0)
        self._states_bytes = step_on_host(stepped, run.strategy).states_bytes if trained else 0

    def rows(self) -> dict[str, Rows]:
        """By moment."""
        moments = {"loading": self._loading(), "a step": self._stepping()}
        if self.run.workload.training:
            moments["saving a checkpoint"] = self._saving()
            moments["exporting the model"] = self._exporting()
        return moments

    def _loading(self) -> Rows:
        """FSDP2: rank 0 alone reads and sends (`train.parallel.load_full`); else each for itself.

        Shards and masters are there already, or are made while the model is.
        """
        run = self.run
        readers = 1 if run.strategy.parallel in FSDPS else run.ranks
        kept = ("offload.parameters", "offload.master_copy")
        return self._held(item for item in self.items if item.row in kept) | {
            "load.checkpoint": run.file_itemsize * run.loaded,
            "load.weights": readers * run.converted_bytes,
        }

    def _stepping(self) -> Rows:
        return (
            self._held(self.items)
            | self._of_tensors(self.run.tensors_bytes or 0)
            | {"offload.paged_states": self.run.ranks * self.run.paged_bytes}
        )

    def _saving(self) -> Rows:
        """A file is made in memory before it is written; of a card's tensors there is a copy too.

        Source: torch/distributed/checkpoint/filesystem.py (`_write_files_from_queue`). Measured:
        docs/host.md.
        """
        run = self.run
        share = (self._trained_bytes + self._states_bytes) // run.mesh.ranks
        copies = 1 if run.on_cpu or run.strategy.offload == "cpu" else 2
        written = run.ranks * copies * min(CHECKPOINT_FILE_BYTES, share)
        return self._between_steps() | {"checkpoint": written}

    def _exporting(self) -> Rows:
        """Rank 0 gathers the whole model, tensor by tensor (`train.export`)."""
        run = self.run
        adapted = run.strategy.method != "full"
        gathered = [w for w in run.weights if w.trainable or not adapted]
        there = run.on_cpu and run.mesh.shard == 1
        return self._between_steps() | {"export": 0 if there else _bytes_of(gathered)}

    def _between_steps(self) -> Rows:
        """Pinned memory is cached for ever, that of gradients too; temporaries are gone."""
        run = self.run
        kept = ("offload.parameters", "offload.master_copy", "offload.optimizer_states")
        shard = run.mesh.shard
        resting = -(-(_bytes_of(run.weights) + self._states_bytes) // shard)
        held = self._held(item for item in self.items if item.pinned or item.row in kept)
        paged = {"offload.paged_states": run.ranks * run.paged_bytes}
        return held | self._of_tensors(resting) | paged

    # -- parts ----------------------------------------------------------------------------------

    def _held(self, items: Iterable[HostItem]) -> Rows:
        """The items of all ranks of the node, with what pinning adds, and the data."""
        ranks = self.run.ranks
        rows: Rows = {}
        rounding = 0
        for item in items:
            rows[item.row] = rows.get(item.row, 0) + ranks * item.num_bytes
            rounding += ranks * item.rounding_bytes
        return rows | {"pinned.rounding": rounding} | self._data()

    def _of_tensors(self, each: int) -> Rows:
        return {"tensors": self.run.ranks * each} if self.run.on_cpu else {}

    def _data(self) -> Rows:
        """Tokenised texts, mapped once a node, and each rank's windows of batches."""
        run, workload = self.run, self.run.workload
        texts = 0
        if workload.examples and workload.training:
            length = workload.max_length + (workload.max_target_length or 0)
            texts = workload.examples * (length * TOKEN_BYTES + OFFSET_BYTES)
        batches = run.ranks * WINDOWS * run.strategy.accumulation * run.batch_bytes
        return {"data.texts": texts, "data.batches": batches}


def _items(run: HostRun) -> Iterable[HostItem]:
    """What one rank keeps on the host; nothing has left the device where the host is the device."""
    strategy, weights = run.strategy, run.weights
    training = run.workload.training
    if run.on_cpu:
        return ()
    if strategy.parallel in ZEROS:
        return zero_items(weights, strategy, run.mesh) if training else ()
    if strategy.offload == "cpu":
        return fsdp_items(weights, strategy, run.mesh, training=training)
    if not training:
        return ()
    if strategy.offload == "optimizer":
        return optimizer_items(weights, strategy)
    return saved_items(run.saved)


def _bytes_of(weights: Iterable[Weight]) -> int:
    return sum(weight.numel * weight.itemsize for weight in weights)
