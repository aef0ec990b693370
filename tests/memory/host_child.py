"""A run in a process of its own, which says what it took: `python host_child.py load|step FOLDER`.

FOLDER holds the model's config.json, and for `load` its safetensors file in fp32.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from rigsize.models.source import resolve_model
from rigsize.run.job import options_of, recipe_of
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.step import train_step
from rigsize.spec import Strategy, Workload
from rigsize.trace.model import build, forward_arguments, load_config, make_batch

BATCH, LENGTH = 4, 64


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS")


class Watch:
    """The highest resident set, asked every millisecond."""

    def __init__(self) -> None:
        self.peak = resident_bytes()
        self._going = True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._going:
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.001)

    def stop(self) -> int:
        self._going = False
        self._thread.join()
        return self.peak


def load(folder: Path) -> None:
    """The fp32 file as bf16."""
    import transformers

    transformers.AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True
    )


def step(folder: Path, optimizer_name: str) -> None:
    """Three optimizer steps."""
    source = resolve_model(str(folder))
    workload = Workload(model="m", task="masked-lm", max_length=LENGTH)
    strategy = Strategy(micro_batch=BATCH, optimizer=optimizer_name)
    options = options_of(workload, strategy)
    config = load_config(source.config, options)
    torch.manual_seed(0)
    model = build(config, options, "cpu")
    optimizer = make_torch_optimizer(model.parameters(), strategy)
    batch: dict[str, Any] = make_batch(options, {"B": BATCH, "S": LENGTH}, "cpu", padded=True)
    for tensor in batch.values():
        tensor.random_(4, 1000)
    batch["attention_mask"].fill_(1)[0, -3:] = 0
    batch |= forward_arguments(config, options)
    recipe = recipe_of(workload, strategy, "cpu")
    for _ in range(3):
        train_step(model, [batch], optimizer, recipe, shares=[1.0])


def main(what: str, folder: str, *more: str) -> None:
    torch.set_num_threads(1)
    watch = Watch()
    if what == "load":
        load(Path(folder))
    else:
        step(Path(folder), *more)
    print(json.dumps({"peak": watch.stop()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
