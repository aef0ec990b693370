"""The trained model as a folder that `from_pretrained` reads, whole or not there at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rigsize.errors import SpecError
from rigsize.train.checkpoint_files import TEMPORARY, discard, make_folder, sync_folder
from rigsize.train.checkpoint_ranks import Ranks
from rigsize.train.checkpoint_states import is_adapted, model_tensors, plain_name, unwrapped

__all__ = ["check_export", "export"]

_EXPORTED = ("config.json", "adapter_config.json")
# Copied as they are: loading and saving a tokenizer again can lose its normalizer.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.bpe.model",
    "spiece.model",
)


def check_export(folder: Path) -> None:
    """Whether a model may be put there; ask before training.

    Raises:
        SpecError: something else than an earlier export is there.
    """
    if not folder.exists() or any((folder / name).is_file() for name in _EXPORTED):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        hint = "take a new folder; only an earlier export is replaced"
        raise SpecError("export folder", str(folder), "is not empty", hint=hint)


def export(model: nn.Module, tokenizer: Any | Path | None, folder: Path) -> Path:
    """Writes what `from_pretrained` reads; an adapted model's adapter through peft.

    Collective: sharded weights are gathered, one tensor at a time, into rank 0's host memory.

    Args:
        model: as it trained, wrapped or not.
        tokenizer: a tokenizer, the folder of one, or None.
        folder: new, or that of an earlier export, which is replaced.

    Raises:
        SpecError: something else is in the folder.
        MeasurementFailed: an error of the disk; the temporary folder is gone.
    """
    ranks = Ranks()
    ranks.lead(lambda: check_export(folder))
    root = unwrapped(model)
    state = _gather(_exported(root), keep=ranks.rank == 0)
    temporary = folder.with_name(folder.name + TEMPORARY)
    try:
        ranks.lead(lambda: _fill(temporary, root, state, tokenizer))
        ranks.lead(lambda: _publish(temporary, folder))
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _exported(root: nn.Module) -> dict[str, Tensor]:
    """The tensors by the names the model's own files have; tied ones under each name."""
    if is_adapted(root):
        # Not state_dict(): that of a quantised base has entries that are no parameters.
        return {name.removeprefix("model/"): t for name, t in model_tensors(root).items()}
    state = root.state_dict(keep_vars=True)
    return {plain_name(name): t for name, t in state.items() if isinstance(t, Tensor)}


@torch.no_grad()
def _gather(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors in host memory where they are kept; what was tied stays tied."""
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            whole = _whole(tensor)
            found[id(tensor)] = whole.detach().cpu() if keep else tensor
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    # A shard offloaded to the host is gathered by the mesh's own backend.
    shard = cast(DTensor, tensor.to(tensor.device_mesh.device_type))
    return shard.full_tensor()


def _fill(folder: Path, root: nn.Module, state: dict[str, Tensor], tokenizer: Any) -> None:
    make_folder(folder)
    save: Any = root.save_pretrained
    if is_adapted(root):
        # Whether embeddings were resized peft would ask the hub; trained ones are in the state.
        save(folder, state_dict=state, save_embedding_layers=False)
    else:
        save(folder, state_dict=state)
    if isinstance(tokenizer, Path):
        _copy_tokenizer(tokenizer, folder)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _publish(temporary: Path, folder: Path) -> None:
    for path in sorted(temporary.rglob("*"), reverse=True):
        _sync(path)
    sync_folder(temporary)
    if folder.exists():
        discard(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
