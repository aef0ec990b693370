"""What a run is executed on: accelerators, their real capacity and the names people type."""

from rigsize.hardware.accelerators import Accelerator, Band, load_accelerators
from rigsize.hardware.names import Gpus, accelerator_family, find_accelerator, parse_gpus

__all__ = [
    "Accelerator",
    "Band",
    "Gpus",
    "accelerator_family",
    "find_accelerator",
    "load_accelerators",
    "parse_gpus",
]
