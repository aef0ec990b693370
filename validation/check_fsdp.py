"""FSDP2 and HSDP against real `fully_shard`, over the whole grid, as a table.

    python validation/check_fsdp.py [--families NAME ...] [--worlds N ...]

Each line is one run: two real training steps (or forward passes) on the CPU under torch's fake
process group beside the Program of the same run. A run is equal if the bytes alive at every hook
and phase, the peak, and the hook before it are; there is no tolerance. What is compared, and the
exceptions by name: tests/program/fsdp_referee.py. Exit status 1 when a run differs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from rigsize.trace import fake_accelerator  # noqa: E402  before any backward pass

fake_accelerator.register()

from tests.program.fsdp_referee import Sharding, referee  # noqa: E402  imports torch

FAMILIES = ("xlm-roberta", "xlm-roberta-xl", "llama")
WORLDS = (1, 2, 4, 8)
PRECISIONS = ("fp32", "bf16", "amp-bf16")


def grid(families: tuple[str, ...], worlds: tuple[int, ...]) -> Iterator[Sharding]:
    """Every family, world and precision, resharded or not, recomputed or not; then the rest."""
    switches = itertools.product(PRECISIONS, (True, False), (False, True))
    settings = list(switches)
    for family, world in itertools.product(families, worlds):
        for precision, reshard, recompute in settings:
            yield Sharding(
                family=family,
                world=world,
                precision=precision,
                reshard=reshard,
                recompute=recompute,
            )
        for precision in PRECISIONS:
            yield Sharding(family=family, world=world, precision=precision, accumulation=3)
            yield Sharding(family=family, world=world, precision=precision, training=False)
        yield Sharding(family=family, world=world, precision="amp-bf16", half_reduce=True)
        if family != "xlm-roberta-xl":  # for which peft knows no modules to adapt
            yield Sharding(family=family, world=world, precision="amp-bf16", method="lora")
        for optimizer in ("adamw-fused", "adamw-loop", "sgd-momentum"):
            yield Sharding(family=family, world=world, optimizer=optimizer)
        for shard in {1, world // 2} - {0, world}:
            yield Sharding(
                family=family,
                world=world,
                parallel="hsdp",
                shard_size=shard,
                precision="amp-bf16",
                half_reduce=True,
                accumulation=2,
            )


def main(arguments: list[str]) -> int:
    """Prints a line a run and the count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--worlds", nargs="+", type=int, default=WORLDS)
    chosen = parser.parse_args(arguments)
    runs = equal = largest = marks = 0
    start = time.monotonic()
    for run in grid(tuple(chosen.families), tuple(chosen.worlds)):
        verdict = referee(run)
        runs, marks = runs + 1, marks + len(verdict.theirs.marks)
        differs = verdict.differences
        equal += not differs
        largest = max(largest, verdict.largest)
        told = f"{len(differs)} differ, largest {verdict.largest:,} B" if differs else "equal"
        print(f"{run!s:90} peak {verdict.theirs.peak_bytes:>12,}  {told}", flush=True)
    print(
        f"{equal} of {runs} runs equal at all of {marks:,} hooks and phases, at the peak and its"
        f" moment; largest difference {largest:,} B; {time.monotonic() - start:.0f} s"
    )
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
