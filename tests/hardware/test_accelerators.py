import pytest

from rigsize.errors import SpecError, UnknownDevice
from rigsize.hardware import Accelerator, find_accelerator, load_accelerators
from rigsize.hardware.accelerators import START_CONTEXT
from rigsize.provenance import BASES
from rigsize.units import GIB, MIB

ROWS = load_accelerators()
IDS = [row.id for row in ROWS]
THREADS = {2: 2048, 3: 2048, 5: 2048, 6: 2048, 9: 2048, 10: 2048, 12: 1536}
# Where fp8 products are not twice as fast as bf16 ones.
FP8_NOT_TWICE = {"Gaudi3", "Inferentia2", "Trainium1", "Trainium2", "Trainium3"}
THREADS_OF_MINOR = {(7, 0): 2048, (7, 5): 1024, (8, 0): 2048, (8, 6): 1536, (8, 9): 1536}


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 75
    assert len(set(IDS)) == 75
    assert load_accelerators() is ROWS


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_figure_has_a_source(row: Accelerator) -> None:
    assert row.source.strip()
    assert row.basis in BASES
    assert row.as_of
    assert row.check in {"V2", "V1", "R"}
    assert (row.basis == "assumed") == (row.check == "R")
    assert bool(row.sm_source) == (row.sm_count is not None or row.max_threads_per_sm is not None)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_memory(row: Accelerator) -> None:
    if row.memory_driver_mib is None or row.memory_nominal_gb is None:
        return
    # Nominal sizes are binary gigabytes on the box, and a driver never shows more.
    assert row.memory_driver_mib <= row.memory_nominal_gb * 1024
    assert row.memory_driver_mib >= row.memory_nominal_gb * 1024 * 0.9
    assert row.capacity_bytes is not None
    assert row.capacity_bytes <= row.memory_driver_mib * MIB / row.devices
    assert row.capacity_bytes >= row.memory_driver_mib * MIB / row.devices * 0.94


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_context_is_a_band(row: Accelerator) -> None:
    low, mid, high = row.context_bytes.value
    assert 0 < low <= mid <= high < 2 * GIB


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_rates(row: Accelerator) -> None:
    rates = row.peak_flops_per_s
    if "fp32" in rates:
        assert all(rates[tensor] >= rates["fp32"] for tensor in ("tf32", "fp16") if tensor in rates)
    if "fp16" in rates and "tf32" in rates:
        assert rates["fp16"] >= rates["tf32"]
    if "fp8" in rates and "bf16" in rates and row.id not in FP8_NOT_TWICE:
        assert rates["fp8"] == pytest.approx(2 * rates["bf16"], rel=0.02)
    if "bf16" in rates and "fp32" in rates:
        assert rates["bf16"] >= rates["fp32"]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_dtypes_follow_the_compute_capability(row: Accelerator) -> None:
    if row.compute_capability is None:
        return
    assert row.software_stack == "cuda"
    assert row.supports_bf16 == (row.compute_capability >= (8, 0))
    assert ("tf32" in row.dtypes) == row.supports_bf16
    # CUDA C++ Programming Guide, technical specifications per compute capability.
    major = row.compute_capability[0]
    assert row.max_threads_per_sm == THREADS_OF_MINOR.get(
        row.compute_capability, THREADS.get(major)
    )


def test_capacity_is_what_torch_reports_where_that_is_known() -> None:
    a100 = find_accelerator("A100-40GB-PCIe")
    assert a100.capacity is not None
    assert a100.capacity.basis == "published"
    assert a100.capacity_bytes == int(39.49 * GIB)


def test_capacity_is_derived_from_the_driver_otherwise() -> None:
    # 23,028 MiB x 0.985 = 22,682.58 MiB
    a10 = find_accelerator("A10")
    assert a10.capacity is not None
    assert a10.capacity.basis == "derived"
    assert a10.capacity_bytes == int(23028 * MIB * 0.985)


def test_capacity_is_per_device() -> None:
    # Two devices of 64 GB: 131,040 MiB / 2 x 0.985 = 63.02 GiB, never 126.
    mi250 = find_accelerator("MI250X")
    assert mi250.devices == 2
    assert mi250.capacity_bytes == int(131040 * MIB // 2 * 0.985)


def test_unknown_stays_unknown() -> None:
    assert find_accelerator("MI300A").capacity is None
    assert find_accelerator("GB300").sm_count is None


def test_seed_cards_are_all_there() -> None:
    seed = {row.id for row in ROWS if row.seed_ref == "seed-7"}
    assert {"K80", "P100-16GB-PCIe", "A100-40GB-PCIe", "H100-80GB-PCIe"} <= seed
    assert len(seed) == 7


def test_k80_is_one_die_of_12_gb() -> None:
    k80 = find_accelerator("K80")
    assert k80.memory_nominal_gb == 12
    assert k80.compute_capability == (3, 7)
    assert "BOARD" in k80.note


def test_cpu_is_a_row_without_a_device_memory() -> None:
    cpu = find_accelerator("cpu")
    assert cpu.is_cpu
    assert cpu.capacity is None
    assert cpu.compute_capability is None
    assert [row for row in ROWS if row.is_cpu] == [cpu]


def test_context_nobody_measured_is_the_start_value() -> None:
    assert find_accelerator("Gaudi3").context_bytes is START_CONTEXT
    assert START_CONTEXT.basis == "assumed"


def test_unknown_raises_with_the_nearest() -> None:
    with pytest.raises(UnknownDevice) as caught:
        find_accelerator("A100-80BG")
    assert caught.value.nearest == "A100-80GB"
    with pytest.raises(UnknownDevice):
        find_accelerator("")
    assert issubclass(SpecError, ValueError)
