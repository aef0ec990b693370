"""Which kernel multiplies with a 4-bit weight, beside bitsandbytes' own choice."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from rigsize.program.four_bit import Product4Bit, is_fused, temporaries_bytes

CARDS = [
    ((6, 1), 20),
    ((7, 0), 80),
    ((7, 5), 40),
    ((8, 0), 108),
    ((8, 6), 84),
    ((8, 7), 16),
    ((8, 9), 142),
    ((9, 0), 132),
    ((10, 0), 148),
    ((11, 0), 20),
    ((12, 0), 188),
    ((12, 1), 48),
]
WIDTHS = (64, 768, 1024, 2048, 2560, 3072, 4096, 5120, 8192, 11008, 14336, 28672, 250_048)


def bitsandbytes_choice() -> tuple[Callable[..., bool], dict[str, Any]]:
    """`_gemm_4bit_use_custom_cuda` out of the installed file: its module needs a CUDA build."""
    files = metadata.files("bitsandbytes") or []
    file = next(f for f in files if str(f).endswith("backends/cuda/ops.py"))
    tree = ast.parse(Path(str(file.locate())).read_text())
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    function = next(n for n in found if n.name == "_gemm_4bit_use_custom_cuda")
    function.decorator_list = []
    card: dict[str, Any] = {}
    names: dict[str, Any] = {
        "torch": torch,
        "_GEMM_4BIT_CUSTOM_FLOOR_M": 4,
        "_gpu_dispatch_props": lambda _index: card["properties"],
    }
    exec(compile(ast.Module([function], []), "bitsandbytes", "exec"), names)
    return names[function.name], card


def product(**given: Any) -> Product4Bit:
    return Product4Bit(
        **{
            "rows": 512,
            "outputs": 4096,
            "inputs": 4096,
            "dtype": "bfloat16",
            "nested": False,
            "capability": (8, 0),
            "sm_count": 108,
            **given,
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_choice_is_the_library_s(dtype: str) -> None:
    theirs, card = bitsandbytes_choice()
    chance = random.Random(0)
    for _ in range(20_000):
        capability, sms = chance.choice(CARDS)
        rows = chance.choice([chance.randint(1, 12), chance.randint(1, 1536)])
        outputs, inputs = (chance.choice([*WIDTHS, 64 * chance.randint(1, 60)]) for _ in range(2))
        card["properties"] = (sms, *capability)
        wanted = theirs(0, getattr(torch, dtype), rows, outputs, inputs)
        ours = is_fused(
            product(
                rows=rows,
                outputs=outputs,
                inputs=inputs,
                dtype=dtype,
                capability=capability,
                sm_count=sms,
            )
        )
        assert ours == wanted, (capability, sms, rows, outputs, inputs)


def test_no_fused_kernel_past_1536_rows_or_where_a_row_is_no_whole_number_of_blocks() -> None:
    short = {"outputs": 2048, "inputs": 512}  # an A100's longest reach: K < N / 2, a small weight
    assert is_fused(product(rows=1536, **short))
    assert not is_fused(product(rows=1537, **short))
    assert not is_fused(product(rows=1, inputs=4000))


def test_what_lives_beside_the_product() -> None:
    # 4096 x 4096 weights: 16,777,216 in bf16 are 32 MiB; their 262,144 scales in fp32 are 1 MiB,
    # twice where they are packed: before and after the offset is added.
    mib = 2**20
    assert temporaries_bytes(product(rows=2048)) == (32 * mib,)
    assert temporaries_bytes(product(rows=2048, nested=True)) == (mib, mib, 32 * mib)
    assert temporaries_bytes(product(rows=2048, dtype="float32")) == (64 * mib,)
    assert temporaries_bytes(product(rows=1, nested=True)) == ()
