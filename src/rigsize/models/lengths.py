"""Whether a model has positions for what a run asks of it."""

from __future__ import annotations

from collections.abc import Iterator

from rigsize.errors import SpecError
from rigsize.models.positions import max_positions
from rigsize.models.source import ModelSource
from rigsize.spec.strategy import PROMPT_METHODS, Strategy
from rigsize.spec.workload import Workload

__all__ = ["check_lengths"]


def check_lengths(source: ModelSource, workload: Workload, strategy: Strategy) -> None:
    """Raises SpecError with the flag of the length that is too long; virtual tokens count."""
    longest = max_positions(source.config)
    if longest is None:
        return
    before = strategy.virtual_tokens if strategy.method in PROMPT_METHODS else 0
    for field, length in _lengths(workload):
        if length + before > longest:
            raise SpecError(
                field,
                length,
                f"{source.name} has positions for {longest:,} tokens"
                + (f", {before:,} of them virtual here" if before else ""),
                allowed=(f"1 to {longest - before:,}",),
            )


def _lengths(workload: Workload) -> Iterator[tuple[str, int]]:
    """(flag, positions it takes)."""
    if not workload.generates:
        yield "max-length", workload.max_length
        yield "max-target-length", workload.max_target_length or 0
        return
    prompt, new = workload.prompt_tokens, workload.new_tokens
    encodes = workload.task == "seq2seq-lm"
    yield "prompt-length", prompt
    yield "max-new-tokens", new if encodes else prompt + new
