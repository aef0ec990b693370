"""Claims around the article's tables: GPUs, lengths, sizes, batches, classes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from typing import Any

from validation.article.claim import DEPENDS, HOLDS, NOT, OPEN, ROUGHLY, Finding, claim, within
from validation.article.question import (
    BASE,
    GIB,
    LARGE,
    XL,
    XXL,
    ask,
    command,
    spread,
    timed,
)

from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.seed_table import MAX_LENGTH, ROWS, predict_table
from rigsize.texts.demo import Demo, find_demo

_PUBLISHED = {BASE: 279e6, LARGE: 561e6, XL: 3.5e9, XXL: 10.7e9}
_CARDS = {
    "Radeon-Pro-V520": 8,
    "P100-16GB-PCIe": 16,
    "K80": 24,
    "V100-32GB-PCIe": 32,
    "A100-40GB-PCIe": 40,
    "A100-80GB-PCIe": 80,
    "H100-80GB-PCIe": 80,
}


def _seed() -> list[dict[str, str]]:
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@claim
def card_sizes() -> Finding:
    """Seven cards of 8 to 80 GB."""
    parts = []
    for name, size in _CARDS.items():
        capacity = find_accelerator(name).capacity_bytes
        seen = "unknown" if capacity is None else f"{capacity / GIB:.1f}"
        parts.append(f"{name} {size} GB: {seen} GiB")
    return Finding(
        ours="usable by torch: " + "; ".join(parts) + ". The K80 is two devices of 12 GB; the V520"
        " has no ROCm support in PyTorch",
        command="rigsize gpus",
        verdict=DEPENDS,
    )


@claim
def parameters() -> Finding:
    """279M, 561M, 3.5B and 10.7B parameters."""
    parts, off = [], 0.0
    for model, published in _PUBLISHED.items():
        count = resolve_model(model).checkpoint_parameters
        assert count is not None
        off = max(off, abs(count - published) / published)
        built = ask(model, use="inference", precision="fp32", micro_batch=1).parameters.model
        parts.append(f"{model.rpartition('-')[2]} {count:,} in the file, {built:,} with 3 classes")
    return Finding(
        ours="; ".join(parts),
        command=command(ask(XXL, use="inference", precision="fp32", micro_batch=1)),
        verdict=within(1 + off, 1.0, 0.01),
    )


@claim
def global_batches() -> Finding:
    """Global batch = GPUs x batch x accumulation in all thirteen rows."""
    right = sum(
        int(row["num_gpus"]) * int(row["micro_batch"]) * int(row["accumulation"])
        == int(row["published_global_batch"])
        for row in _seed()
    )
    return Finding(
        ours=f"{right} of 13 products are as printed",
        command="rigsize table",
        verdict=HOLDS if right == len(_seed()) else NOT,
    )


@claim
def size_classes() -> Finding:
    """The maximum memory of thirteen runs, in size classes."""
    counts = Counter(row.verdict for row in predict_table())
    shown = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.most_common())
    right = counts["reproduced"] + counts["on_the_edge"]
    return Finding(
        ours=f"{shown}, each under its stated settings; what else reproduces a row stands in the"
        " table",
        command="rigsize table",
        verdict=HOLDS if right == 13 else DEPENDS,
    )


@claim
def same_time_per_batch() -> Finding:
    """XXL, three times as large, takes XL's time a batch: half the epoch on twice the GPUs."""
    rows = {
        row["model"].rpartition("-")[2]: row for row in _seed() if row["table"] == "fine-tuning"
    }
    seconds = {}
    for size in ("xl", "xxl"):
        row = rows[size]
        steps = 10_000 / (int(row["num_gpus"]) * int(row["micro_batch"]))
        seconds[size] = float(row["published_hours"]) * 3600 / steps
    counts = [resolve_model(m).checkpoint_parameters or 0 for m in (XL, XXL)]
    found = {
        size: ask(
            model,
            gpus=gpus,
            precision="tf32",
            micro_batch=16,
            parallel="fsdp",
            offload="cpu",
        )
        for size, model, gpus in (("xl", XL, "A100-40GB:2"), ("xxl", XXL, "A100-40GB:4"))
    }
    ours = {size: timed(one).step.step_s for size, one in found.items()}
    ratio = ours["xxl"].p50 / ours["xl"].p50
    return Finding(
        ours=f"printed hours give {seconds['xl']:.0f} s a batch for XL and {seconds['xxl']:.0f} s"
        f" for XXL, {counts[1] / counts[0]:.2f} times the parameters. Both by FSDP with CPU"
        f" offload in TF32 we predict {spread(ours['xl'])} and {spread(ours['xxl'])},"
        f" {ratio:.1f} times: the ranks share the host's memory. At the article's own pre-training"
        " rate the fine-tuning hours would be minutes",
        command=f"{command(found['xxl'])} --time",
        verdict=within(ratio, 1.0, 0.1),
    )


@claim
def compiled_models_are_faster() -> Finding:
    """Compiling a model saves up to 30 % of the time."""
    saved = []
    for precision in ("fp32", "amp-bf16"):
        eager, compiled = (
            ask(LARGE, precision=precision, micro_batch=16, compile=one) for one in (False, True)
        )
        saved.append(1 - timed(compiled).step.step_s.p50 / timed(eager).step.step_s.p50)
    low, high = compiled.memory.low_bytes / GIB, compiled.memory.high_bytes / GIB
    return Finding(
        ours=f"Large, 16 x 128, A100: {saved[0]:.0%} of a step in fp32, {saved[1]:.0%} in amp-bf16,"
        " on the assumption that half of the traffic between products is left; nobody measured it."
        f" Of memory only bounds are known, {low:.2f} to {high:.2f} GiB in amp-bf16",
        command=f"{command(compiled)} --time",
        verdict=HOLDS if 0 < max(saved) <= 0.3 else ROUGHLY,
    )


@claim
def tweets_fit_128_tokens() -> Finding:
    """128 tokens fit 99.99 % of tweets."""
    asked = "rigsize data stats TWEETS --tokenizer MODEL --max-length 128"
    demo = find_demo()
    if demo is None:
        missing = "needs the demonstration's tweets: rigsize data demo"
        return Finding(ours=missing, command=asked, verdict=OPEN)
    found = _stats(demo)
    covering = found["covering"]["length"]
    return Finding(
        ours=f"{found['rows']:,} real English tweets, XLM-R's vocabulary: {covering} tokens cover"
        f" 99.99 %, the longest has {found['lengths']['longest']}, the mean is"
        f" {found['lengths']['mean']:.0f}; padded to 128, {found['padding']['fixed']:.0%} of all"
        " positions are padding",
        command=asked,
        verdict=HOLDS if covering <= MAX_LENGTH else NOT,
    )


def _stats(demo: Demo) -> Any:
    words = ("data", "stats", str(demo.texts), "--tokenizer", str(demo.model_folder))
    ran = subprocess.run(
        (sys.executable, "-m", "rigsize", *words, "--max-length", str(MAX_LENGTH), "--json"),
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(ran.stdout)
