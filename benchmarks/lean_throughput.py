"""How much faster the lean recipe trains than fixed padding and than the HF Trainer, on this CPU.

    python benchmarks/lean_throughput.py [--task sequence-classification|masked-lm|both]
        [--rounds 3] [--steps 12] [--batch-size 32] [--only fixed,lean,trainer]

The same real tweets, the same weights (multilingual-e5-small), the same optimizer (fused AdamW,
fp32, clipped to norm 1), the same batch. `fixed` is the seed recipe with that optimizer; `trainer`
is transformers' Trainer at its best settings: dynamic padding, grouped by length. Each run is a
process of its own; rounds are interleaved, so that a busy machine hits all alike. Prints the median
of the rounds' examples/s and their ratios. Lean and trainer run two epochs over the same
steps x batch tweets and are timed over the second: the Trainer begins an epoch with its longest
batches. `fixed`, whose steps are all alike, makes six steps and is timed over the last four.
Masked LM with the head over all positions needs some 10 GiB at batch 16, 20 at 32.
Needs `rigsize data demo` and the packages accelerate and datasets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIXED_STEPS, WARM_UP_STEPS = 6, 2
RUNS = ("fixed", "lean", "trainer")


def main() -> int:
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps({"examples_per_s": trainer_rate(arguments)}))
        return 0
    tasks = (
        ("sequence-classification", "masked-lm") if arguments.task == "both" else [arguments.task]
    )
    for task in tasks:
        rates: dict[str, list[float]] = {name: [] for name in arguments.only}
        for number in range(arguments.rounds):
            for name in arguments.only:
                rate = _run(name, task, arguments)
                rates[name].append(rate)
                print(f"{task} round {number + 1}: {name} {rate:.2f} examples/s", flush=True)
        _report(task, rates)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(RUNS))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _report(task: str, rates: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{task}: {name} {rate:.2f} examples/s (median; {low:.2f} to {high:.2f})")
    for name in ("fixed", "trainer"):
        if "lean" in medians and name in medians:
            print(f"{task}: lean / {name} = {medians['lean'] / medians[name]:.2f}")


def _run(name: str, task: str, arguments: argparse.Namespace) -> float:
    if name == "trainer":
        command = [sys.executable, __file__, "--worker", "--task", task]
        command += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
        return float(_json(command, '{"examples')["examples_per_s"])
    with tempfile.TemporaryDirectory() as folder:
        document = _json(_train_command(name, task, arguments, folder))
    times = document["record"]["throughput"]["step_times_s"]
    timed = times[WARM_UP_STEPS if name == "fixed" else arguments.steps :]
    return len(timed) * arguments.batch_size / sum(timed)


def tweets(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The first steps x batch tweets."""
    with _demo().texts.open(encoding="utf-8") as file:
        count = arguments.steps * arguments.batch_size
        return [json.loads(line) for line in itertools.islice(file, count)]


def _train_command(name: str, task: str, arguments: argparse.Namespace, folder: str) -> list[str]:
    demo = _demo()
    recipe = "seed" if name == "fixed" else "lean"
    texts = Path(folder) / "tweets.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in tweets(arguments)))
    steps = FIXED_STEPS if name == "fixed" else 2 * arguments.steps
    return [
        *(sys.executable, "-m", "rigsize", "train", str(demo.model_folder)),
        *("--data", str(texts), "--task", task, "--recipe", recipe),
        *("--optim", "adamw-fused", "--batch-size", str(arguments.batch_size)),
        *("--max-length", "128", "--max-steps", str(steps), "--learning-rate", "2e-5"),
        *("--out", f"{folder}/run", "--device", "cpu", "--json", "--progress", "quiet"),
        *("--no-export", "--no-predict", "--save-minutes", "1000", "--log-every", "1000"),
        *("--no-checkpoint",),
    ]


def _json(command: list[str], begins: str = "{") -> dict[str, Any]:
    """The document on stdout; the Trainer prints figures of its own before it."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    document: dict[str, Any] = json.loads(done.stdout[done.stdout.index(begins) :])
    return document


def _demo() -> Any:
    from rigsize.texts.demo import find_demo

    demo = find_demo()
    if demo is None:
        raise SystemExit("first: rigsize data demo")
    return demo


def trainer_rate(arguments: argparse.Namespace) -> float:
    """Examples a second of transformers' Trainer over the second epoch."""
    import transformers
    from datasets import Dataset

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """When each step ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    demo, clock, masked = _demo(), Clock(), arguments.task == "masked-lm"
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.model_folder)
    rows = tweets(arguments)
    names = sorted({row["label"] for row in rows})
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)
    columns = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    if not masked:
        columns["labels"] = [names.index(row["label"]) for row in rows]
    columns["length"] = [len(ids) for ids in encoded["input_ids"]]
    auto = "AutoModelForMaskedLM" if masked else "AutoModelForSequenceClassification"
    more = {} if masked else {"num_labels": len(names)}
    model = getattr(transformers, auto).from_pretrained(demo.model_folder, **more)
    collator = (
        transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        if masked
        else transformers.DataCollatorWithPadding(tokenizer)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=_training_arguments(folder, arguments),
            train_dataset=Dataset.from_dict(columns),
            data_collator=collator,
            callbacks=[clock],
        )
        trainer.train()
    seconds = clock.ends[2 * arguments.steps - 1] - clock.ends[arguments.steps - 1]
    return float(arguments.steps * arguments.batch_size / seconds)


def _training_arguments(folder: str, arguments: argparse.Namespace) -> Any:
    import inspect

    import transformers

    values: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": arguments.batch_size,
        "max_steps": 2 * arguments.steps,
        "learning_rate": 2e-5,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    known = inspect.signature(transformers.TrainingArguments).parameters
    # The name changed between minors of transformers 5.
    if "train_sampling_strategy" in known:
        values["train_sampling_strategy"] = "group_by_length"
    else:
        values["group_by_length"] = True
    return transformers.TrainingArguments(**values)


if __name__ == "__main__":
    sys.exit(main())
