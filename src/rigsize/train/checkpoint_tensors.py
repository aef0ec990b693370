"""Tensors to safetensors shards and back, through torch's distributed checkpoint (DCP).

DCP's usual storage keeps a pickle beside the shards; its safetensors storage keeps none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

__all__ = ["read_tensors", "write_tensors"]

# DCP builds a file in memory before it writes it: this bounds the extra host memory of a save.
_FILE_BYTES = 1024**3


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], num_ranks: int) -> None:
    """Writes and fsyncs each rank's shards; what all ranks hold alike is written once.

    Raises:
        CheckpointException: on all ranks, when one could not write.
    """
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_file_numbers(tensors, num_ranks),
        save_distributed=True,
    )
    with torch.no_grad(), _alone_is_fine():
        save(_separate(tensors), storage_writer=writer, no_dist=not _distributed())


def read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Reads into the given tensors, whose names are all there is; any number of ranks.

    Raises:
        CheckpointException: on all ranks, when one could not read.
    """
    reader = HuggingFaceStorageReader(str(folder))
    with torch.no_grad(), _alone_is_fine():
        load(tensors, storage_reader=reader, no_dist=not _distributed())


def _file_numbers(tensors: Mapping[str, Tensor], num_ranks: int) -> dict[str, int]:
    """Numbers from 1, equal on all ranks; a rank's share of a file is about `_FILE_BYTES`."""
    numbers, before_bytes = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + before_bytes // (_FILE_BYTES * num_ranks)
        before_bytes += math.prod(tensor.shape) * tensor.element_size()
    # DCP numbers files by position: a number that no tensor begins in is left out.
    dense = {number: index for index, number in enumerate(sorted(set(numbers.values())), start=1)}
    return {name: dense[number] for name, number in numbers.items()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous and without shared memory, which safetensors refuses (8-bit AdamW's maps)."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        local = whole.to_local() if isinstance(whole, DTensor) else whole
        # From a GPU each is copied anyhow, and a clone might not fit.
        shared = local.device.type == "cpu" and local.numel() and local.data_ptr() in seen
        result[name] = whole.clone() if shared else whole
        seen.add(local.data_ptr())
    return result


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Silences DCP's warning that there is only one process: a run may well have one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
