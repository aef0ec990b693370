import pytest

from rigsize.hardware import find_accelerator
from rigsize.steptime import Heads, attention
from rigsize.steptime.attention import roofline_s
from rigsize.steptime.tables import Fit, tables_of

H100 = find_accelerator("H100-80GB-SXM")
H200 = find_accelerator("H200-141GB-SXM")
A100 = find_accelerator("A100-80GB-SXM")


def test_roofline_by_hand() -> None:
    # 132 heads x 1 block of 128 queries fill 132 multiprocessors: no tail. 4 * 132 * 128**2 * 64
    # FLOPs at 989.5 TFLOP/s x .5, and 8 bytes of each of 132 * 128 * 64 values at 3.35 TB/s.
    fit = Fit(start_s=1e-6, compute_share=0.5, memory_share=1.0)
    time = roofline_s(H100, Heads(1, 128, 132, 64), causal=False, dtype="bf16", fit=fit)
    peak = H100.peak_flops_per_s["bf16"]
    compute = 4 * 132 * 128**2 * 64 / (peak * 0.5)
    assert time == pytest.approx(1e-6 + compute + 8 * 132 * 128 * 64 / 3.35e12)
    # One head more starts a second wave: 264 / 133 blocks' worth, so sqrt(1.985) on 133 heads.
    more = roofline_s(H100, Heads(1, 128, 133, 64), causal=False, dtype="bf16", fit=fit)
    grown = compute * 133 / 132 * (264 / 133) ** 0.5 + 8 * 133 * 128 * 64 / 3.35e12
    assert more == pytest.approx(1e-6 + grown)


def test_a_measured_shape_is_its_measurement() -> None:
    # aiconfigurator@095f58a: H200, batch 8, length 1536, 20 heads of 64, bidirectional.
    answer = attention(H200, Heads(8, 1536, 20, 64))
    assert answer.seconds == pytest.approx(0.23859e-3, rel=2e-4)
    assert answer.basis == "measured"
    causal = attention(H200, Heads(128, 16, 48, 128), causal=True)
    assert causal.seconds == pytest.approx(0.17803e-3, rel=2e-4)


def test_backward_is_two_and_a_half_forwards() -> None:
    forward = attention(H100, Heads(16, 128, 12, 64))
    backward = attention(H100, Heads(16, 128, 12, 64), backward=True)
    assert backward.seconds == pytest.approx(2.5 * forward.seconds)
    assert backward.sigma > forward.sigma
    assert backward.basis == "derived"


def test_a_card_without_this_table_says_whose_efficiency_it_took() -> None:
    tables = tables_of(A100)
    assert tables is not None
    assert {(t.causal, t.head_dim) for t in tables.attention} == {(True, 128)}
    answer = attention(A100, Heads(16, 512, 16, 64))
    assert answer.basis == "derived"
    assert answer.note == "efficiency of causal attention with heads of 128"
    assert attention(find_accelerator("A10"), Heads(16, 512, 16, 64)).basis == "derived"


def test_longer_texts_take_longer() -> None:
    times = [attention(H100, Heads(16, s, 12, 64)).seconds for s in (128, 512, 2048, 8192)]
    assert times == sorted(times)
