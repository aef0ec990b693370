"""accelerate's `estimate-memory`, by its own functions on our config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rigsize.peers.answer import PeerAnswer
from rigsize.peers.models import build_on_meta, how_to_install

if TYPE_CHECKING:
    from rigsize.estimate import Estimate

__all__ = ["ask", "dtype_of"]

NAME = "accelerate"
_SHARE = {"float32": 1, "float16": 2, "int8": 4, "int4": 8}
"""By how much `gather_data` divides the fp32 size for a model that is only loaded."""
_TERMS = {"model": "weights", "gradients": "gradients", "optimizer": "optimizer_states"}


def dtype_of(precision: str) -> str:
    """The `--dtypes` value that is nearest to a precision policy."""
    if precision in ("fp32", "tf32"):
        return "float32"
    return {"int8": "int8", "fp8": "int8", "int4": "int4"}.get(precision, "float16")


def ask(estimate: Estimate) -> PeerAnswer:
    """The row of its table for this dtype: `Total Size`, in training `Training using Adam`.

    `accelerate/commands/estimate.py` asks the hub for the model; here the same functions get the
    model that the config describes, an `AutoModel` in fp32 on meta as there: without its head.
    """
    missing = how_to_install("accelerate")
    if missing:
        return PeerAnswer(name=NAME, total_bytes=None, unknown_reason=missing)
    import accelerate
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    dtype = dtype_of(estimate.strategy.precision)
    total, (largest, _) = calculate_maximum_sizes(build_on_meta(estimate, "embedding"))
    loaded = f"the {dtype} row; largest layer {largest // _SHARE[dtype]:,} B"
    if not estimate.workload.training:
        size = total // _SHARE[dtype]
        return _answer(accelerate.__version__, size, {"weights": size}, loaded)
    usage = estimate_training_usage(total, dtype)
    terms = {_TERMS[name]: size for name, size in usage.items() if name in _TERMS and size > 0}
    largest_term = max(usage.values())
    rule = "prints the largest of its terms, not their sum, for one text of no length"
    return _answer(accelerate.__version__, largest_term, terms, f"{loaded}; {rule}")


def _answer(version: str, total: int, terms: dict[str, int], note: str) -> PeerAnswer:
    note = f"AutoModel, so without the task's head; {note}"
    return PeerAnswer(name=NAME, version=version, total_bytes=total, terms=terms, note=note)
