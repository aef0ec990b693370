"""Published generation of Qwen2 and Qwen2.5 in bf16 against our prediction, row by row.

    python validation/published/qwen_inference.py RUNS.csv [--json]

RUNS.csv holds the figures of the Qwen documentation (speed_benchmark.rst of QwenLM/Qwen3 at 5c4e69c
and 0f0ecfb): one text, 2,048 tokens written behind its prompt, FlashAttention 2, A100 80 GB,
`torch.cuda.max_memory_allocated` summed over all GPUs. The prediction is that of `rigsize estimate
--use inference --attention flash`. For what transformers 4.38 did otherwise (Qwen2 rows) two terms
are added, each read in its source and computed from the config; nothing is fitted.

- `logits.float()` over the whole prompt: bf16 and fp32 logits of every position are alive at once
  (modeling_qwen2.py, Qwen2ForCausalLM.forward; `generate` asks for the last position only from
  4.45 on).
- `Qwen2RotaryEmbedding._set_cos_sin_cache`: cos and sin of all positions in each layer, in the
  dtype of the weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rigsize.errors import SizingError
from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.models import ModelSource, resolve_model
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GIB

CARD = "A100-80GB-SXM"
SLICES = ("qwen2-inference-hf", "qwen2.5-inference-hf")
POSITIONS = 32_768
"""`max_position_embeddings` of the instruct models that were run."""
HALF_BYTES, FLOAT_BYTES = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published figure, in GiB."""

    model: str
    prompt: int
    gpus: int
    published_gib: float
    predicted_gib: float | None
    why: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over published, less one."""
        predicted = self.predicted_gib
        return None if predicted is None else predicted / self.published_gib - 1


def main(arguments: list[str]) -> int:
    """Prints the table and the two quantiles of each slice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    with given.runs.open(newline="", encoding="utf-8") as file:
        published = [r for r in csv.DictReader(file) if r["slice"] in SLICES and not r["quant"]]
    found = {name: [_row(r) for r in published if r["slice"] == name] for name in SLICES}
    if given.json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in found.items()}))
        return 0
    for name, rows in found.items():
        print("\n".join([name, *_table(rows), ""]))
    return 0


def _table(rows: Iterable[Row]) -> Iterator[str]:
    errors = []
    for row in rows:
        told = row.why
        if row.error is not None and row.predicted_gib is not None:
            errors.append(abs(row.error))
            told = f"{row.predicted_gib:8.2f} {100 * row.error:+6.1f} %"
        yield f"  {row.model:24} {row.prompt:6,} x {row.gpus} {row.published_gib:8.2f} {told}"
    errors.sort()
    if errors:
        ninth = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
        shown = (statistics.median(errors), ninth, errors[-1])
        median, high, worst = (f"{100 * error:.1f} %" for error in shown)
        yield f"  {len(errors)} rows: median {median}, 90th percentile {high}, worst {worst}"


def _row(published: Mapping[str, str]) -> Row:
    name = published["model"].removesuffix("-Instruct")
    row = Row(
        model=name,
        prompt=int(published["seq_len"]),
        gpus=int(published["n_gpus"]),
        published_gib=float(published["peak_mem_gib"]),
        predicted_gib=None,
    )
    try:
        # Qwen2 and Qwen2.5 of one size are one architecture.
        source = resolve_model(f"Qwen/{name.replace('Qwen2-', 'Qwen2.5-')}", allow_network=False)
        found = _estimate(source, row, int(published["gen_len"]))
    except SizingError as error:
        return _with(row, why=str(error).splitlines()[0][:90])
    total = found.memory.allocated_peak_bytes
    if published["slice"] == "qwen2-inference-hf":
        total = _as_in_4_38(source, found, row.prompt)
    return _with(row, predicted_gib=total / GIB)


def _with(row: Row, **changed: Any) -> Row:
    return replace(row, **changed)


def _estimate(source: ModelSource, row: Row, written: int) -> Estimate:
    workload = Workload(
        model=source.name,
        task="causal-lm",
        use="inference",
        max_length=row.prompt,
        prompt_length=row.prompt,
        max_new_tokens=written,
    )
    strategy = Strategy(precision="bf16", micro_batch=1, attention="flash")
    cluster = Cluster(accelerator=find_accelerator(CARD), per_node=row.gpus)
    return estimate(source, workload, strategy, cluster)


def _as_in_4_38(source: ModelSource, found: Estimate, prompt: int) -> int:
    """The peak with logits of the whole prompt, and each layer's table of positions."""
    config = source.config
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    tables = int(config["num_hidden_layers"]) * 2 * POSITIONS * width * HALF_BYTES
    logits = prompt * int(config["vocab_size"]) * (HALF_BYTES + FLOAT_BYTES)
    return tables + max(found.memory.allocated_peak_bytes, _alive_at_head(found) + logits)


def _alive_at_head(found: Estimate) -> int:
    """Requested bytes when the first prefill is about to make its logits."""
    timeline, slices = found.program.timeline, found.program.slices
    alive = sum(timeline.sizes[o] for o in slices["load"] if o >= 0)
    for operation in slices["first"]:
        if operation >= 0 and timeline.places[operation].module == "lm_head":
            return alive
        size = timeline.sizes[operation if operation >= 0 else ~operation]
        alive += size if operation >= 0 else -size
    raise AssertionError("a prefill makes logits")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
