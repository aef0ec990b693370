"""`make demo`: the article's tables, one estimate explained, real runs beside their predictions.

Each part is a command that a user can type; the demo prints it, then runs it. The last one is the
article's first task: three classes of sentiment, on real tweets with real multilingual weights.
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rigsize.errors import SizingError

MEASURED = "intfloat/multilingual-e5-small"
"""118 M parameters: a full fine-tuning step takes some 2 GiB and seconds on two cores."""
TWEETS, HELD_OUT_SHARE = 1_700, 0.2
LEAST_CONFIDENCE = 0.6
"""Of the annotators in a tweet's class; below it they contradict one another."""


def device_flags() -> list[str]:
    """The machine at hand: its CUDA device if there is one, else its processor."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return ["--device", "cuda"]
    return ["--device", "cpu"]


def parts() -> list[tuple[str, list[str]]]:
    """(what it shows, the arguments of rigsize)."""
    measured = [MEASURED, "--task", "sequence-classification", "--max-length", "64"]
    return [
        ("The article's tables: predicted beside published", ["table"]),
        (
            "One estimate, explained byte by byte",
            (
                "estimate xlm-roberta-base --task masked-lm --use pre-training --batch-size 16"
                " --global-batch 8192 --max-length 128 --gpus A100-40GB --explain"
            ).split(),
        ),
        (
            "One real step on this machine beside its prediction",
            ["measure", *measured, "--batch-size", "8", "--steps", "3", *device_flags()],
        ),
    ]


def fine_tune_arguments(folder: Path) -> list[str]:
    """A real fine-tune: tweets and weights of `rigsize data demo`, or a generated corpus."""
    try:
        from rigsize.texts.demo import obtain

        demo = obtain(_tell)
    except SizingError as error:
        _tell(f"{error}")
        _tell("the registry is not reached: a small generated corpus and random weights instead")
        return _generated_arguments(folder)
    tweets = folder / "tweets.jsonl"
    with demo.texts.open(encoding="utf-8") as rows, tweets.open("w", encoding="utf-8") as file:
        # The file goes class by class.
        file.writelines(random.Random(0).sample(_confident(rows), TWEETS))
    return [
        *("train", str(demo.model_folder), "--data", str(tweets)),
        *("--task", "sequence-classification", "--recipe", "lean", "--max-length", "128"),
        *("--batch-size", "16", "--learning-rate", "1e-4", "--eval-share", str(HELD_OUT_SHARE)),
        *("--out", str(folder / "run"), "--no-checkpoint", *device_flags()),
    ]


def _confident(rows: Iterable[str]) -> list[str]:
    """The rows whose label the annotators agreed on."""
    return [row for row in rows if (json.loads(row)["confidence"] or 0.0) >= LEAST_CONFIDENCE]


def _generated_arguments(folder: Path) -> list[str]:
    from rigsize.texts.generated import generated_corpus, generated_tokenizer

    corpus = generated_corpus(folder / "texts.jsonl", 600, seed=0)
    tokenizer = generated_tokenizer(folder / "tokenizer")
    config = folder / "tiny-xlm-roberta.json"
    config.write_text(json.dumps(_TINY), encoding="utf-8")
    return [
        *("train", str(config), "--data", str(corpus), "--tokenizer", str(tokenizer)),
        *("--task", "sequence-classification", "--recipe", "lean", "--max-length", "64"),
        *("--init", "random", "--batch-size", "16", "--learning-rate", "3e-3"),
        *("--epochs", "3", "--eval-share", str(HELD_OUT_SHARE)),
        *("--out", str(folder / "run"), "--no-checkpoint", *device_flags()),
    ]


_TINY = {
    "model_type": "xlm-roberta",
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
}


def _tell(text: str) -> None:
    print(f"rigsize: {text}", flush=True)


def _run(title: str, arguments: list[str]) -> int:
    print(f"\n=== {title}\n$ rigsize {' '.join(arguments)}\n", flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "rigsize", *arguments], check=False).returncode
    print(f"({time.monotonic() - began:.0f} s{f', exit {code}' if code else ''})", flush=True)
    return code


def main() -> int:
    """Runs the parts; the first failing one's exit code is the demo's."""
    for title, arguments in parts():
        code = _run(title, arguments)
        if code:
            return code
    with tempfile.TemporaryDirectory(prefix="rigsize-demo-") as folder:
        arguments = fine_tune_arguments(Path(folder))
        return _run("A real fine-tune: sentiment in three classes, prediction beside it", arguments)


if __name__ == "__main__":
    sys.exit(main())
