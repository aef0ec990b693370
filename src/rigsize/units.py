"""The only place that formats and parses bytes, counts, durations and rates.

Memory is shown in GiB (what nvidia-smi's MiB means), counts and rates are decimal.
"""

from __future__ import annotations

import math
import re

from rigsize.errors import SpecError

__all__ = [
    "GB",
    "GIB",
    "GIGABIT_BYTES",
    "KIB",
    "MIB",
    "format_bandwidth",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_flops",
    "format_network",
    "parse_bytes",
    "parse_count",
    "parse_duration",
]

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 10**9
GIGABIT_BYTES = 10**9 // 8

_BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024**4,
}
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Bounded digits, so that no text makes an absurd number or a slow match.
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]{0,3})")
_DURATION_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([a-z]{1,3})\s*")
_LARGEST_BYTES = 1024**6


def format_bytes(num_bytes: int, digits: int = 2) -> str:
    """Bytes as GiB, or as MiB, KiB, B where GiB would round them away."""
    magnitude = abs(num_bytes)
    if magnitude >= GIB / 10:
        return f"{num_bytes / GIB:,.{digits}f} GiB"
    if magnitude >= MIB:
        return f"{num_bytes / MIB:,.1f} MiB"
    if magnitude >= KIB:
        return f"{num_bytes / KIB:,.1f} KiB"
    return f"{num_bytes} B"


def parse_bytes(text: str, field: str = "size") -> int:
    """Bytes from ``24GiB``, ``24GB`` (decimal), ``512MiB``; a bare number is ambiguous."""
    match = _QUANTITY.fullmatch(text.strip().lower())
    unit = _BYTE_UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise SpecError(
            field,
            text,
            "not a size with a unit",
            allowed=("24GiB", "24GB", "512MiB"),
            hint="GB is 10^9 bytes, GiB is 2^30",
        )
    num_bytes = _scaled(match[1], unit)
    if num_bytes > _LARGEST_BYTES:
        raise SpecError(field, text, "absurdly large", allowed=("up to 1024 PiB",))
    return num_bytes


def format_count(count: int) -> str:
    """A number of parameters, tokens or examples in three figures: ``278 M``, ``10.7 B``."""
    for suffix, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(count) >= scale:
            return f"{_three_figures(count / scale)} {suffix}"
    return str(count)


def parse_count(text: str, field: str = "count") -> int:
    """A count from ``10000``, ``10_000``, ``10k``, ``1.5M``, ``2B``."""
    match = _QUANTITY.fullmatch(text.strip().lower().replace("_", "").replace(",", ""))
    unit = _COUNT_UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise SpecError(field, text, "not a count", allowed=("10000", "10k", "1.5M", "2B"))
    return _scaled(match[1], unit)


def format_usd(usd: float) -> str:
    """USD in cents, and below one dollar in two figures."""
    return f"{usd:,.2f}" if usd >= 1 or not usd else f"{usd:.2g}"


def plural(count: int, word: str) -> str:
    """``1 epoch``, ``3 epochs``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: ``431 ms``, ``4 min 5 s``, ``2 d 3 h``."""
    if not math.isfinite(seconds):
        return "unknown"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.{0 if abs(seconds) >= 0.1 else 1}f} ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, scale in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= scale:
            return f"{whole // scale} {large} {whole % scale // _step(small)} {small}"
    return f"{whole} s"


def parse_duration(text: str, field: str = "duration") -> float:
    """Seconds from ``90s``, ``15min``, ``1.5h``, ``1h30m``, ``250ms``."""
    lowered = text.strip().lower()
    parts = list(_DURATION_PART.finditer(lowered))
    covered = sum(len(part[0]) for part in parts)
    if not parts or covered != len(lowered) or any(part[2] not in _SECONDS for part in parts):
        raise SpecError(field, text, "not a duration", allowed=("90s", "15min", "1.5h", "1h30m"))
    return sum(float(part[1]) * _SECONDS[part[2]] for part in parts)


def format_bandwidth(bytes_per_s: float) -> str:
    """Bytes per second as decimal GB/s, the vendors' unit."""
    return f"{_three_figures(bytes_per_s / 1e9)} GB/s"


def format_network(bytes_per_s: float) -> str:
    """What a network carries, in Gbit/s as they are sold."""
    return f"{bytes_per_s / GIGABIT_BYTES:,g} Gbit/s"


def format_flops(flops_per_s: float) -> str:
    """Floating-point operations per second as TFLOP/s."""
    return f"{_three_figures(flops_per_s / 1e12)} TFLOP/s"


def _three_figures(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}"


def _scaled(number: str, unit: int) -> int:
    # An integer stays exact: 2^60 bytes have more digits than a float holds.
    return int(number) * unit if number.isdecimal() else round(float(number) * unit)


def _step(unit: str) -> int:
    return int(_SECONDS[unit])
