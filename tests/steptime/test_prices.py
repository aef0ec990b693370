import pytest

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.program.work import Kernel
from rigsize.spec import Strategy
from rigsize.steptime import Heads, attention, gemm, memory_bound
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.prices import (
    MISALIGNED_PRODUCTS,
    PRODUCTS,
    THIN_PRODUCTS,
    Pricer,
    Spread,
)

A100 = find_accelerator("A100-80GB-SXM")
V100 = find_accelerator("V100-32GB-PCIe")


def pricer(gpu: str = "A100-80GB-SXM", **settings: object) -> Pricer:
    return Pricer(find_accelerator(gpu), Strategy(**settings), None)  # type: ignore[arg-type]


def test_a_product_is_its_model() -> None:
    kernel = Kernel("gemm", "bfloat16", (1, 2048, 4096, 1024), "nt")
    part, time = pricer().kernel(kernel)
    assert part == PRODUCTS
    assert time == gemm(A100, 2048, 4096, 1024)


def test_backward_layouts_are_not_measured() -> None:
    _, time = pricer().kernel(Kernel("gemm", "bfloat16", (1, 2048, 4096, 1024), "tn"))
    assert time.basis == "derived"
    assert time.sigma > gemm(A100, 2048, 4096, 1024, layout="tn").sigma


def test_parts_of_products() -> None:
    # One row: 16.8 MB of weights at 2 TB/s take 8 us, 16.8 MFLOP at 312 TFLOP/s .05 us.
    assert pricer().kernel(Kernel("gemm", "bfloat16", (1, 1, 4096, 2048)))[0] == THIN_PRODUCTS
    vocabulary = Kernel("gemm", "bfloat16", (1, 2048, 250002, 1024))
    assert pricer().kernel(vocabulary)[0] == MISALIGNED_PRODUCTS


def test_tf32_where_there_is_any() -> None:
    assert pricer(precision="tf32").dtype_of("float32") == "tf32"
    assert pricer(precision="fp32").dtype_of("float32") == "fp32"
    assert pricer("V100-32GB-PCIe", precision="tf32").dtype_of("float32") == "fp32"


def test_four_bit_products_by_hand() -> None:
    # One row reads .5 bytes a weight; more rows write the matrix out in 16 bit and multiply.
    one = Kernel("gemm_4bit", "bfloat16", (1, 1, 4096, 4096))
    moved = 4096 * 4096 // 2 + 2 * 2 * 4096
    assert pricer().kernel(one)[1].seconds == memory_bound(A100, moved, "copy").seconds
    many = Kernel("gemm_4bit", "bfloat16", (1, 4096, 4096, 4096), "nt")
    unpacked = memory_bound(A100, 4096 * 4096 // 2 + 2 * 4096 * 4096, "copy").seconds
    product = gemm(A100, 4096, 4096, 4096).seconds
    assert pricer().kernel(many)[1].seconds == pytest.approx(unpacked + product)


def test_one_query_reads_the_cache() -> None:
    # 1 query on 32,768 keys of 8 heads for 32: K and V in bf16 are 134 MB.
    kernel = Kernel("attention", "bfloat16", (1, 1, 32, 128, 32768, 8))
    _, time = pricer().kernel(kernel)
    moved = 2 * 128 * 2 * (32768 * 8 + 32)
    assert time.seconds == memory_bound(A100, moved, "copy").seconds
    square = Kernel("attention", "bfloat16", (4, 1024, 32, 128, 1024, 32), "causal")
    assert pricer().kernel(square)[1] == attention(A100, Heads(4, 1024, 32, 128), causal=True)


def test_compiled_operators_move_half_in_fewer_kernels() -> None:
    # Half the traffic, .3 of the launches: .3 launches of 1/.3/2 times the bytes each.
    kernel = Kernel("elementwise", "bfloat16", (10**8,))
    _, time = pricer(compile=True).kernel(kernel)
    fused = memory_bound(A100, round(10**8 * 0.5 / 0.3)).seconds
    assert time.seconds == pytest.approx(0.3 * fused)
    assert time.basis == "assumed"


def test_a_calibration_scales_its_own_kinds() -> None:
    known = Calibration(accelerator=A100.id, memory={"softmax": 1.5}, misaligned=3.0)
    strategy = Strategy(precision="bf16")
    plain, measured = Pricer(A100, strategy, None), Pricer(A100, strategy, known)
    for kind, factor in (("softmax", 1.5), ("elementwise", 1.0)):
        kernel = Kernel(kind, "bfloat16", (10**8,))
        one, other = plain.kernel(kernel)[1].seconds, measured.kernel(kernel)[1].seconds
        assert other == pytest.approx(factor * one)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (Kernel("scan", "float32", (1,)), "scan"),
        (Kernel("gemm", "complex64", (1, 8, 8, 8)), "complex64"),
    ],
)
def test_what_has_no_model_is_refused(kernel: Kernel, why: str) -> None:
    with pytest.raises(UnsupportedCombination, match=why):
        pricer().kernel(kernel)


def test_own_errors_average_down_and_shared_ones_do_not() -> None:
    kernels = [Kernel("gemm", "bfloat16", (1, 8, 8, n)) for n in range(100)]
    own = Spread(seconds=100.0, own=dict.fromkeys(kernels, 0.06))
    shared = Spread(seconds=100.0, shared_s=6.0)
    # 100 kernels of a second at 6 %: the root of 100 times .06, over 100.
    assert own.sigma == pytest.approx(0.006)
    assert shared.sigma == pytest.approx(0.06)
