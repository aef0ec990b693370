"""The bundled models: verified configurations with their published parameter counts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rigsize.errors import nearest

__all__ = ["BundledModel", "bundled_models", "find_bundled", "nearest_bundled"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundledModel:
    """One model whose config was built and counted against a published number."""

    id: str
    """The hub id."""
    aliases: tuple[str, ...]
    config: Mapping[str, Any]
    checkpoint_parameters: int | None
    """What the published file holds; it may hold more than the model that is run."""
    checkpoint_note: str
    """What was counted, and why it differs from the model in memory."""
    meta_parameters: Mapping[str, int]
    """By task, of the model built from the config (three labels), tied weights once."""
    loaded_parameters: Mapping[str, int]
    """By task, where loading the checkpoint unties what the config ties (T5 v1.1, mT5)."""
    positions: str
    """learned, rope, relative, alibi, sinusoidal or none."""
    training_seq_max: int
    checkpoint_dtype: str
    licence: str
    evidence: str
    """Whether the config comes from a source or was recalled, and what was checked."""
    sources: tuple[str, ...]
    notes: tuple[str, ...]


@lru_cache(maxsize=1)
def bundled_models() -> tuple[BundledModel, ...]:
    """All bundled models, in the order of the table."""
    packed = (Path(__file__).parent / "data" / "models.json.gz").read_bytes()
    # zlib reads gzip as it is; the gzip module costs more to import than the data to read.
    entries = json.loads(zlib.decompress(packed, wbits=zlib.MAX_WBITS | 16))
    return tuple(_model(entry) for entry in entries)


def find_bundled(name: str) -> BundledModel | None:
    """The bundled model with this id or alias, whatever its case; None if there is none."""
    return _index().get(name.strip().casefold())


def nearest_bundled(name: str) -> str | None:
    """The bundled id or alias that ``name`` was probably meant to be."""
    return nearest(name, [n for model in bundled_models() for n in (model.id, *model.aliases)])


def _model(entry: dict[str, Any]) -> BundledModel:
    for key in ("aliases", "sources", "notes"):
        entry[key] = tuple(entry[key])
    return BundledModel(**entry)


@lru_cache(maxsize=1)
def _index() -> dict[str, BundledModel]:
    return {
        name.casefold(): model for model in bundled_models() for name in (model.id, *model.aliases)
    }
