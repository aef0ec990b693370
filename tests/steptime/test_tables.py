import pytest

from rigsize.hardware import find_accelerator, load_accelerators
from rigsize.steptime.tables import DATA, SIBLINGS, Fit, fits, mean_fit, tables_of


def test_every_file_is_an_accelerator_and_small() -> None:
    ids = {gpu.id for gpu in load_accelerators()}
    files = list(DATA.glob("*.json.gz"))
    assert len(files) == 6
    assert {file.name.removesuffix(".json.gz") for file in files} <= ids
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 2_000_000
    assert set(SIBLINGS) | set(SIBLINGS.values()) <= ids


def test_every_constant_is_physical() -> None:
    for by_gpu in fits().values():
        for name, fit in by_gpu.items():
            find_accelerator(name)
            assert 0 < fit.start_s < 1e-4
            assert fit.memory_share > 0
            assert fit.compute_share > 0


def test_a_card_without_measurements_has_no_tables() -> None:
    assert tables_of(find_accelerator("T4")) is None
    loaded = tables_of(find_accelerator("L40S"))
    assert loaded is not None
    assert loaded.gpu == "L40S"
    # 13 sizes of m times 483 pairs.
    assert loaded.gemm is not None
    assert sum(value is not None for value in loaded.gemm.values) == 13 * 483


def test_mean_of_fits() -> None:
    a, b = (Fit(start_s=s, compute_share=0.5, memory_share=0.7) for s in (1e-6, 3e-6))
    mean = mean_fit({"a": a, "b": b})
    assert mean.start_s == pytest.approx(2e-6)
    assert (mean.compute_share, mean.memory_share) == pytest.approx((0.5, 0.7))
