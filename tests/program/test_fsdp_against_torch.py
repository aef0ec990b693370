"""FSDP2 and HSDP byte for byte: `program.fsdp` beside real `fully_shard` (fsdp_referee.py).

No tolerance: the bytes at every hook and phase, the peak, and the hook before it.
`validation/check_fsdp.py` prints the whole grid.
"""

from __future__ import annotations

import pytest
from tests.program.fsdp_referee import Sharding, program_of, real, referee
from tests.program.fsdp_streams import births
from tests.tiers import thinned

from rigsize.errors import UnsupportedCombination
from rigsize.spec import Strategy

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
    Sharding(family="llama", precision="amp-bf16", half_reduce=True, accumulation=2),
    Sharding(
        family="llama",
        world=4,
        parallel="hsdp",
        shard_size=2,
        precision="amp-bf16",
        half_reduce=True,
        accumulation=2,
    ),
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
@pytest.mark.parametrize("run", thinned(SLOW, every=2), ids=str)
def test_every_setting_byte_for_byte(run: Sharding) -> None:
    assert not referee(run).differences


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        Sharding(family="llama", world=2),
        Sharding(family="xlm-roberta", world=4, precision="amp-bf16", reshard=False),
        Sharding(
            family="llama",
            world=4,
            parallel="hsdp",
            shard_size=2,
            precision="amp-bf16",
            half_reduce=True,
        ),
    ],
    ids=str,
)
def test_buffers_belong_to_the_streams_they_are_made_on(run: Sharding) -> None:
    program = program_of(run)
    timeline = program.timeline
    ours = [
        (timeline.streams[s], timeline.sizes[s])
        for s in program.slices["micro"]
        if s >= 0 and s in timeline.streams
    ]
    assert births(run) == ours
    assert len(ours) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw-8bit", "lion", "adafactor", "adafactor-foreach"])
def test_what_is_refused_on_shards_really_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedCombination, match="shards"):
        Strategy(parallel="fsdp", optimizer=name)
    monkeypatch.setattr("rigsize.spec.strategy.fails_on_shards", lambda _: None)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"DTensor|in-place|sharding"):
        real(Sharding(family="xlm-roberta", optimizer=name))
