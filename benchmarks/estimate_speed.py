"""Seconds of the whole command on stored profiles: python benchmarks/estimate_speed.py [RUNS].

Every run is a fresh interpreter with an empty cache, so that nothing but what ships can answer.
The CPU time stands beside the wall time: on a busy machine the second tells little.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
XXL = "facebook/xlm-roberta-xxl --task masked-lm --max-length 512"
COMMANDS = [
    ("FacebookAI/xlm-roberta-base --max-length 512 --batch-size 16 --gpus A100-40GB:1", 0.4),
    (f"{XXL} --precision bf16 --optim sgd --batch-size 4 --gpus H100:1", 0.4),
    (f"{XXL} --precision bf16 --optim adamw-8bit --batch-size 4 --gpus H200:1 --json", 0.4),
    ("meta-llama/Llama-3.1-8B --precision bf16 --max-length 4096 --gpus H200:1", 0.4),
    ("google/flan-t5-xxl --use inference --precision bf16 --max-length 512 --gpus H100:1", 0.4),
    (f"{XXL} --precision amp-bf16 --batch-size 4 --parallel fsdp --gpus A100-80GB:8", 0.5),
    (f"{XXL} --precision bf16 --batch-size 4 --parallel hsdp --gpus A100-80GB:8x2", 0.5),
    ("FacebookAI/xlm-roberta-base --max-length 512 --batch-size auto --gpus A100-40GB:1", 1.0),
    ("facebook/xlm-roberta-xl --max-length 512 --batch-size auto --gpus A100-80GB:1", 1.0),
]
HEAVY = ("torch", "transformers", "numpy")


def seconds(arguments: list[str], cache: str) -> tuple[float, float]:
    """(wall, CPU) seconds of one command; SystemExit if it fails."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT / "src")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "rigsize", "estimate", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    if any(Path(cache).rglob("*.profile")):
        sys.exit(f"{' '.join(arguments)}: traced; there is no stored profile")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def heavy_imports(arguments: list[str], cache: str) -> list[str]:
    """Which of HEAVY the command imports; none is the target."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-X", "importtime", "-m", "rigsize", "estimate", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    return [name for name in HEAVY if name in names]


def main(runs: int) -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as cache:
        for text, target in COMMANDS:
            arguments = text.split()
            seconds(arguments, cache)  # once to fill the file system's cache
            samples = [seconds(arguments, cache) for _ in range(runs)]
            wall = statistics.median(sample[0] for sample in samples)
            cpu = statistics.median(sample[1] for sample in samples)
            heavy = heavy_imports(arguments, cache)
            missed += wall > target or bool(heavy)
            print(
                f"{wall:.2f} s wall, {cpu:.2f} s CPU (target {target:.1f} s)"
                f"{'' if wall <= target else ' MISSED'}, imports {', '.join(heavy) or 'no torch'}:"
                f" estimate {text}",
                flush=True,
            )
    print(f"median of {runs} runs; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
