"""The devices of this machine, by NVML (nvidia-ml-py or nvidia-smi) and rocm-smi."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from rigsize.errors import MeasurementFailed, SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.names import parse_gpus
from rigsize.units import MIB

__all__ = ["Device", "devices_here"]

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that a driver reports."""

    name: str
    """As the driver calls it."""
    memory_bytes: int
    """The driver's total; torch sees a little less."""
    driver: str
    """Its version, empty where the tool does not say."""
    tool: str
    """What was asked."""
    accelerator: Accelerator | None
    """The row of the same name, None where the table has none."""
    note: str
    """Which variant was assumed, if any."""


def devices_here() -> tuple[Device, ...]:
    """All devices, in the drivers' order, NVIDIA's first.

    Raises:
        MeasurementFailed: no driver answers, or none reports a device.
    """
    found = [*(_through_nvml() or _through_nvidia_smi()), *_through_rocm_smi()]
    if not found:
        raise MeasurementFailed(
            "here",
            "this machine",
            "no NVIDIA or AMD driver reports a device",
            hint="nvidia-smi or rocm-smi must be there and see a card",
        )
    return tuple(found)


def _device(name: str, memory_bytes: int, driver: str, tool: str) -> Device:
    accelerator, note = None, ""
    try:
        gpus = parse_gpus(name)
        accelerator, note = gpus.accelerator, gpus.assumed_note or ""
    except SizingError:
        note = "no row of this name: its figures are unknown"
    return Device(
        name=name,
        memory_bytes=memory_bytes,
        driver=driver,
        tool=tool,
        accelerator=accelerator,
        note=note,
    )


def _through_nvml() -> list[Device]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or no library of it
        return []
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_nvml_device(pynvml, handle, driver) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvml_device(nvml: Any, handle: Any, driver: str) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return _device(str(nvml.nvmlDeviceGetName(handle)), int(memory.total), driver, "NVML")


def _through_nvidia_smi() -> list[Device]:
    asked = "--query-gpu=name,memory.total,driver_version"
    text = _output("nvidia-smi", asked, "--format=csv,noheader,nounits")
    devices = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[1].isdigit():
            devices.append(_device(cells[0], int(cells[1]) * MIB, cells[2], "nvidia-smi"))
    return devices


def _through_rocm_smi() -> list[Device]:
    text = _output("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    try:
        cards = json.loads(text or "{}")
    except ValueError:
        return []
    if not isinstance(cards, dict):
        return []
    devices = []
    for card in cards.values():
        if not isinstance(card, dict):
            continue
        # Capitals in the keys changed between versions of rocm-smi.
        fields = {str(key).casefold(): str(value) for key, value in card.items()}
        name, memory = fields.get("card series"), fields.get("vram total memory (b)", "")
        if name and memory.isdigit():
            devices.append(_device(name, int(memory), "", "rocm-smi"))
    return devices


def _output(tool: str, *arguments: str) -> str:
    """What a tool prints; nothing where it is missing or fails."""
    path = shutil.which(tool)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
