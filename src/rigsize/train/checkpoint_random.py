"""The random state of one rank (Python, NumPy, torch on CPU and CUDA) as plain JSON."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["capture", "restore"]


def capture() -> dict[str, Any]:
    """The states of every generator that this process has."""
    version, words, gauss = random.getstate()
    document: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "torch": _to_hex(torch.get_rng_state()),
    }
    if "numpy" in sys.modules:
        document["numpy"] = _capture_numpy()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        document["cuda"] = _to_hex(torch.cuda.get_rng_state())
    return document


def restore(document: dict[str, Any]) -> None:
    """Sets the generators back; one that the saving process did not have keeps its state."""
    version, words, gauss = document["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(_from_hex(document["torch"]))
    if "numpy" in document:
        _restore_numpy(document["numpy"])
    if "cuda" in document and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(document["cuda"]))


def _capture_numpy() -> list[Any]:
    import numpy as np  # late: torch runs without it

    name, keys, position, has_gauss, gauss = np.random.get_state()
    return [name, [int(key) for key in keys], position, has_gauss, gauss]


def _restore_numpy(saved: list[Any]) -> None:
    import numpy as np

    name, keys, position, has_gauss, gauss = saved
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))


def _to_hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
