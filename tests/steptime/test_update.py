"""Traffic of an optimizer step, bytes a parameter by hand."""

from dataclasses import replace

import pytest
from tests.steptime.works import encoder_work

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.spec import Cluster, Strategy
from rigsize.steptime import memory_bound, step_time
from rigsize.steptime.update import CLIPPING, moved_bytes_per_param

A100 = find_accelerator("A100-80GB-SXM")


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        # Weight, gradient and two states read, weight and states written: 7 times 4 bytes.
        ({"precision": "fp32", "optimizer": "adamw-fused"}, 28),
        ({"precision": "fp32", "optimizer": "adamw-foreach"}, 56),
        ({"precision": "fp32", "optimizer": "adamw-loop"}, 84),
        ({"precision": "bf16", "optimizer": "adamw-fused"}, 14),
        # Masters and states in fp32: 6 times 4; the gradient and the new weight in 16 bit.
        ({"precision": "fp16-master", "optimizer": "adamw-fused"}, 24 + 2 + 2),
        # Weight twice and gradient; the two states of a byte and 4/256 bytes of maxima, twice.
        ({"precision": "fp32", "optimizer": "adamw-8bit"}, 12 + 4 * (1 + 4 / 256)),
        ({"precision": "fp32", "optimizer": "sgd"}, 12),
        # An adapter in fp32 on 16-bit weights is stepped on in fp32.
        ({"precision": "bf16", "optimizer": "adamw-fused", "method": "lora"}, 28),
    ],
)
def test_bytes_a_parameter(settings: dict[str, str], by_hand: float) -> None:
    found = moved_bytes_per_param(Strategy(**settings))  # type: ignore[arg-type]
    assert found == pytest.approx(by_hand, rel=3e-3)


def test_muon_has_no_bytes_that_are_alike_for_all() -> None:
    with pytest.raises(UnsupportedCombination, match="muon"):
        moved_bytes_per_param(Strategy(optimizer="muon"))


def test_a_loop_pays_for_each_tensor() -> None:
    work = encoder_work(layers=2)
    one = Cluster(accelerator=A100)
    loop, fused = (
        step_time(
            work,
            Strategy(precision="bf16", optimizer=name, micro_batch=16, max_grad_norm=None),
            one,
            draws=0,
        )
        for name in ("adamw-loop", "adamw-fused")
    )
    assert loop.update_s > 3 * fused.update_s


def test_shards_are_stepped_on_and_clipped_alone() -> None:
    # Clipping reads bf16 gradients, then reads and writes them: 6 bytes, an eighth of the elements.
    work = encoder_work(layers=2)
    strategy = Strategy(precision="bf16", optimizer="adamw-fused", parallel="fsdp")
    cluster = Cluster(accelerator=A100, per_node=8)
    answer = step_time(work, strategy, cluster, draws=0)
    share = sum(work.trainable) / 8
    clipped = sum(part.seconds for part in answer.parts if part.name == CLIPPING)
    by_hand = 3 * memory_bound(A100, round(6 * share / 3), "optimizer").seconds
    assert clipped == pytest.approx(by_hand, rel=1e-3)
    none = step_time(work, replace(strategy, max_grad_norm=None), cluster, draws=0)
    assert all(part.name != CLIPPING for part in none.parts)
