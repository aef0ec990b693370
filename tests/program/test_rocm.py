"""AMD cards: the same trace, ROCm's kernels and workspaces, and what ROCm does not support."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.program.test_attention import BF16, LLAMA, XLM_R_BASE, padded
from tests.report import hand_made

from rigsize.errors import UnsupportedCombination
from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.keys import key_for
from rigsize.models import resolve_model
from rigsize.program.attention import AttentionNode, choose_kernel, explain_choice
from rigsize.program.environment import environment_of
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GIB

SOURCE = resolve_model("xlm-roberta-base", allow_network=False)
WORKLOAD = Workload(model="xlm-roberta-base", task="sequence-classification", max_length=128)


def kernel(node: AttentionNode, gfx: str) -> str:
    return choose_kernel(
        node, compute_capability=(8, 0), torch_version=(2, 13), cudnn_version=None, gfx=gfx
    )


@pytest.mark.parametrize(
    ("node", "gfx", "expected"),
    [
        (BF16, "gfx942", "flash"),
        (padded(BF16), "gfx942", "efficient"),
        (XLM_R_BASE, "gfx942", "efficient"),
        (LLAMA, "gfx90a", "flash"),
        (padded(LLAMA), "gfx90a", "math"),
        (replace(BF16, head_dim=512, value_head_dim=512), "gfx950", "flash"),
        (replace(BF16, head_dim=520, value_head_dim=520), "gfx950", "math"),
        (replace(BF16, head_dim=192, value_head_dim=128), "gfx942", "math"),
        (replace(padded(BF16), head_dim=60, value_head_dim=60), "gfx942", "math"),
        (BF16, "gfx1100", "math"),
        (BF16, "gfx908", "math"),
    ],
)
def test_kernels(node: AttentionNode, gfx: str, expected: str) -> None:
    assert kernel(node, gfx) == expected


def test_the_choice_is_explained() -> None:
    options = {"compute_capability": (8, 0), "torch_version": (2, 13), "cudnn_version": None}
    told = explain_choice(BF16, **options, gfx="gfx1100")  # type: ignore[arg-type]
    assert told.startswith("math (no flash: AOTriton has no kernel for gfx1100")


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Estimate:
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)
    return on("MI300X")


def on(gpu: str, **how: str) -> Estimate:
    cluster = Cluster(accelerator=find_accelerator(gpu))
    return estimate(SOURCE, WORKLOAD, Strategy(micro_batch=8, **how), cluster)  # type: ignore[arg-type]


def test_what_is_not_known_is_said_to_be_assumed(answered: Estimate) -> None:
    assert answered.fit.verdict == "fits"
    lines = " ".join(answered.assumptions)
    assert "HIP context 0.70 GiB (0.30 to 1.50), assumed" in lines
    assert "for ROCm on gfx942" in lines
    assert "cuDNN" not in lines
    (context,) = (row for row in answered.memory.ledger if row.name == "context")
    assert (context.num_bytes, context.basis) == (int(0.7 * GIB), "assumed")


def test_a_gcd_of_an_mi250x_is_a_device_of_its_own(
    answered: Estimate,
) -> None:
    assert on("MI250X").fit.capacity_bytes == int(131_040 * 2**20 // 2 * 0.985)


def test_the_environment_of_a_card() -> None:
    environment = environment_of(find_accelerator("MI250X"), Strategy())
    assert (environment.device, environment.gfx) == ("cuda", "gfx90a")
    assert (environment.sm_count, environment.max_threads_per_sm) == (110, 2048)
    assert environment.cudnn_version is None
    assert environment.reduction.warp == 64


def test_cuda_cards_are_as_before() -> None:
    environment = environment_of(find_accelerator("A100-40GB"), Strategy())
    assert (environment.gfx, environment.reduction) == ("", (32, 16, 1))


def test_a_card_without_rocm_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedCombination, match=r"gfx1011 \(RDNA1\) is not in the list"):
        environment_of(find_accelerator("V520"), Strategy())


def test_flash_needs_a_card_and_a_precision_that_have_it() -> None:
    flash = Strategy(attention="flash", precision="bf16")
    assert environment_of(find_accelerator("MI300X"), flash).force_flash
    with pytest.raises(UnsupportedCombination, match="off by default"):
        environment_of(find_accelerator("RX-7900-XTX"), flash)
    with pytest.raises(UnsupportedCombination, match="no fp32 kernel"):
        environment_of(find_accelerator("MI300X"), replace(flash, precision="fp32"))


@pytest.mark.parametrize(("gpu", "attention"), [("MI300X", "flash"), ("RX-7900-XTX", "grid")])
def test_texts_in_one_row_get_the_attention_that_the_card_has(gpu: str, attention: str) -> None:
    unpadded = replace(WORKLOAD, padding="unpadded", padding_in_batch=False)
    key = key_for(SOURCE, unpadded, Strategy(precision="bf16"), find_accelerator(gpu))
    assert key.unpadded == attention
