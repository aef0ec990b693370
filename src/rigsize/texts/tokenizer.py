"""Tokenizers by folder, hub id or bundled name, and whether one fits a model."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.models.hub import cached_snapshot, is_hub_id
from rigsize.models.registry import find_bundled
from rigsize.texts.content import files_digest
from rigsize.texts.reach import hub_answers

__all__ = [
    "TokenizerLike",
    "check_vocabulary",
    "load_tokenizer",
    "loaded",
    "own_length",
    "tokenizer_digest",
    "tokenizer_place",
]

TokenizerLike = Any
"""A loaded fast tokenizer of transformers, or a str or Path that `load_tokenizer` takes."""

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "tekken.json",
)
_HINT = "give a folder with a tokenizer.json, a hub id or a bundled name"
_XLM_R = ("xlm-roberta", "xlm-roberta-xl")


def load_tokenizer(name_or_folder: str | Path) -> Any:
    """A fast tokenizer; remote code never runs.

    Args:
        name_or_folder: a folder, a hub id or a bundled model's name. For the bundled XLM-R models
            the vocabulary of `rigsize data demo` serves where theirs is not in the hub's cache.

    Raises:
        SpecError: no tokenizer there, or one without the fast implementation.
        MeasurementFailed: the hub does not answer.
    """
    place = tokenizer_place(name_or_folder)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        hint = "pip install 'rigsize[train]'"
        problem = "loading it needs transformers"
        raise MeasurementFailed("tokenizer", str(name_or_folder), problem, hint=hint) from None
    if isinstance(place, str) and not hub_answers():
        problem = "not in the local cache, and the hub does not answer"
        raise MeasurementFailed("tokenizer", str(name_or_folder), problem, hint=_HINT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(place), trust_remote_code=False, local_files_only=isinstance(place, Path)
        )
    except Exception as error:  # whatever the library raises becomes one line
        raise _refused(name_or_folder, place, error) from None
    return _fast(tokenizer, name_or_folder)


def loaded(tokenizer: TokenizerLike) -> Any:
    """The tokenizer itself, loaded where it was only named."""
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer)
    return _fast(tokenizer, type(tokenizer).__name__)


def tokenizer_place(name_or_folder: str | Path) -> Path | str:
    """The folder a tokenizer is read from, or the hub id it must be asked for under."""
    text = str(name_or_folder)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not _files(folder):
            raise SpecError("tokenizer", text, "no tokenizer files in this folder", hint=_HINT)
        return folder
    bundled = find_bundled(text)
    hub_id = bundled.id if bundled else text
    if isinstance(name_or_folder, Path) or not is_hub_id(hub_id):
        raise SpecError("tokenizer", text, "no such folder", hint=_HINT)
    snapshot = cached_snapshot(hub_id)
    if snapshot is not None and _files(snapshot):
        return snapshot
    if bundled and bundled.config["model_type"] in _XLM_R:
        return _demo_vocabulary() or hub_id
    return hub_id


def _demo_vocabulary() -> Path | None:
    from rigsize.texts.demo import find_demo

    demo = find_demo()
    return demo.model_folder if demo else None


def own_length(name_or_folder: str | Path) -> int | None:
    """The limit a tokenizer names for its model's texts, read from its folder where there is one.

    None where it names none.
    """
    place = tokenizer_place(name_or_folder)
    if isinstance(place, Path):
        try:
            config = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
            length = config.get("model_max_length")
        except (OSError, ValueError, AttributeError):
            length = None
    else:
        length = load_tokenizer(name_or_folder).model_max_length
    # Without a limit, transformers writes 10**30.
    return length if isinstance(length, int) and 0 < length < 10**7 else None


def tokenizer_digest(tokenizer: TokenizerLike) -> str:
    """What token ids depend on: a folder's files and transformers' version, or the backend."""
    if isinstance(tokenizer, str | Path):
        place = tokenizer_place(tokenizer)
        if isinstance(place, Path):
            return f"{files_digest(_files(place))}-{metadata.version('transformers')}"
        tokenizer = load_tokenizer(tokenizer)
    backend = json.loads(_fast(tokenizer, type(tokenizer).__name__).backend_tokenizer.to_str())
    # What the last call set, not what the tokenizer is.
    backend |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()


def check_vocabulary(tokenizer: Any, config: Any) -> None:
    """Refuses a tokenizer that can give ids which the model has no embedding for.

    Args:
        tokenizer: a loaded tokenizer.
        config: transformers' config, or the mapping in a config.json.

    Raises:
        UnsupportedCombination: the highest id is not below the model's vocab_size.
    """
    size = _vocab_size(config)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if size is not None and highest >= size:
        raise UnsupportedCombination(
            "tokenizer",
            str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
            f"its ids reach {highest:,}, but the model has {size:,} embeddings",
            hint="use the model's own tokenizer",
        )


def _vocab_size(config: Any) -> int | None:
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    if isinstance(config, dict):
        text = config.get("text_config")
        size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    else:
        size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in _FILES if (folder / name).is_file()]


def _fast(tokenizer: Any, name: object) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        problem = "this tokenizer has no fast implementation (tokenizer.json)"
        raise SpecError("tokenizer", str(name), problem)
    return tokenizer


def _refused(name: object, place: Path | str, error: Exception) -> SpecError | MeasurementFailed:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(place, Path):
        return SpecError("tokenizer", str(name), f"cannot be loaded ({reason[:200]})", hint=_HINT)
    problem = f"not in the local cache, and the hub gave none ({reason[:200]})"
    return MeasurementFailed("tokenizer", str(name), problem, hint=_HINT)
