"""Whether several texts can share one row of a batch, and where their positions begin. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["POSITIONS_BEHIND_PADDING", "can_share_row"]

POSITIONS_BEHIND_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "xmod",
    "roberta-prelayernorm",
)
"""Model types whose positions start behind the padding id: `create_position_ids_from_input_ids` of
transformers/models/roberta/modeling_roberta.py."""
_COUNT_THEMSELVES = (
    "t5",
    "mt5",
    "umt5",
    "deberta",
    "deberta-v2",
    "mpnet",
    "bloom",
    "mpt",
    "xlnet",
    "mamba",
    "mamba2",
)
"""They take no position ids: a second text in the row would be the first one's continuation."""


def can_share_row(config: Mapping[str, Any]) -> bool:
    """Whether an unpadded row of several texts gives each of them its own positions."""
    return config.get("model_type") not in _COUNT_THEMSELVES and not config.get(
        "is_encoder_decoder"
    )
