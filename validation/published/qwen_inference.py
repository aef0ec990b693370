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
from functools import cache
from pathlib import Path

from rigsize.errors import SizingError
from rigsize.estimate import build, profile_for
from rigsize.hardware import find_accelerator
from rigsize.memory.replay import Replay, replay
from rigsize.models import ModelSource, resolve_model
from rigsize.point import point_of
from rigsize.program.build import Program
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
        program, played = _run(source, row, int(published["gen_len"]))
    except SizingError as error:
        return replace(row, why=str(error).splitlines()[0][:90])
    peaks = [one.allocated_peak_bytes for one in played]
    if published["slice"] == "qwen2-inference-hf":
        peaks = _as_in_4_38(source, program, peaks, row.prompt)
    return replace(row, predicted_gib=sum(peaks) / GIB)


def _run(source: ModelSource, row: Row, written: int) -> tuple[list[Program], list[Replay]]:
    """The Program of every GPU and its replay."""
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
    profile = profile_for(source, workload, strategy, cluster.accelerator)
    whole = build(source, profile, strategy, cluster, point_of(workload, strategy))
    programs = whole.devices or [whole]
    return programs, [replay(program) for program in programs]


def _as_in_4_38(
    source: ModelSource, programs: list[Program], peaks: list[int], prompt: int
) -> list[int]:
    """Peaks with logits of the whole prompt, and each layer's table of positions.

    The table is where the layer is; the logits are made where the head is, and over several GPUs
    their fp32 copy comes back to the first.
    """
    config = source.config
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    table = 2 * POSITIONS * width * HALF_BYTES
    elements = prompt * int(config["vocab_size"])
    found = []
    for number, (program, peak) in enumerate(zip(programs, peaks, strict=True)):
        made = _alive_at_head(program)
        if made is not None:
            highest = made + elements * (HALF_BYTES + FLOAT_BYTES)
        else:
            highest = _alive_after(program) + (0 if number else elements * FLOAT_BYTES)
        layers = {p.layer for p in program.parameters if p.layer and _is_here(program, p.storage)}
        found.append(len(layers) * table + max(peak, highest))
    return found


def _is_here(program: Program, storage: int) -> bool:
    return storage in _loaded(program)


@cache
def _loaded_of(operations: tuple[int, ...]) -> frozenset[int]:
    return frozenset(o for o in operations if o >= 0)


def _loaded(program: Program) -> frozenset[int]:
    return _loaded_of(tuple(program.slices["load"]))


def _alive_at_head(program: Program) -> int | None:
    """Requested bytes when the first prefill is about to make its logits; None if not here."""
    timeline = program.timeline
    alive = sum(timeline.sizes[o] for o in _loaded(program))
    for operation in program.slices["first"]:
        if operation >= 0 and timeline.places[operation].module == "lm_head":
            return alive
        size = timeline.sizes[operation if operation >= 0 else ~operation]
        alive += size if operation >= 0 else -size
    return None


def _alive_after(program: Program) -> int:
    """Requested bytes when the first prefill is over."""
    sizes = program.timeline.sizes
    kept = [*program.slices["load"], *program.slices["first"]]
    return sum(sizes[o] if o >= 0 else -sizes[~o] for o in kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
