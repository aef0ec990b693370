"""Where what was measured lies. Imports nothing, so that an estimate may look there."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CALIBRATION_PREFIX", "has_calibrations", "records_folder"]

CALIBRATION_PREFIX = "calibration-"
"""Of a calibration's file: the other Records of the folder need not be read."""


def records_folder() -> Path:
    """Where Records go when nobody says so."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "rigsize" / "records"


def has_calibrations() -> bool:
    """Whether anything was ever calibrated here."""
    return next(records_folder().glob(f"{CALIBRATION_PREFIX}*.json"), None) is not None
