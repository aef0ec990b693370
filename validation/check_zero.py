"""ZeRO beside DeepSpeed's own arithmetic and published figures; misses are printed.

    python validation/check_zero.py [PUBLISHED_RUNS_CSV]

states      weights, the gradients kept from backward to the step, masters and optimizer states a
            rank of bundled encoders, beside what is in
            `estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs` of
            deepspeed 0.19.8 (their formulas, restated here; `rigsize compare` calls the package)
published   rows of the CSV that ran ZeRO without tensor or pipeline parallelism on a model that a
            stored profile answers
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from rigsize.errors import SizingError
from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GIB

MODELS = ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large", "facebook/xlm-roberta-xl")
STATES = ("master_copy", "optimizer_states")
WEIGHTS = ("weights.flat", "weights.partitioned")


def answer(model: str, parallel: str, ranks: int, **more: object) -> Estimate:
    """One rank of a full bf16 fine-tuning with AdamW."""
    length = int(str(more.pop("length", 128)))
    strategy = Strategy(parallel=parallel, precision="bf16", optimizer="adamw-fused", **more)  # type: ignore[arg-type]
    workload = Workload(model=model, task=str(_task(model)), max_length=length)
    cluster = Cluster(accelerator=find_accelerator("A100-80GB"), per_node=ranks)
    return estimate(resolve_model(model, allow_network=False), workload, strategy, cluster)


def _task(model: str) -> str:
    return "masked-lm" if "roberta" in model else "causal-lm"


def held(found: Estimate, *rows: str) -> int:
    """Bytes of these rows when the first backward pass ends."""
    program = found.program
    alive: set[int] = set()
    slices = ["load", *program.step(0), program.step(1)[0]]
    for name in slices:
        for operation in program.slices[name]:
            (alive.add if operation >= 0 else alive.discard)(max(operation, ~operation))
    timeline = program.timeline
    return sum(timeline.sizes[s] for s in alive if timeline.places[s].category in rows)


def formula(stage: str, numel: int, ranks: int) -> dict[str, int]:
    """Weights; 16-bit gradients kept to the step; fp32 masters and moments: bytes a rank.

    `2 * P + 18 * P / N` (stage 2) and `18 * P / N` (stage 3) hold 4 bytes of fp32 gradients beside
    these, which a step makes and frees. Gradients kept by stages 1 and 2 are whole tensors, each on
    every rank that owns a piece of it: the real engine keeps more than its estimator says.
    """
    part = numel / ranks
    weights = 2 * part if stage == "zero3" else 2 * numel
    return {"weights": int(weights), "gradients": int(2 * part), "states": int(12 * part)}


def check_states() -> Iterator[str]:
    """A line a model, stage and number of ranks."""
    yield f"{'model':32}{'stage':7}{'ranks':>5}  " + "".join(
        f"{name + ' GiB':>18}{'formula':>9}{'':>9}" for name in ("weights", "gradients", "states")
    )
    for model in MODELS:
        for stage in ("zero1", "zero2", "zero3"):
            for ranks in (2, 8, 64):
                found = answer(model, stage, ranks)
                expected = formula(stage, found.parameters.model, ranks)
                ours = {
                    "weights": held(found, *WEIGHTS),
                    "gradients": held(found, "gradients"),
                    "states": held(found, *STATES),
                }
                cells = "".join(
                    f"{ours[n] / GIB:18.3f}{expected[n] / GIB:9.3f}{_percent(ours[n], expected[n])}"
                    for n in ours
                )
                yield f"{model:32}{stage:7}{ranks:5}  {cells}"


def _percent(ours: float, theirs: float) -> str:
    return f"{100 * (ours / theirs - 1):+8.2f}%" if theirs else f"{'':9}"


PROFILES = {"Qwen-7B": "Qwen/Qwen2.5-7B"}
"""Published models without a class in transformers, and the nearest one that has a profile."""


def check_published(path: Path) -> Iterator[str]:
    """A line a row: predicted beside published, or why there is no prediction."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "zero" in row["parallelism"]]
    alone = [row for row in rows if row["peak_mem_gb"] and "tp" not in row["parallelism"]]
    yield f"{len(rows)} rows of ZeRO, {len(alone)} with a peak and without other parallelism"
    for row in alone:
        yield f"{row['id']}: {row['model']} {row['method']} {row['peak_mem_gb']} {_why(row)}"


def _why(row: dict[str, str]) -> str:
    if not row["seq_len"] or not row["micro_batch"]:
        return "GB: not predicted, batch and length are not printed"
    model = PROFILES.get(row["model"])
    if model is None or row["method"] != "full":
        return "GB: not predicted, no profile of this model and method is stored"
    ranks = int(row["n_gpus"])
    try:
        found = answer(
            model,
            row["parallelism"].split()[0],
            ranks,
            length=row["seq_len"],
            micro_batch=int(row["micro_batch"]),
            accumulation=int(row["grad_accum"] or 1),
            recompute="block" if "full" in row["activation_checkpointing"] else "none",
        )
    except SizingError as error:
        return f"GB: not predicted, {error}"
    each = (found.memory.device_peak_bytes or 0) / GIB
    summed = "sum" in row["mem_scope"]
    total = each * (ranks if summed else 1)
    return f"{'GB over all' if summed else 'GB'}, {model} predicted {total:.1f} GiB" + (
        f" ({each:.1f} a rank){_percent(total, float(row['peak_mem_gb']))}"
    )


def main(arguments: list[str]) -> None:
    """Both parts, the second where a CSV is given."""
    for line in check_states():
        print(line)
    if arguments:
        print()
        for line in check_published(Path(arguments[0])):
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
