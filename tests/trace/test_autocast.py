"""The autocast policies are CUDA's: the lists stand in a header that every torch wheel carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trace.tiny import CONFIGS, SIZES, Case

from rigsize.trace import autocast, fake_accelerator
from rigsize.trace.capture import Traced
from rigsize.trace.model import load_config
from rigsize.trace.recorder import ALLOC

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"


def macro(name: str) -> set[str]:
    """The operators of one AT_FORALL macro, as `name.overload`."""
    text = HEADER.read_text().replace("\\\n", " ")
    line = re.search(rf"#define {name}\(_\)(.*)", text)
    assert line, f"torch {torch.__version__} has no {name}"
    found = re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", line.group(1))
    return {f"{op}.{overload}" if overload else op for op, overload in found}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("AT_FORALL_LOWER_PRECISION_FP", autocast.LOWER_PRECISION),
        ("AT_FORALL_FP32", autocast.FP32),
        ("AT_FORALL_FP32_SET_OPT_DTYPE", autocast.FP32_SET_OPT_DTYPE),
        ("AT_FORALL_PROMOTE", autocast.PROMOTE),
    ],
)
def test_the_lists_are_those_of_torchs_own_header(name: str, ours: list[str]) -> None:
    assert set(ours) == macro(name)
    assert len(ours) == len(set(ours))


def test_the_overloads_that_take_another_signature() -> None:
    text = HEADER.read_text().replace("\\\n", " ")
    line = re.search(r"#define AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE\(_\)(.*)", text)
    assert line
    named = set(re.findall(r'"([\w.]+)"', line.group(1)))
    assert named == set(autocast.FP32_APPEND_DTYPE)


@pytest.fixture
def device() -> Iterator[torch.device]:
    found = fake_accelerator.register()
    with fake_accelerator.fake_mode():
        yield found
    autocast.clear_weight_casts()


def tensor(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, device=device, dtype=dtype)


BF16, F32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("operation", "given", "expected"),
    [
        (lambda x: x @ x, F32, BF16),
        (lambda x: torch.nn.functional.linear(x, x), F32, BF16),
        (lambda x: torch.addmm(x, x, x), F32, BF16),
        (lambda x: x.exp(), BF16, F32),
        (lambda x: x.pow(2), BF16, F32),
        (lambda x: x.rsqrt(), BF16, F32),
        (lambda x: torch.nn.functional.layer_norm(x, (4,)), BF16, F32),
        (lambda x: x.sum(), BF16, F32),
        (lambda x: x.sum(-1), BF16, F32),
        (lambda x: x.cumsum(0), BF16, F32),
        (lambda x: x.softmax(-1), BF16, F32),
        (lambda x: x.softmax(-1, dtype=BF16), BF16, BF16),
        (lambda x: torch.ops.aten.norm.Scalar(x, 2), BF16, F32),
        (lambda x: torch.ops.aten.norm.ScalarOpt_dim(x, 2, [1]), BF16, F32),
        (lambda x: torch.addcmul(x, x.float(), x), BF16, F32),
        (lambda x: torch.addcmul(x, x, x), BF16, BF16),
        (lambda x: x + x, BF16, BF16),  # on no list
        (lambda x: torch.nn.functional.gelu(x), F32, F32),  # on no list
        (lambda x: x @ x, torch.float64, torch.float64),  # doubles are left alone
    ],
)
def test_the_dtype_that_each_policy_gives(
    device: torch.device, operation: Any, given: torch.dtype, expected: torch.dtype
) -> None:
    with torch.autocast(device.type, dtype=BF16):
        assert operation(tensor(device, 4, 4, dtype=given)).dtype == expected


def test_outside_the_region_nothing_is_cast(device: torch.device) -> None:
    x = tensor(device, 4, 4, dtype=F32)
    assert (x @ x).dtype == F32


def test_a_weight_is_cast_once_and_forgotten_when_the_outermost_region_ends(
    device: torch.device,
) -> None:
    weight = torch.nn.Parameter(tensor(device, 4, 4, dtype=F32))
    frozen = torch.nn.Parameter(tensor(device, 4, 4, dtype=F32), requires_grad=False)
    x = tensor(device, 4, 4)
    with torch.autocast(device.type, dtype=BF16):
        with torch.autocast(device.type, dtype=BF16):
            torch.nn.functional.linear(x, weight)
            torch.nn.functional.linear(x, frozen)
        assert [found[0] is weight for found in autocast._weight_casts.values()] == [True]
        first = next(iter(autocast._weight_casts.values()))[1]
        torch.nn.functional.linear(x, weight)
        assert next(iter(autocast._weight_casts.values()))[1] is first
    assert not autocast._weight_casts


def test_the_cache_can_be_switched_off(device: torch.device) -> None:
    weight = torch.nn.Parameter(tensor(device, 4, 4, dtype=F32))
    with torch.autocast(device.type, dtype=BF16, cache_enabled=False):
        torch.nn.functional.linear(tensor(device, 4, 4), weight)
        assert not autocast._weight_casts


def births(compute: str, family: str = "xlm-roberta") -> list[tuple[str, int]]:
    options = Case(family=family, task="masked-lm", compute=compute).options()
    model = Traced(load_config(CONFIGS[family], options), options)
    trace = model.record(SIZES, padded=True, hold_output=True)
    return [(event.op, event.num_bytes) for event in trace.events if event.kind == ALLOC]


def test_the_amp_trace_is_not_the_fp32_trace() -> None:
    # Kernels registered on the wrong library land silently as `_::linear` and change nothing.
    plain, mixed = births("fp32"), births("amp")
    assert plain != mixed
    hidden = SIZES["B"] * SIZES["S"] * 96
    assert ("aten::addmm", 4 * hidden) in plain
    assert ("aten::addmm", 4 * hidden) not in mixed
    assert ("aten::addmm", 2 * hidden) in mixed


def test_each_weight_of_a_linear_is_cast_once_a_step() -> None:
    # Two layers with one feed-forward weight up (208 x 96) and one down: four casts, in bf16.
    casts = [size for op, size in births("amp") if op == "aten::_to_copy"]
    assert casts.count(2 * 208 * 96) == 4
    # The tied decoder (5003 x 96) is cast once for the logits; the embedding look-up is not.
    assert casts.count(2 * 5003 * 96) == 1
