"""Checkpoints that survive a kill at any moment, and are whole or not there at all.

The protocol (docs/decisions/005): all ranks write and fsync into a new ``step-N.tmp``; rank 0
writes the manifest, renames, fsyncs the parent, and only then removes older ones. Resuming takes
the newest folder whose manifest verifies on all ranks. Nothing in a checkpoint is a pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.train import checkpoint_random, manifest
from rigsize.train.checkpoint_files import (
    TEMPORARY,
    discard,
    lock_folder,
    make_folder,
    read_json,
    sync_folder,
    write_json,
)
from rigsize.train.checkpoint_find import (
    Found,
    Order,
    View,
    common,
    folders,
    leftovers,
    problem_of,
    share,
    unused,
)
from rigsize.train.checkpoint_ranks import Ranks
from rigsize.train.checkpoint_states import (
    Contents,
    Target,
    collect,
    needed_bytes,
)
from rigsize.train.checkpoint_tensors import read_tensors, write_tensors
from rigsize.train.manifest import SHARDS, Manifest
from rigsize.units import format_bytes

__all__ = ["PHASES", "RANDOM_STATE_RESTORED", "Checkpoints", "Found", "ignore", "needed_bytes"]

PHASES = (
    "begin",
    "made_directory",
    "wrote_shards",
    "synced",
    "manifest_written",
    "renamed",
    "parent_synced",
    "deleted_older",
    "done",
)
"""What `Checkpoints.save` announces, on every rank, in this order."""

RANDOM_STATE_RESTORED = "random_state_restored"
"""The key that `Checkpoints.load` adds to the state."""

_STATE = "state.json"
# Headers of shards, manifest and JSON files: generous for thousands of tensors.
_HEADERS_BYTES = 4 * 1024**2


def ignore(phase: str) -> None:
    """The default of ``phase``: nobody is told."""


class Checkpoints:
    """The checkpoints of one run, in one folder that all ranks share.

    Every method is collective where torch.distributed is initialised.

    Args:
        folder: made if need be.
        identity: what must be equal to resume, JSON values: model, task, data, precision ...
            The number of ranks is not part of it: shards are read on any number.
        keep: whole checkpoints to keep, at least 1; while saving there is one more.
        phase: told each of `PHASES` as it is reached.

    Raises:
        SpecError: the folder cannot be made, or a value is not accepted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        keep: int = 2,
        phase: Callable[[str], None] = ignore,
    ) -> None:
        if keep < 1:
            raise SpecError("keep", keep, "too few checkpoints", allowed=["1 or more"])
        self.folder = folder
        self.identity: dict[str, Any] = _as_json("identity", identity)
        self.keep = keep
        self._phase = phase
        self._ranks = Ranks()
        self._skipped: set[Order] = set()
        self._ranks.everywhere(self._make)

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError("checkpoint folder", str(self.folder), str(error.strerror)) from error

    def clean(self) -> None:
        """Removes what runs that were killed left behind; call it before the first save."""
        self._ranks.lead(self._clean)

    def _clean(self) -> None:
        lock_folder(self.folder)
        for path in leftovers(self.folder):
            discard(path)

    def check_empty(self) -> None:
        """For a run that starts anew: a later resume would take an older run's checkpoint.

        Raises:
            SpecError: there are checkpoints in the folder.
        """
        self._ranks.lead(self._check_empty)

    def _check_empty(self) -> None:
        if found := folders(self.folder):
            problem = f"has {len(found)} checkpoints of an earlier run"
            hint = "resume, take another folder, or move them away"
            raise SpecError("checkpoint folder", str(self.folder), problem, hint=hint)

    def check_space(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Whether the disk takes all checkpoints of the run at once; ask before training.

        Raises:
            MeasurementFailed: it does not; bytes needed and free are named.
        """
        one_bytes = needed_bytes(model, optimizer) + _HEADERS_BYTES
        self._ranks.lead(
            lambda: self._require(one_bytes * (self.keep + 1 - len(folders(self.folder))))
        )

    def _require(self, wanted_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < wanted_bytes:
            wanted, free = format_bytes(wanted_bytes), format_bytes(free_bytes)
            problem = f"no space left on the disk: {wanted} needed, {free} free"
            hint = "free some space, or keep fewer checkpoints; those there are untouched"
            raise MeasurementFailed("checkpoint folder", str(self.folder), problem, hint=hint)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
    ) -> Path:
        """Writes a checkpoint; when this returns it is whole and on the disk.

        Args:
            step: optimizer steps done.
            model: as it trains, wrapped or not.
            optimizer: its optimizer, `MasterWeights` among others.
            state: what else the run needs, JSON values, rank 0's are kept: position in the
                data, scheduler, scaler. Each rank's random state is added here.

        Raises:
            MeasurementFailed: no space left, or another error of the disk; the temporary folder
                is gone, older checkpoints are untouched.
            SpecError: a value of ``state`` is not JSON, or the ranks do not share the folder.
        """
        self._phase("begin")
        document = _as_json("state", state)
        wanted_bytes = needed_bytes(model, optimizer) + _HEADERS_BYTES
        self._ranks.lead(lambda: self._require(wanted_bytes))
        name = self._ranks.lead(lambda: self._reserve(step))
        temporary = self.folder / (name + TEMPORARY)
        try:
            self._fill(step, temporary, collect(model, optimizer), document)
            self._ranks.lead(lambda: temporary.rename(self.folder / name))
        except BaseException:
            if self._ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._phase("renamed")
        self._settle(self.folder / name)
        return self.folder / name

    def _reserve(self, step: int) -> str:
        lock_folder(self.folder)
        return unused(self.folder, step).name

    def _fill(self, step: int, folder: Path, contents: Contents, state: dict[str, Any]) -> None:
        """All that comes before the rename: files, fsync, hashes, manifest."""
        ranks = self._ranks
        ranks.lead(lambda: make_folder(folder))
        ranks.everywhere(lambda: _see(folder))
        self._phase("made_directory")
        ranks.everywhere(lambda: write_tensors(folder / SHARDS, contents.tensors, ranks.size))
        document = {"state": state, **contents.document()}
        ranks.lead(lambda: write_json(folder / _STATE, document))
        random_state = checkpoint_random.capture()
        ranks.everywhere(lambda: write_json(folder / _random_name(ranks.rank), random_state))
        self._phase("wrote_shards")
        names = ranks.lead(lambda: _sync(folder))
        mine = names[ranks.rank :: ranks.size]
        entries = ranks.everywhere(lambda: manifest.describe(folder, mine))
        self._phase("synced")
        whole = Manifest(
            step=step,
            world_size=ranks.size,
            identity=self.identity,
            files={name: entry for part in entries for name, entry in part.items()},
        )
        ranks.lead(lambda: manifest.write(folder, whole))
        ranks.lead(lambda: sync_folder(folder))
        self._phase("manifest_written")

    def _settle(self, final: Path) -> None:
        """Makes the new name durable, and only then removes what is no longer needed."""
        self._ranks.lead(lambda: sync_folder(self.folder))
        self._phase("parent_synced")
        self._ranks.lead(lambda: self._delete_older(final))
        self._phase("deleted_older")
        self._phase("done")

    def _delete_older(self, final: Path) -> None:
        """Of those up to the new one keeps the newest whole ones; damaged ones are left alone."""
        whole = View.of(self.folder).digests.keys() - self._skipped
        found = folders(self.folder)
        older = found[: [path for _, path in found].index(final)]
        others = [path for order, path in older if order in whole]
        for path in others[: max(0, len(others) + 1 - self.keep)]:
            discard(path)

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole on all ranks; None where there is none at all.

        Raises:
            SpecError: it is of another run, and what differs; or there are checkpoints, but
                none of them is whole: starting anew is then the user's decision.
        """
        views = self._ranks.everywhere(lambda: View.of(self.folder))
        skipped: list[str] = []
        paths = dict(folders(self.folder))
        for order, disagreement in common(views):
            problem = disagreement or self._verify(paths[order], views)
            if not problem:
                found = manifest.read(paths[order])
                return Found(
                    step=found.step, path=paths[order], manifest=found, skipped=tuple(skipped)
                )
            skipped.append(f"step {order[0]}: {problem}")
            self._skipped.add(order)
        if skipped:
            hint = "take another folder to start anew"
            problem = f"no checkpoint in it is whole ({', '.join(skipped)})"
            raise SpecError("checkpoint folder", str(self.folder), problem, hint=hint)
        return None

    def _verify(self, path: Path, views: list[View]) -> str:
        """What is wrong with the content, as any rank sees it, or ""."""
        found = self._ranks.everywhere(lambda: manifest.read(path))[self._ranks.rank]
        self._ranks.everywhere(lambda: self._check_identity(path, found))
        names = share(sorted(found.files), self._ranks.rank, views)
        problems = self._ranks.gather(problem_of(path, found, names))
        return next((problem for problem in problems if problem), "")

    def _check_identity(self, path: Path, found: Manifest) -> None:
        if differing := manifest.differences(found.identity, self.identity):
            problem = f"it is of another run ({'; '.join(differing)})"
            hint = "take another folder, or the options it was made with"
            raise SpecError("checkpoint", str(path), problem, hint=hint)

    def load(
        self, found: Found, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Puts a checkpoint into a model and optimizer that are built and wrapped for training.

        Returns:
            The saved state, and under `RANDOM_STATE_RESTORED` whether each rank has its random
            state again: it has where as many ranks resume as saved; else the state is as it was,
            and dropout will differ from that of an uninterrupted run.

        Raises:
            SpecError: it holds other tensors than this model and optimizer; no weight is changed.
            MeasurementFailed: a file cannot be read; the model is then partly overwritten.
        """
        document = self._ranks.everywhere(lambda: read_json(found.path / _STATE))[0]
        built: list[Target] = []
        self._ranks.everywhere(lambda: built.append(Target(model, optimizer, document)))
        target = built[0]
        self._ranks.everywhere(lambda: read_tensors(found.path / SHARDS, target.tensors))
        target.finish()
        restored = found.manifest.world_size == self._ranks.size
        if restored:
            random_state = found.path / _random_name(self._ranks.rank)
            self._ranks.everywhere(lambda: checkpoint_random.restore(read_json(random_state)))
        return cast(dict[str, Any], document["state"]) | {RANDOM_STATE_RESTORED: restored}


def _random_name(rank: int) -> str:
    return f"random-{rank:05d}.json"


def _see(folder: Path) -> None:
    """Refuses a folder that rank 0 made elsewhere: the shards would never come together."""
    if not folder.is_dir():
        problem = "the ranks do not share it"
        raise SpecError("checkpoint folder", str(folder.parent), problem, hint="use a shared disk")


def _sync(folder: Path) -> list[str]:
    """Makes the names of all files durable, and returns them; the contents are synced."""
    sync_folder(folder / SHARDS)
    sync_folder(folder)
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _as_json(field: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it will be read back, or an error now, before anything is written."""
    try:
        return cast(dict[str, Any], json.loads(json.dumps(dict(value))))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(field, str(error), "holds what JSON cannot") from error
