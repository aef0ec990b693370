from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator, find_accelerator
from rigsize.steptime import gemm
from rigsize.steptime.gemm import fit_for, is_misaligned, tile_model_s
from rigsize.steptime.tables import Fit

A100 = find_accelerator("A100-80GB-SXM")
H100 = find_accelerator("H100-80GB-SXM")
L40S = find_accelerator("L40S")


def test_one_wave_by_hand() -> None:
    # 108 tiles of 256 x 128 on 108 multiprocessors: each does 2 * 256 * 128 * k FLOPs at a 108th
    # of 312 TFLOP/s, at once; a smaller tile costs more in share than it saves.
    fit = Fit(start_s=0.0, compute_share=1.0, memory_share=1e6)
    one = 2 * 256 * 128 * 65536 / (312e12 / 108)
    full = tile_model_s(A100, 108 * 256, 128, 65536, batch=1, dtype="bf16", fit=fit)
    assert full == pytest.approx(one, rel=1e-3)


def test_memory_bound_by_hand() -> None:
    # m = 1: 2 * 8192 * 8192 bytes of weight at 2039 GB/s x .8 are 82.3 us; its tiles take under
    # half of that.
    fit = Fit(start_s=0.0, compute_share=1.0, memory_share=0.8)
    time = tile_model_s(A100, 1, 8192, 8192, batch=1, dtype="bf16", fit=fit)
    assert time == pytest.approx(2 * 8192 * 8192 / (0.8 * 2.039e12), rel=0.05)


@pytest.mark.parametrize(
    ("gpu", "m", "n", "k", "ms"),
    [
        # Rows of the published measurements (aiconfigurator@095f58a).
        (A100, 1, 32, 32, 0.0024773),
        (L40S, 2048, 768, 768, 0.016435),
        (L40S, 64, 4096, 4096, 0.051049),
        (L40S, 8, 10240, 768, 0.0072299),
    ],
)
def test_a_measured_shape_is_its_measurement(
    gpu: Accelerator, m: int, n: int, k: int, ms: float
) -> None:
    answer = gemm(gpu, m, n, k)
    assert answer.seconds == pytest.approx(ms * 1e-3, rel=2e-4)
    assert answer.basis == "measured"


def test_fp16_takes_the_time_of_bf16_and_a_sibling_its_chip() -> None:
    assert gemm(A100, 4096, 4096, 4096, dtype="fp16") == gemm(A100, 4096, 4096, 4096)
    small = gemm(find_accelerator("A100-40GB-SXM"), 4096, 4096, 4096)
    assert small.basis == "measured"
    assert small.seconds == pytest.approx(gemm(A100, 4096, 4096, 4096).seconds, rel=0.05)


def test_tf32_and_fp32_are_slower_in_this_order() -> None:
    times = [gemm(A100, 4096, 4096, 4096, dtype=d).seconds for d in ("bf16", "tf32", "fp32")]
    assert times == sorted(times)
    # 137.4 GFLOP at 19.5 TFLOP/s is 7.05 ms at the least.
    assert 7.05e-3 < times[2] < 9e-3


def test_misaligned_rows() -> None:
    # A Linear's weight is [n, k]: rows of k, results of n; m has no row of its own.
    assert is_misaligned(64, 250002, 768, dtype="bf16", layout="nt")
    assert not is_misaligned(63, 250880, 768, dtype="bf16", layout="nt")
    # Gradient of the weight: the vocabulary is m of a transposed operand.
    assert is_misaligned(250002, 768, 2048, dtype="bf16", layout="tn")
    # 250002 is 2 above a multiple of 4, so tf32 breaks too; vector units do not care.
    assert is_misaligned(64, 250002, 768, dtype="tf32", layout="nt")
    assert not is_misaligned(64, 250002, 768, dtype="fp32", layout="nt")


def test_the_misaligned_factor_is_named() -> None:
    odd, even = gemm(A100, 2048, 250002, 768), gemm(A100, 2048, 250000, 768)
    assert odd.misaligned
    assert odd.basis == "assumed"
    assert not even.misaligned
    assert odd.seconds == pytest.approx(2 * even.seconds, rel=0.01)


def test_unmeasured_cards_say_so() -> None:
    a10, l4 = find_accelerator("A10"), find_accelerator("L4")
    assert gemm(a10, 2048, 768, 768).basis == "derived"
    assert gemm(l4, 2048, 768, 768).basis == "assumed"
    assert gemm(l4, 2048, 768, 768).sigma > gemm(a10, 2048, 768, 768).sigma
    assert gemm(find_accelerator("MI300X"), 2048, 768, 768).basis == "assumed"


def test_an_unknown_rate_is_an_error() -> None:
    with pytest.raises(UnsupportedCombination, match="no published rate for products in bf16"):
        gemm(find_accelerator("T4"), 128, 128, 128, dtype="bf16")
    with pytest.raises(UnsupportedCombination):
        gemm(find_accelerator("cpu"), 128, 128, 128)
    whole = find_accelerator("A10")
    for field, words in (("sm_count", "number of multi"), ("memory_bytes_per_s", "memory bandwi")):
        partly = replace(whole, **{field: None})  # type: ignore[arg-type]
        with pytest.raises(UnsupportedCombination, match=f"no published {words}"):
            gemm(partly, 128, 128, 128)


def test_same_architecture_lends_its_constants() -> None:
    h100, h200 = (
        fit_for(find_accelerator(n), "bf16")[0] for n in ("H100-80GB-SXM", "H200-141GB-SXM")
    )
    nvl = fit_for(find_accelerator("H100-94GB-NVL"), "bf16")[0]
    assert nvl.compute_share == pytest.approx((h100.compute_share + h200.compute_share) / 2)


SIZES = st.integers(1, 4096)


@settings(max_examples=60, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES, batch=st.integers(1, 64))
def test_more_work_is_never_faster_in_the_tile_model(m: int, n: int, k: int, batch: int) -> None:
    fit = fit_for(H100, "bf16")[0]
    # The L2 cache is left out: what does not fit it is slower for each byte, never in total less.
    time = tile_model_s(H100, m, n, k, batch=batch, dtype="bf16", fit=fit)
    for more in (
        (m + 8, n, k, batch),
        (m, n + 8, k, batch),
        (m, n, k + 8, batch),
        (m, n, k, batch + 1),
    ):
        grown = tile_model_s(H100, *more[:3], batch=more[3], dtype="bf16", fit=fit)
        assert grown >= time * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES)
def test_never_above_the_datasheet(m: int, n: int, k: int) -> None:
    assert gemm(H100, m, n, k).seconds > 2 * m * n * k / 989.5e12
