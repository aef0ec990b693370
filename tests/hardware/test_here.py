"""Fake tools on the search path and a fake NVML; the real ones need a card."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rigsize.errors import MeasurementFailed
from rigsize.hardware.here import devices_here
from rigsize.units import MIB

Tool = Callable[[str, str, int], None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts a program that prints a text onto an otherwise empty search path, without NVML."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def make(name: str, text: str, code: int) -> None:
        output = tmp_path / f"{name}.txt"
        output.write_text(text)
        script = tmp_path / name
        script.write_text(
            f"#!{sys.executable}\nprint(open({str(output)!r}).read(), end='')\n"
            f"raise SystemExit({code})\n"
        )
        script.chmod(0o755)

    return make


def test_nvidia_smi(tool: Tool) -> None:
    tool(
        "nvidia-smi",
        "NVIDIA A100-SXM4-40GB, 40960, 580.1\nNVIDIA A100-SXM4-40GB, 40960, 580.1\n",
        0,
    )
    first, second = devices_here()
    assert first == second
    assert first.accelerator is not None
    assert first.accelerator.id == "A100-40GB-SXM"
    assert (first.memory_bytes, first.driver) == (40960 * MIB, "580.1")
    assert first.note == ""


def test_a_card_without_a_row_is_listed_and_not_guessed(tool: Tool) -> None:
    tool("nvidia-smi", "NVIDIA Something 9000, 1024, 1.0\n", 0)
    (device,) = devices_here()
    assert device.accelerator is None
    assert "no row" in device.note


# As rocm-smi 6 and 5 print it: the keys' capitals differ.
@pytest.mark.parametrize("key", ["Card Series", "Card series"])
def test_rocm_smi(key: str, tool: Tool) -> None:
    card = {key: "AMD Instinct MI300X", "VRAM Total Memory (B)": "206141652992"}
    tool("rocm-smi", json.dumps({"card0": card, "system": {"Driver version": "6.8"}}), 0)
    (device,) = devices_here()
    assert device.accelerator is not None
    assert (device.accelerator.id, device.tool) == ("MI300X", "rocm-smi")
    assert device.memory_bytes == 206141652992


@pytest.mark.parametrize(
    "text", ["", "[]", "No devices were found", '{"card0": {}}', '{"card0": 1}']
)
@pytest.mark.parametrize("name", ["nvidia-smi", "rocm-smi"])
def test_a_tool_that_sees_nothing(name: str, text: str, tool: Tool) -> None:
    tool(name, text, 0)
    with pytest.raises(MeasurementFailed, match="no NVIDIA or AMD driver") as caught:
        devices_here()
    assert caught.value.exit_code == 5


def test_a_tool_that_fails(tool: Tool) -> None:
    tool("nvidia-smi", "NVIDIA L4, 23034, 580.1\n", 9)
    with pytest.raises(MeasurementFailed):
        devices_here()


class _NVMLError(Exception):
    pass


def _nvml(names: list[str], broken: bool = False) -> SimpleNamespace:
    def init() -> None:
        if broken:
            raise _NVMLError

    return SimpleNamespace(
        NVMLError=_NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: names[index],
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=81559 * MIB),
    )


def test_nvml(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"]))
    found = devices_here()
    assert [d.accelerator.id for d in found if d.accelerator] == ["H100-80GB-SXM", "H100-80GB-PCIe"]
    assert {(d.tool, d.driver, d.memory_bytes) for d in found} == {("NVML", "580.1", 81559 * MIB)}


def test_nvml_without_a_driver(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml([], broken=True))
    with pytest.raises(MeasurementFailed):
        devices_here()


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")
def test_the_names_of_the_real_library() -> None:
    import pynvml

    for name in vars(_nvml([])):
        assert hasattr(pynvml, name), name
