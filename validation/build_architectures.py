"""Write ``src/rigsize/models/data/architectures.json`` from transformers' own auto mappings.

    python validation/build_architectures.py

Which architecture has a head for which task, and how many positions its config has by default:
with this at hand the package answers both without importing transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

TARGET = Path(__file__).parents[1] / "src" / "rigsize" / "models" / "data" / "architectures.json"
HEADS = {
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def tasks(model_type: str) -> dict[str, str]:
    """The classes of one architecture by task; none for one that reads no text."""
    found = {task: names[model_type] for task, names in HEADS.items() if model_type in names}
    reads_text = found or model_type in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    base = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    if reads_text and base:
        # A few architectures name two base models; the first is the whole one.
        found["embedding"] = base if isinstance(base, str) else base[0]
    return found


def default_positions(model_type: str) -> dict[str, int | str] | None:
    """The config key that holds the number of position rows, and its default."""
    try:
        config: Any = CONFIG_MAPPING[model_type]().get_text_config()
    except Exception as error:  # a config that needs arguments has no defaults to read
        print(f"{model_type}: no default config ({type(error).__name__})")
        return None
    renamed = config.attribute_map.get("max_position_embeddings")
    for key in (renamed, *POSITION_KEYS):
        value = getattr(config, key, None) if key else None
        if isinstance(value, int) and value > 0:
            return {"key": key, "default": value}
    return None


def entry(model_type: str) -> dict[str, Any]:
    """One architecture."""
    by_task = tasks(model_type)
    if not by_task:
        return {}
    positions = default_positions(model_type)
    return {"tasks": by_task} | ({"positions": positions} if positions else {})


def document() -> dict[str, Any]:
    """All architectures of this transformers, in order of their names."""
    return {
        "transformers": transformers.__version__,
        "architectures": {name: entry(name) for name in sorted(CONFIG_MAPPING)},
    }


def main() -> None:
    """Write the file, one architecture a line so that a new release shows as a small diff."""
    whole = document()
    architectures = whole["architectures"]
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in architectures.items()]
    body = ",\n".join(lines)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(
        f'{{"transformers": "{whole["transformers"]}", "architectures": {{\n{body}\n}}}}\n',
        encoding="utf-8",
    )
    readers = sum(bool(value) for value in architectures.values())
    print(f"{len(architectures)} architectures, {readers} of them read text: {TARGET}")


if __name__ == "__main__":
    main()
