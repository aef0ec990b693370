"""The sizes of a micro-batch: what a Workload and a Strategy say, and what is assumed beside it.

Symbols as in `trace.sizes`: B texts, S the longest, T target tokens, N tokens of an unpadded row,
M rows that the LM head reads, C keys of the last decoding step. Estimate and measure take their
batches from here.
"""

from __future__ import annotations

from rigsize.spec import Strategy, Workload
from rigsize.trace.profile import selects_rows
from rigsize.trace.sizes import CHUNKS

__all__ = ["assumed_sizes", "pads", "point_of"]


def pads(workload: Workload, strategy: Strategy) -> bool:
    """Whether a batch holds padded positions; a prompt alone never does, `generate` sees to it."""
    alone = workload.generates and strategy.micro_batch == 1
    return workload.padding_in_batch and workload.padding != "unpadded" and not alone


def point_of(workload: Workload, strategy: Strategy) -> dict[str, int]:
    """{B, S, T} of a micro-batch, with M and N where it has them."""
    if workload.generates:
        return _of_generation(workload, strategy)
    B, S = strategy.micro_batch, workload.max_length
    target = workload.max_target_length or 0
    if workload.task == "seq2seq-lm" and not target:
        target = S
    point = {"B": B, "S": S, "T": target}
    if workload.padding == "unpadded":
        point["N"] = min(strategy.tokens_per_batch or B * S, B * S)
        point["S"] = min(S, point["N"] - (B - 1))  # every other text has a token at least
    if _reads_rows(workload, strategy):
        point["M"] = _rows(workload, strategy, point)
    return point


def _of_generation(workload: Workload, strategy: Strategy) -> dict[str, int]:
    """S tokens of the prompt and the C keys of the last decoding step, none for a single token."""
    S, new = workload.prompt_tokens, workload.new_tokens
    before = 1 if workload.task == "seq2seq-lm" else S  # the decoder starts from a token of its own
    point = {"B": strategy.micro_batch, "S": S, "T": 0}
    return point | {"C": before + new - 1} if new > 1 else point


def _reads_rows(workload: Workload, strategy: Strategy) -> bool:
    unpadded = workload.padding == "unpadded"
    chosen = selects_rows(workload.task, strategy.loss, unpadded=unpadded)
    return chosen and workload.predicts_tokens


def _rows(workload: Workload, strategy: Strategy, point: dict[str, int]) -> int:
    """Rows that the LM head reads; pieces of the chunked loss are all of one length."""
    B, S, N = point["B"], point["S"], point.get("N", 0)
    if workload.task == "causal-lm":
        rows = max(1, (N or B * S) - B)  # the last token of a text predicts none
    elif N:
        rows = max(1, round(workload.mask_share * N))
    else:
        rows = B * max(1, round(workload.mask_share * S))
    return -(-rows // CHUNKS) * CHUNKS if strategy.loss == "chunked" else rows


def assumed_sizes(workload: Workload, strategy: Strategy) -> tuple[str, ...]:
    """What `point_of` assumes of the texts, one line each."""
    point = point_of(workload, strategy)
    lines = []
    if workload.generates:
        lines.append(
            f"greedy search by transformers' generate with a dynamic cache: {point['S']:,} tokens"
            f" read, {workload.new_tokens:,} written, no text ends early"
        )
    if "N" in point:
        whole = strategy.tokens_per_batch is None
        why = "every text of max-length" if whole else f"the longest {point['S']:,}"
        lines.append(f"{point['B']:,} texts of {point['N']:,} tokens together, {why}")
    if "M" in point:
        lines.append(f"the LM head reads {point['M']:,} rows: {_why_rows(workload, strategy)}")
    return tuple(lines)


def _why_rows(workload: Workload, strategy: Strategy) -> str:
    if workload.task == "causal-lm":
        why = "all tokens but the last of each text"
    else:
        why = f"{workload.mask_share:g} of the tokens are predicted"
    return f"{why}, in {CHUNKS} pieces of one length" if strategy.loss == "chunked" else why
