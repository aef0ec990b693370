"""transformers' Trainer on XLM-R: the loss of the first step, and by what it is too large.

    python benchmarks/trainer_loss.py

A tiny XLM-R of random weights must begin at ln(classes) and ln(vocabulary). Its heads take **kwargs
but ignore `num_items_in_batch`; the Trainer infers from the signature that they use it, so it
neither divides by the accumulation nor takes back the number of ranks (huggingface/transformers
issue 47688). Nothing of rigsize is tested here: our own law is in tests/train/test_parity.py.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

CLASSES, VOCABULARY, ROWS = 3, 1_000, 64
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("one process", 1, {}),
    ("accumulation 4", 1, {"gradient_accumulation_steps": 4}),
    ("DDP x2", 2, {}),
    ("DDP x2, average_tokens_across_devices=False", 2, {"average_tokens_across_devices": False}),
    ("accumulation 4, accepts_loss_kwargs=False", 1, {"gradient_accumulation_steps": 4, "fix": 1}),
]


def main() -> int:
    if len(sys.argv) > 1:
        _worker(sys.argv[1], json.loads(sys.argv[2]))
        return 0
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("transformers", "torch"))
    print(f"{versions}; truth: {math.log(CLASSES):.3f} and {math.log(VOCABULARY):.3f}")
    for name, ranks, given in CASES:
        losses = [_loss(task, ranks, given) for task in ("classes", "masked")]
        print(f"{name:48} {losses[0]:8.3f} {losses[1]:8.3f}")
    return 0


def _loss(task: str, ranks: int, given: dict[str, Any]) -> float:
    command = [sys.executable, __file__, task, json.dumps(given)]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc-per-node", str(ranks), *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("first loss")]
    return float(lines[0].split()[-1])


def _worker(task: str, given: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=CLASSES,
    )
    kind = "SequenceClassification" if task == "classes" else "MaskedLM"
    model = getattr(transformers, f"XLMRobertaFor{kind}")(config)
    if given.pop("fix", None):
        model.accepts_loss_kwargs = False
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=4,
                max_steps=1,
                logging_steps=1,
                learning_rate=0.0,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **given,
            ),
            train_dataset=_rows(task),
        )
        trainer.train()
        print("first loss", trainer.state.log_history[0]["loss"], flush=True)


def _rows(task: str) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(ROWS):
        ids = torch.randint(5, VOCABULARY, (16,), generator=generator)
        labels = number % CLASSES if task == "classes" else ids
        rows.append({"input_ids": ids, "labels": labels})
    return rows


if __name__ == "__main__":
    sys.exit(main())
