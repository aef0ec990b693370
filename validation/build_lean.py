"""Write docs/lean.md: the article's rows beside the lean recipe, predicted.

    python validation/build_lean.py

Each row's own model, task and micro-batch on one GPU. `full` assumes that every text has 128
tokens, `tweets` that a text has 34, the mean of 37,233 real tweets (`rigsize data stats`). Nothing
is tuned, nothing is measured: no GPU was at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rigsize.errors import SizingError
from rigsize.estimate import estimate
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.seed_table import predict_table
from rigsize.spec import Cluster, Strategy, Workload

PAGE = Path(__file__).parents[1] / "docs" / "lean.md"
LENGTH, TWEET = 128, 34
LARGE_CARDS = ("A100-80GB-PCIe", "H200-SXM")
HEAD = """# The seed beside the lean recipe

Written by `python validation/build_lean.py`. Device peaks in GiB on one A100 80 GB (H200 where
that is too small), predicted, not measured: no GPU was at hand.

*Article*: GPUs x size class in GB as published. *Seed recipe*: our prediction of the article's own
row on one GPU where it ran on one. *Lean*: no padding, LM head on masked positions, bf16 products
over fp32 weights, fused AdamW, on **one** GPU without offload: *full* where every text has 128
tokens, *tweets* where they have 34, the mean of real ones.

| model | task | batch x acc. | article | seed recipe | lean, full | lean, tweets |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    """Writes the page."""
    rows = list(_rows())
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows: {PAGE}")
    return 0


def _rows() -> Iterator[str]:
    for row in predict_table():
        task = "masked-lm" if row.table == "pre-training" else "sequence-classification"
        seed = "" if row.device_peak_bytes is None else f"{row.device_peak_bytes / 2**30:.1f}"
        cells = [
            row.model.partition("/")[2],
            row.table,
            f"{row.micro_batch} x {row.accumulation}",
            f"{row.num_gpus} x {row.published_size_class_gb}",
            seed or "several GPUs",
            *(
                _lean(row.model, task, row.micro_batch, row.accumulation, n)
                for n in (LENGTH, TWEET)
            ),
        ]
        yield "| " + " | ".join(cells) + " |"


def _lean(model: str, task: str, micro_batch: int, accumulation: int, tokens: int) -> str:
    source = resolve_model(model)
    workload = Workload(
        model=source.name,
        task=task,
        max_length=LENGTH,
        padding="unpadded",
        padding_in_batch=False,
    )
    strategy = Strategy(
        precision="amp-bf16",
        optimizer="adamw-fused",
        micro_batch=micro_batch,
        accumulation=accumulation,
        loss="masked" if task == "masked-lm" else "all",
        hold_output=False,
        tokens_per_batch=micro_batch * tokens,
    )
    for card in LARGE_CARDS:
        cluster = Cluster(accelerator=find_accelerator(card))
        try:
            found = estimate(source, workload, strategy, cluster)
        except SizingError as error:
            return str(error)
        if found.fit.fits:
            peak = found.memory.device_peak_bytes or 0
            return f"{peak / 2**30:.1f}" + ("" if card == LARGE_CARDS[0] else " (H200)")
    return f"more than {LARGE_CARDS[-1]}"


if __name__ == "__main__":
    sys.exit(main())
