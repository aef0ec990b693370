"""Whether the hub answers: its libraries take up to a minute of retries to say that it does not."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["hub_answers"]

_TIMEOUT_S = 5.0


def hub_answers(cached: Path | None = None) -> bool:
    """Whether the hub is worth asking: it answers, or `cached` holds what would be asked for."""
    if cached is not None and cached.exists():
        return True
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True  # it answered, if only to refuse
    except (OSError, ValueError):
        return False
