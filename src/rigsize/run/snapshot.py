"""What was alive at the allocated peak, as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rigsize.run.tally import Peak

__all__ = ["PICKLES", "peak_document", "write_snapshot"]

PICKLES = (".pickle", ".pkl")
"""Suffixes that ask for torch's own format, CUDA only: for the viewer at pytorch.org/memory_viz."""


def write_snapshot(file: Path, meter: Any) -> str:
    """Writes the peak's allocations as JSON, or CUDA's history as torch's pickle; says which."""
    if file.suffix in PICKLES and hasattr(meter, "dump"):
        meter.dump(file)
        return f"{file}: torch's own snapshot, a pickle for pytorch.org/memory_viz"
    file.write_text(json.dumps(peak_document(meter.tally.peak), indent=1) + "\n", encoding="utf-8")
    return f"{file}: every allocation alive at the peak, largest first"


def peak_document(peak: Peak) -> dict[str, Any]:
    """The peak's allocations, largest first."""
    ranked = sorted(peak.live, key=lambda one: -one.num_bytes)
    return {
        "schema_version": "1.0",
        "step": peak.step,
        "phase": peak.phase,
        "total_bytes": peak.total_bytes,
        "categories": peak.by_category(),
        "allocations": [
            {
                "bytes": one.num_bytes,
                "category": one.category,
                "op": one.op,
                "step": one.step,
                "phase": one.phase,
            }
            for one in ranked
        ],
    }
