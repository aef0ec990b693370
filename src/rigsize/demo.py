"""`make demo`: the article's tables, one estimate explained, one real run beside its prediction.

Each part is a command that a user can type; the demo prints it, then runs it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

MEASURED = "intfloat/multilingual-e5-small"
"""118 M parameters: a full fine-tuning step takes some 2 GiB and seconds on two cores."""


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
            "One real run on this machine beside its prediction",
            ["measure", *measured, "--batch-size", "8", "--steps", "3", *device_flags()],
        ),
    ]


def main() -> int:
    """Runs the parts; the first failing one's exit code is the demo's."""
    for title, arguments in parts():
        print(f"\n=== {title}\n$ rigsize {' '.join(arguments)}\n", flush=True)
        code = subprocess.run([sys.executable, "-m", "rigsize", *arguments], check=False).returncode
        if code:
            print(f"(exit {code})", flush=True)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
