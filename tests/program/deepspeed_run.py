"""Real DeepSpeed steps on the CPU, one rank of any number in a fake process group.

Needs deepspeed, which is no requirement of this project: what it measured is stored in
`tests/program/zero_reference.json` (`python -m tests.program.deepspeed_run` adds what it lacks).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.program.phases import Phase, mark, real_phases
from tests.program.zero_cases import CASES, REFERENCE, ZeroCase

from rigsize.program.zero_layout import layout_of

STEPS = 3


def measured(case: ZeroCase) -> list[Phase]:
    """load, then forward, backward and step of each micro-step, by DeepSpeed's engine."""
    import deepspeed  # type: ignore[import-not-found]
    import torch
    from tests.trace.referee import real_batch
    from tests.trace.tiny import CONFIGS

    from rigsize.run.optimizers import make_torch_optimizer
    from rigsize.trace.model import build, forward_arguments, load_config

    traced = case.traced()
    options = traced.options()
    config = load_config(CONFIGS[case.family], options)
    batch = real_batch(traced) | forward_arguments(config, options)
    held: list[Any] = []

    def run() -> None:
        mark("build")
        model = build(config, options, "cpu").to(getattr(torch, case.dtype))
        for module in model.modules():
            if hasattr(module, "warn_if_padding_and_no_attention_mask"):
                module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
        gc.collect()
        mark("load")
        alone = replace(case.strategy(), parallel="single")  # DeepSpeed makes the masters
        optimizer = make_torch_optimizer(model.parameters(), alone)
        engine, *rest = deepspeed.initialize(
            model=model, optimizer=optimizer, config=case.deepspeed_config()
        )
        gc.collect()
        for _ in range(STEPS):
            for _ in range(case.accumulation):
                mark("forward")
                loss = engine(**batch).loss
                mark("backward")
                engine.backward(loss)
                mark("step")
                engine.step()
                del loss
        mark("end")
        held.extend((engine, rest, optimizer))

    return real_phases(traced, run)[1:]


def worst_rank(case: ZeroCase) -> int:
    """The rank that the Program is of."""
    from tests.trace.tiny import CONFIGS

    from rigsize.trace.model import build, load_config

    options = case.traced().options()
    model = build(load_config(CONFIGS[case.family], options), options, "meta")
    return (
        0
        if case.stage == 3
        else layout_of([p.numel() for p in model.parameters()], case.ranks).rank
    )


def start_world(ranks: int, rank: int) -> None:
    """A fake process group of that many ranks, before deepspeed is imported."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",
        DS_ACCELERATOR="cpu",
    )
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    logging.disable(logging.WARNING)


def main(arguments: list[str]) -> None:
    """With an index and a file: that case. Without: all that lack, each in a process of its own."""
    if arguments:
        case = CASES[int(arguments[0])]
        start_world(case.ranks, worst_rank(case))
        Path(arguments[1]).write_text(json.dumps(measured(case)))
        return
    found = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
    for number, case in enumerate(CASES):
        if str(case) in found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [sys.executable, "-m", "tests.program.deepspeed_run", str(number), str(out)]
            subprocess.run(command, check=True, capture_output=True)
            found[str(case)] = json.loads(out.read_text())
        print(case, flush=True)
        kept = {str(case): found[str(case)] for case in CASES if str(case) in found}
        lines = (f"{json.dumps(name)}: {json.dumps(phases)}" for name, phases in kept.items())
        REFERENCE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
