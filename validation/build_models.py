"""Write ``src/rigsize/models/data/models.json.gz`` from a file of verified configurations.

    python validation/build_models.py SRC

SRC is a JSON array; each entry holds a model's config, the parameter counts that were published
for it, and the counts of the model built from the config on the meta device.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "src" / "rigsize" / "models" / "data" / "models.json.gz"
COPIED = (
    "id",
    "aliases",
    "config",
    "meta_parameters",
    "positions",
    "training_seq_max",
    "checkpoint_dtype",
    "licence",
    "evidence",
    "sources",
    "notes",
)


def checkpoint_note(published: dict[str, Any]) -> str:
    """What the exact published count counts, and how it differs from the model in memory."""
    for check in published["checks"]:
        if check["value"] == published["exact"]:
            same = f"equals the {check['nearest_task']} model"
            return f"{check['kind']}; {check['explained_by'] or same}"
    return f"only a rounded count was published: {published['rounded_claim']}"


def slim(entry: dict[str, Any]) -> dict[str, Any]:
    """What the package needs of one entry."""
    published = entry["published_parameters"]
    return {key: entry[key] for key in COPIED} | {
        "checkpoint_parameters": published["exact"],
        "checkpoint_note": checkpoint_note(published),
        "loaded_parameters": entry.get("loaded_parameters", {}),
    }


def main(source: str) -> None:
    """Write the bundled models; the same input gives the same bytes."""
    entries = json.loads(Path(source).read_text(encoding="utf-8"))
    text = json.dumps([slim(entry) for entry in entries], separators=(",", ":"))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(entries)} models, {TARGET.stat().st_size:,} bytes: {TARGET}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
