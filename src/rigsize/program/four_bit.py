"""Products with a 4-bit weight: fused, or the whole weight in the products' dtype beforehand.

`bitsandbytes::gemm_4bit` of bitsandbytes 0.50 (`backends/cuda/ops.py`) has both and chooses by the
rows M of the input, the weight [N, K], its dtype and the card: `_gemm_4bit_use_custom_cuda`, whose
ladder stands here branch by branch (the tests run both over a grid). Versions before 0.50 had a
kernel for one row alone. Backward always makes the whole weight (`MatMul4Bit.backward`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BLOCK", "Product4Bit", "is_fused", "temporaries_bytes"]

BLOCK = 64
"""Weights a scale."""
FUSED_MOST_ROWS = 1536
FUSED_ALWAYS_ROWS = 4
SMALL_WEIGHT = 4 * 1024 * 1024
FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Product4Bit:
    """What of a product and its card decides the kernel."""

    rows: int
    """M, tokens."""
    outputs: int
    """N."""
    inputs: int
    """K."""
    dtype: str
    """float32, bfloat16 or float16."""
    nested: bool
    """Whether the scales are quantised themselves."""
    capability: tuple[int, int]
    sm_count: int

    @property
    def blocks(self) -> int:
        """Thread blocks over the outputs, 64 a block."""
        return -(-self.outputs // 64)

    @property
    def waves(self) -> float:
        """Of thread blocks over the card."""
        return self.blocks / self.sm_count


def temporaries_bytes(product: Product4Bit) -> tuple[int, ...]:
    """What lives beside input and output while the product runs, in order of birth.

    `_dequant_linear_fallback`: packed scales become fp32, then once more with their offset, and
    the weight is whole; all three live to the end. The fused kernel makes nothing.
    """
    if is_fused(product):
        return ()
    elements = product.outputs * product.inputs
    scales = -(-elements // BLOCK) * FP32_BYTES
    whole = elements * (FP32_BYTES if product.dtype == "float32" else FP32_BYTES // 2)
    return (scales, scales, whole) if product.nested else (whole,)


def is_fused(product: Product4Bit) -> bool:
    """Whether the fused kernel runs."""
    if product.rows > FUSED_MOST_ROWS or product.inputs % BLOCK:
        return False
    return product.rows <= FUSED_ALWAYS_ROWS or product.rows <= _most_rows(product)


def _most_rows(product: Product4Bit) -> int:
    """The most rows for which the ladder takes the fused kernel, 5 at least asked for."""
    major, minor = product.capability
    half = product.dtype != "float32"
    if not half or major < 7 or (major == 7 and (minor < 5 or product.dtype != "float16")):
        return 7
    if product.capability == (8, 7) or major == 11:
        return 0
    if major == 10:
        return _blackwell(product)
    if product.outputs * product.inputs < SMALL_WEIGHT:
        return _small_weight(product)
    if product.rows < 8:
        return 0 if _loses_below_8(product) else 7
    ladders = {(7, 5): _turing, (8, 0): _ampere, (8, 6): _ampere_gddr}
    if product.capability in ladders:
        return ladders[product.capability](product)
    if major == 9:
        return _hopper(product)
    if product.capability == (12, 1) and product.waves >= 1:
        return 256
    return _blackwell_gddr(product) if product.capability == (12, 0) else _ada(product)


def _blackwell(product: Product4Bit) -> int:
    """sm_100: the whole weight is far faster."""
    if product.waves >= 3:
        return 32
    if product.waves >= 1:
        return 0 if product.inputs >= product.outputs else 8
    return 0


def _small_weight(product: Product4Bit) -> int:
    N, K, blocks, sms = product.outputs, product.inputs, product.blocks, product.sm_count
    major, minor = product.capability
    turing, ampere = (major, minor) == (7, 5), (major, minor) == (8, 0)
    if K * 2 < N:
        return _short_inputs(product)
    quarter_wave = blocks * 4 <= sms
    if ampere and quarter_wave:
        if K >= N:
            return 32 if blocks * 8 <= sms else 128
        return 384
    if turing and blocks < sms and product.rows > 8:
        return 64
    if quarter_wave:
        return 32 if K < N or ampere or major == 9 else 23
    return 16 if blocks * 2 <= sms else 0


def _short_inputs(product: Product4Bit) -> int:
    """K < N / 2."""
    K, blocks, sms = product.inputs, product.blocks, product.sm_count
    major, minor = product.capability
    if (major, minor) == (8, 0) or major == 9:
        low_wave = blocks * 3 < sms
        if major == 9:
            return 512 if low_wave else 320
        return 1536 if low_wave else 512
    if (major, minor) == (7, 5):
        if blocks >= sms * 3:
            return 320
        if K >= 1024:
            return 64
        return 96 if K >= 704 else 320
    if blocks >= sms:
        return 320
    return 192 if blocks * K > sms * 320 else 320


def _loses_below_8(product: Product4Bit) -> bool:
    """6 or 7 rows on a card with HBM."""
    N, K, blocks, sms = product.outputs, product.inputs, product.blocks, product.sm_count
    hopper, ampere = product.capability[0] == 9, product.capability == (8, 0)
    if not (hopper or ampere) or product.rows < 6 or blocks < (36 if hopper else 48):
        return False
    below_75, below_60 = blocks * 4 < sms * 3, blocks * 5 < sms * 3
    if K > N:
        return below_75
    if K == N:
        return below_60 if ampere else below_75 and not below_60
    return False


def _turing(product: Product4Bit) -> int:
    blocks, sms = product.blocks, product.sm_count
    if blocks >= sms * 3:
        return 128 if product.inputs < product.outputs else 64
    return 64 if blocks >= sms // 2 else 32


def _ampere(product: Product4Bit) -> int:
    N, K, blocks, sms = product.outputs, product.inputs, product.blocks, product.sm_count
    if blocks >= sms * 3:
        return 128
    if blocks >= sms:
        return 64 if K < N else 32
    if K >= N * 3 and blocks * 4 > sms:
        return 0
    if K == N and blocks >= 48 and blocks * 5 < sms * 3:
        return 0
    if blocks * 2 < sms:
        if K <= N:
            return 128
        if blocks * 3 >= sms:
            return 0
    return 128 if blocks >= sms // 2 and K < N else 16


def _ampere_gddr(product: Product4Bit) -> int:
    blocks, sms = product.blocks, product.sm_count
    if blocks >= sms:
        return 128
    return 64 if blocks >= sms // 2 else 16


def _hopper(product: Product4Bit) -> int:
    blocks, sms = product.blocks, product.sm_count
    for waves, most in ((3, 64), (2, 48), (1, 32)):
        if blocks >= sms * waves:
            return most
    if blocks >= sms // 2:
        return 0 if product.inputs >= product.outputs and blocks * 4 < sms * 3 else 16
    return 0


def _blackwell_gddr(product: Product4Bit) -> int:
    """sm_120."""
    N, K, blocks, sms = product.outputs, product.inputs, product.blocks, product.sm_count
    if blocks >= sms * 3:
        return 256
    if blocks >= sms * 2:
        return 128
    if blocks * 5 >= sms * 4:
        return 96 if K >= N else 64
    if blocks >= sms // 2:
        return 64 if K * 2 >= N and blocks >= 128 else 8
    return 16 if K > N * 2 and blocks > 64 else 8


def _ada(product: Product4Bit) -> int:
    """sm_89, and what the ladder does not know."""
    N, K, blocks, sms = product.outputs, product.inputs, product.blocks, product.sm_count
    tall = K > N * 2
    if blocks >= sms * 3:
        return 256
    if blocks >= sms * 2:
        return 128
    if blocks * 5 >= sms * 4:
        if tall or blocks >= 200:
            return 128
        if K >= N:
            return 128 if sms >= 60 else 32
        return 64
    if blocks >= sms // 2:
        if tall:
            return 64
        return 8 if blocks >= 64 else 32
    if K > N and blocks <= 48:
        return 12 if K >= N * 3 else 10
    return 16 if tall or blocks < 48 else 8
