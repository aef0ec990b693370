"""Published runs that ran out of memory, and those that did not: what is predicted of each.

    python validation/check_oom.py FILE [--slices GLOB ...] [--write]

FILE is the table of published runs (`published_runs.csv`; its columns are named in `Row`). First
every row that did not run, with why it is usable or not; then how many of the usable ones are
predicted not to fit (aim: at least eleven in twelve), and of those that ran and can be expressed
here, how many are called not fitting (at most 3 %). `--write` writes docs/oom.md.

What a row does not print is set to the least there is (one token, one text), so that a prediction
of `does not fit` rests on what is printed.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigsize.errors import SizingError
from rigsize.estimate import estimate
from rigsize.hardware import find_accelerator
from rigsize.models import ModelSource, check_config, resolve_model
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import format_bytes

PAGE = Path(__file__).parents[1] / "docs" / "oom.md"
AIM_PREDICTED, AIM_FALSE_PERCENT = 11 / 12, 3.0
Row = Mapping[str, str]

BUNDLED = {
    "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
    "Llama-2-13B": "meta-llama/Llama-2-13b-hf",
    "Llama-2-70B": "meta-llama/Llama-2-70b-hf",
    "Llama-3.1-70B": "meta-llama/Llama-3.1-70B",
    "Llama-3.2-3B": "meta-llama/Llama-3.2-3B",
    "Falcon-7B": "tiiuae/falcon-7b",
    "Falcon-40B": "tiiuae/falcon-40b",
    "bloomz-7b1": "bigscience/bloom-7b1",
    **{f"Qwen2.5-{n}-Instruct": f"Qwen/Qwen2.5-{n}" for n in ("0.5B", "1.5B", "3B", "7B", "14B")},
    **{f"Qwen2.5-{n}-Instruct": f"Qwen/Qwen2.5-{n}" for n in ("32B", "72B")},
    # The same shapes as their successors.
    **{f"Qwen2-{n}-Instruct": f"Qwen/Qwen2.5-{n}" for n in ("0.5B", "1.5B", "7B", "72B")},
}
WRITTEN: dict[str, dict[str, Any]] = {
    "CodeLlama-34B": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 22016, "vocab_size": 32000,
        "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 16384, "tie_word_embeddings": False,
    },
    "Qwen-7B": {
        "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008,
        "vocab_size": 151936, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
    "phi-1.5": {
        "model_type": "phi", "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 51200,
        "num_hidden_layers": 24, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mt0-xxl": {
        "model_type": "mt5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24,
        "num_decoder_layers": 24, "num_heads": 64, "vocab_size": 250112,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
}  # fmt: skip
"""Public configurations that are not bundled; Qwen's first had code of its own in these shapes."""
CARDS = {("A100", "40"): "A100-40GB", ("A100", "80"): "A100-80GB", ("L40S", "48"): "L40S"}
QUANTIZATIONS = {"": "none", "bnb.nf4": "nf4", "bnb.nf4-dq": "nf4-double", "8-bit": "int8-torchao"}
METHODS = {"full": "full", "lora": "lora", "qlora": "qlora"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A row and what was predicted."""

    row: Row
    verdict: str
    """does_not_fit, tight or fits; empty where nothing is predicted."""
    said: str
    """The prediction in words, or why there is none."""

    @property
    def usable(self) -> bool:
        """Whether there is a prediction."""
        return bool(self.verdict)

    @property
    def line(self) -> str:
        """One row of a table."""
        row = self.row
        size = f"{row['micro_batch'] or 1} x {row['seq_len'] or '?'}"
        how = row["method"] or "inference"
        quant = f" {row['quant']}" if row["quant"] else ""
        card = f"{row['n_gpus']} x {row['gpu_family']}-{row['gpu_mem_gb']}"
        return f"| {row['id']} | {row['model']} | {how}{quant} | {size} | {card} | {self.said} |"


def why_not(row: Row) -> str:
    """Why a row can be no question here; empty if it can."""
    if row["fits"] == "no (failed)":
        return "a failed run, not proven to be out of memory"
    if row["fits"] == "no (exceeds 80 GB)":
        return "computed in a paper, never run"
    if re.search(r"\b(tp|pp)[2-9]|\btp\b|megatron", row["parallelism"]):
        return "tensor or pipeline parallel"
    if row["framework"].startswith(("TensorFlow", "vLLM", "fairseq", "MXNet", "Paddle")):
        return f"{row['framework'].split()[0].rstrip(',')}: another allocator and another graph"
    if row["parallelism"] not in ("single", "fsdp"):
        return f"parallelism {row['parallelism'] or 'not printed'}"
    if row["model"] not in BUNDLED and row["model"] not in WRITTEN:
        return "no configuration of this model here"
    return _why_not_how(row)


def _why_not_how(row: Row) -> str:
    if row["quant"] not in QUANTIZATIONS:
        return f"weights as {row['quant']}"
    if (row["method"] or "full") not in METHODS:
        return f"method {row['method']}"
    if (row["gpu_family"], row["gpu_mem_gb"]) not in CARDS:
        return f"no such card here: {row['gpu_family']} {row['gpu_mem_gb']}"
    return ""


def source_of(row: Row) -> ModelSource:
    """The row's model, from the bundled configurations or written out."""
    name = row["model"]
    if name in BUNDLED:
        return resolve_model(BUNDLED[name], allow_network=False)
    check_config(WRITTEN[name])
    return ModelSource(
        name=name,
        origin="config",
        config=WRITTEN[name],
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="not asked",
    )


def workload_of(row: Row, source: ModelSource) -> Workload:
    """Texts of the printed length; of one token where none is printed."""
    length = int(row["seq_len"] or 1)
    task = "seq2seq-lm" if source.model_type == "mt5" else "causal-lm"
    if not row["task"].startswith("inference"):
        return Workload(model=source.name, task=task, max_length=length)
    return Workload(
        model=source.name,
        task=task,
        use="inference",
        max_length=length,
        prompt_length=length,
        max_new_tokens=int(row["gen_len"] or 1),
        padding_in_batch=False,
    )


def strategy_of(row: Row) -> Strategy:
    """As far as it is printed; AdamW is fused, which takes least."""
    rank = re.search(r"\br=(\d+)", row["notes"])
    targets = re.search(r"targets=\[([^\]]*)\]", row["notes"])
    method = METHODS[row["method"] or "full"]
    named = re.sub(r"[\"' ]", "", targets[1]) if targets else None
    return Strategy(
        precision="bf16" if "bf16" in row["precision"] else "fp32",
        optimizer="adamw-fused",
        micro_batch=int(row["micro_batch"] or 1),
        accumulation=max(1, round(float(row["grad_accum"] or 1))) if row["method"] else 1,
        parallel="fsdp" if row["parallelism"] == "fsdp" else "single",
        recompute="block" if row["activation_checkpointing"].startswith("full") else "none",
        method=method,
        lora_rank=int(rank[1]) if rank else 8,
        lora_targets=named if method != "full" else None,
        adapter_dtype="fp32" if "adapters fp32" in row["precision"] else "same",
        quantization=QUANTIZATIONS[row["quant"]],
        hold_output=False,
    )


def judge(row: Row) -> Judged:
    """The prediction of one row."""
    why = why_not(row)
    if why:
        return Judged(row=row, verdict="", said=why)
    source = source_of(row)
    card = find_accelerator(CARDS[row["gpu_family"], row["gpu_mem_gb"]])
    cluster = Cluster(accelerator=card, per_node=int(row["n_gpus"]))
    try:
        found = estimate(source, workload_of(row, source), strategy_of(row), cluster)
    except SizingError as error:
        return Judged(row=row, verdict="", said=f"not answered: {error}")
    peak = found.memory.device_peak_bytes or 0
    capacity = found.fit.capacity_bytes or 0
    said = (
        f"{found.fit.verdict.replace('_', ' ')}: {format_bytes(peak)} of {format_bytes(capacity)}"
    )
    return Judged(row=row, verdict=found.fit.verdict, said=said)


def judged(rows: Sequence[Row], what: str) -> Iterator[Judged]:
    """One after another, said as they come."""
    for number, row in enumerate(rows, start=1):
        found = judge(row)
        print(f"{what} {number}/{len(rows)} {found.line}", flush=True)
        yield found


HEAD = ("| row | model | how | batch x length | on | predicted |", "|---|---|---|---|---|---|")


def _rows(found: Sequence[Judged]) -> list[str]:
    return [*HEAD, *(one.line for one in found)] if found else ["None."]


def report(failed: list[Judged], ran: list[Judged]) -> list[str]:
    """The two figures, the misses, the rows."""
    usable = [one for one in failed if one.usable]
    predicted = sum(one.verdict == "does_not_fit" for one in usable)
    tight = sum(one.verdict == "tight" for one in usable)
    answered = [one for one in ran if one.usable]
    false = [one for one in answered if one.verdict == "does_not_fit"]
    share = 100 * len(false) / len(answered) if answered else 0.0
    return [
        "# Published runs that ran out of memory",
        "",
        "Written by `python validation/check_oom.py FILE --write`, misses included. What a row",
        "does not print is set to the least there is (one token, one text, fused AdamW).",
        "",
        f"**Predicted not to fit: {predicted} of {len(usable)} usable rows"
        f" (aim {AIM_PREDICTED:.0%}), {tight} more tight.**",
        f"**Ran and called not fitting: {len(false)} of {len(answered)} answerable rows,"
        f" {share:.1f} % (aim at most {AIM_FALSE_PERCENT:.0f} %).**",
        "",
        "## Ran out of memory, and not predicted so",
        "LitGPT and Qwen's first models are their own code; where in a run they ran out is not",
        "printed (LitGPT loads 16-bit weights before it quantises or shards them).",
        "",
        *_rows([one for one in usable if one.verdict != "does_not_fit"]),
        "",
        "## Rows that did not run",
        "Falcon-40B in NF4 is predicted so because transformers leaves its layers in 16 bit, which",
        "LitGPT did not: two of those predicted prove nothing.",
        "",
        *HEAD,
        *(one.line for one in failed),
        "",
        "## Ran, and called not fitting",
        "bitsandbytes under transformers leaves Falcon's layers in 16 bit (they are a subclass of",
        "Linear), LitGPT does not.",
        "",
        *_rows(false),
        "",
        "## Ran and answered",
        *HEAD,
        *(one.line for one in answered),
        "",
    ]


def main() -> int:
    """Lists, predicts, counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--slices", nargs="*", default=["*"])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with arguments.file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [r for r in rows if any(fnmatch.fnmatch(r["slice"], g) for g in arguments.slices)]
    failed = list(judged([r for r in rows if r["fits"].startswith("no")], "did not run"))
    others = [r for r in rows if r["fits"].startswith("yes") and not why_not(r)]
    lines = report(failed, list(judged(others, "ran")))
    print("\n".join(lines[5:7]))
    if arguments.write:
        PAGE.write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
