"""FSDP2 and HSDP byte for byte: `program.fsdp` beside real `fully_shard` (fsdp_referee.py).

No tolerance: the bytes at every hook and phase, the peak, and the hook before it.
`validation/check_fsdp.py` prints the whole grid.
"""

from __future__ import annotations

import pytest
from tests.program.fsdp_referee import Sharding, referee

QUICK = [
    Sharding(family="xlm-roberta"),
    Sharding(family="xlm-roberta", world=1, precision="amp-bf16"),
    Sharding(family="xlm-roberta", world=8, reshard=False, accumulation=2),
]
SLOW = [
    *(Sharding(family="xlm-roberta-xl", world=n, precision="amp-bf16") for n in (1, 2, 4, 8)),
    *(Sharding(family="llama", world=n, precision="bf16", recompute=True) for n in (1, 2, 4, 8)),
    *(Sharding(family="xlm-roberta", world=n, reshard=False) for n in (1, 2, 4)),
    Sharding(family="xlm-roberta", world=4, precision="amp-bf16", accumulation=3),
    Sharding(family="xlm-roberta", world=4, recompute=True, optimizer="adamw-fused"),
    Sharding(family="llama", world=2, optimizer="sgd-momentum", accumulation=2),
    Sharding(family="llama", world=8, precision="amp-bf16", recompute=True, reshard=False),
    Sharding(family="qwen2", world=4, precision="bf16", optimizer="adamw-loop"),
    Sharding(family="albert", world=2),
    Sharding(family="xlm-roberta", world=4, parallel="hsdp", shard_size=2, accumulation=2),
    Sharding(family="llama", world=8, parallel="hsdp", shard_size=4, precision="amp-bf16"),
    Sharding(family="xlm-roberta", world=4, parallel="hsdp", shard_size=1, precision="bf16"),
    Sharding(family="xlm-roberta", method="lora"),
    Sharding(family="llama", method="lora", precision="amp-bf16", recompute=True),
    *(Sharding(family="llama", world=n, training=False, precision="amp-bf16") for n in (1, 2, 4)),
    Sharding(family="xlm-roberta", world=2, training=False, reshard=False),
]


@pytest.mark.parametrize("run", QUICK, ids=str)
def test_a_step_byte_for_byte(run: Sharding) -> None:
    verdict = referee(run)
    assert len(verdict.theirs.marks) > 60  # so many hooks were compared
    assert not verdict.differences


@pytest.mark.slow
@pytest.mark.parametrize("run", SLOW, ids=str)
def test_every_setting_byte_for_byte(run: Sharding) -> None:
    assert not referee(run).differences
