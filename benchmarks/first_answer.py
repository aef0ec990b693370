"""Seconds to the first answer for an unknown model: python benchmarks/first_answer.py [RUNS].

A config.json of a model that nothing is stored for, an empty cache; then the same with four times
the layers, which must cost hardly more, because repeated blocks are traced once per kind.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET_S, MORE = 12.0, 0.10
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {
        "model_type": "qwen3",
        "hidden_size": 1664,
        "intermediate_size": 4480,
        "num_attention_heads": 13,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 100_352,
        "max_position_embeddings": 8192,
    },
    "encoder": {
        "model_type": "xlm-roberta",
        "hidden_size": 1152,
        "intermediate_size": 4608,
        "num_attention_heads": 18,
        "vocab_size": 120_001,
        "max_position_embeddings": 1026,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    },
}


def answer_s(config: dict[str, Any], num_layers: int) -> float:
    """Wall seconds of one `estimate` with nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
        environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "rigsize", "estimate", str(path), "--precision", "bf16"]
        command += ["--optim", "sgd", "--max-length", "512", "--gpus", "H200:1"]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
    if done.returncode not in (0, 3):
        sys.exit(f"exit {done.returncode}\n{done.stderr}")
    return wall


def main(runs: int) -> int:
    missed = False
    for name, config in MODELS.items():
        first, deep = (
            statistics.median(answer_s(config, layers) for _ in range(runs)) for layers in (48, 192)
        )
        more = deep / first - 1
        missed |= first > TARGET_S or more > MORE
        print(
            f"{name}: 48 layers {first:.1f} s (target {TARGET_S:.0f} s), 192 layers {deep:.1f} s:"
            f" {more:+.0%} (target {MORE:+.0%})",
            flush=True,
        )
    print(f"median of {runs} runs; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
