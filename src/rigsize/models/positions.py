"""What an architecture can do: its heads by task, and how long its input may be.

The table is written from transformers' auto mappings by ``validation/build_architectures.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError, UnsupportedCombination, nearest
from rigsize.models.not_text import why_not_text
from rigsize.spec.workload import TASKS

__all__ = [
    "TASKS",
    "architecture_names",
    "architecture_of",
    "check_task",
    "default_task",
    "heads_of",
    "max_positions",
    "tasks_of",
]

_AUTO_CLASS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "embedding": "AutoModel",
}

# Their position ids start behind the padding id, so the first rows of the table are never used:
# XLM-R has 514 rows for 512 tokens.
_STARTS_BEHIND_PADDING = frozenset(
    "altclip_text_model camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke markuplm "
    "mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split()
)
_DEFAULT_PADDING_ID = 1


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    path = Path(__file__).parent / "data" / "architectures.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def architecture_names() -> tuple[str, ...]:
    """Every ``model_type`` that transformers knows, text or not."""
    return tuple(_table()["architectures"])


def architecture_of(model_type: str) -> dict[str, str]:
    """Class name by task; empty for an unknown architecture and for one that reads no text."""
    tasks: dict[str, str] = _table()["architectures"].get(model_type, {}).get("tasks", {})
    return tasks


def tasks_of(model_type: str) -> tuple[str, ...]:
    """The tasks that the architecture has a head for, in a fixed order."""
    heads = architecture_of(model_type)
    return tuple(task for task in TASKS if task in heads)


def heads_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Class name by task, from the repository's own code where transformers has none."""
    known = architecture_of(config["model_type"])
    remote = config.get("auto_map")
    if known or not isinstance(remote, Mapping):
        return known
    return {task: str(remote[auto]) for task, auto in _AUTO_CLASS.items() if auto in remote}


def default_task(config: Mapping[str, Any]) -> str:
    """What one usually does with it: encoders classify, decoders and pairs generate."""
    tasks = heads_of(config)
    order = ["seq2seq-lm", "sequence-classification", "causal-lm", "embedding"]
    if "masked-lm" not in tasks or config.get("is_decoder"):
        order = ["seq2seq-lm", "causal-lm", "sequence-classification", "embedding"]
    usable = [task for task in order if task in tasks]
    on_text = [task for task in usable if not why_not_text(config["model_type"], task)]
    if usable:
        return next((task for task in on_text if task != "embedding"), usable[0])
    raise SpecError("model_type", config["model_type"], "has no head for any text task")


def check_task(config: Mapping[str, Any], task: str) -> str:
    """The class that does ``task``; an architecture without such a head is refused."""
    model_type = config["model_type"]
    heads = heads_of(config)
    if task in heads:
        _refuse_other_inputs(model_type, task, heads)
        return heads[task]
    problem = f"{model_type} has no head for it" if task in TASKS else "no such task"
    allowed = [name for name in TASKS if name in heads]
    raise SpecError("task", task, problem, allowed=allowed, nearest=nearest(task, allowed))


def _refuse_other_inputs(model_type: str, task: str, heads: Mapping[str, str]) -> None:
    why = why_not_text(model_type, task)
    if why:
        allowed = [name for name in TASKS if name in heads and not why_not_text(model_type, name)]
        raise UnsupportedCombination(
            "task", task, f"{model_type} has no use on text alone for it: {why}", allowed=allowed
        )


def max_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens the positions allow; None where nothing bounds them.

    Nothing does for relative positions (T5), ALiBi (Bloom, Falcon with ``alibi``) and recurrent
    models. MPT's ALiBi is an exception: its bias is built for ``max_seq_len`` tokens at most.
    """
    model_type = config["model_type"]
    known = _table()["architectures"].get(model_type, {}).get("positions")
    if known is None or config.get("alibi") is True:
        return None
    rows = _rows(config, known["key"], known["default"])
    if model_type not in _STARTS_BEHIND_PADDING:
        return rows
    padding_id = config.get("pad_token_id")
    unused = (padding_id if isinstance(padding_id, int) else _DEFAULT_PADDING_ID) + 1
    if not 0 <= unused < rows:
        allowed = (f"more than pad_token_id + 1 = {unused}",)
        raise SpecError(known["key"], rows, "leaves no usable position", allowed=allowed)
    return rows - unused


def _rows(config: Mapping[str, Any], key: str, default: int) -> int:
    # A model that also sees or hears keeps its text part in a config of its own.
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            value = part.get(key, part.get("max_position_embeddings"))
            if isinstance(value, int) and value > 0:
                return value
    return default
