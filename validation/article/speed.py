"""Claims of the article's first section about time."""

from __future__ import annotations

from validation.article.claim import HOLDS, NOT, ROUGHLY, Finding, claim
from validation.article.question import BASE, LARGE, ask, command, spread, timed


@claim
def length_takes_time() -> Finding:
    """A shorter maximum length lowers execution time."""
    found = {s: ask(LARGE, precision="tf32", micro_batch=16, max_length=s) for s in (128, 256, 512)}
    steps = {s: timed(one).step.step_s for s, one in found.items()}
    rising = [step.p50 for step in steps.values()]
    shown = ", ".join(f"{s} tokens {spread(step)}" for s, step in steps.items())
    return Finding(
        ours=f"Large, fine-tuning, 16 texts, tf32: a step of {shown}",
        command=f"{command(found[512])} --time",
        verdict=HOLDS if rising == sorted(rising) else NOT,
    )


@claim
def larger_batches_infer_faster() -> Finding:
    """In inference a larger batch means a shorter average time."""
    found = {
        b: ask(BASE, use="inference", precision="bf16", micro_batch=b) for b in (1, 16, 128, 512)
    }
    each = {b: timed(one).step.step_s.p50 / b for b, one in found.items()}
    shown = ", ".join(f"{b} texts {seconds * 1e3:.2f} ms" for b, seconds in each.items())
    falling = list(each.values())
    return Finding(
        ours=f"Base, bf16, 128 tokens: a text takes, in batches of {shown}. Beyond what fills the"
        " card a larger batch gains little",
        command=f"{command(found[128])} --time",
        verdict=HOLDS
        if falling == sorted(falling, reverse=True)
        else ROUGHLY
        if falling[0] > falling[-1]
        else NOT,
    )
