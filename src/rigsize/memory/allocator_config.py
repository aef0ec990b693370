"""The settings of `PYTORCH_CUDA_ALLOC_CONF` that shape device memory.

Source: pytorch/pytorch, c10/core/AllocatorConfig.h and AllocatorConfig.cpp (2.13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20
POWER2_INTERVALS = 16
"""`roundup_power2_divisions` has one entry per power of two from 1 MiB to 32 GiB and beyond."""

_IGNORED_KEYS = frozenset(
    # Host memory, locking and error policy: no influence on device blocks. Garbage collection
    # acts only under a memory fraction, which is refused below.
    (
        "garbage_collection_threshold",
        "graph_capture_record_stream_reuse",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "throw_on_cudamalloc_oom",
    )
)
_UNMODELLED = {"backend": "native", "per_process_memory_fraction": "1.0"}
_KEYS = (
    "expandable_segments",
    "large_segment_size_mb",
    "max_non_split_rounding_mb",
    "max_split_size_mb",
    "roundup_power2_divisions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """The settings of `PYTORCH_CUDA_ALLOC_CONF` that shape device memory; bytes throughout."""

    max_split_size_bytes: int | None = None
    """Blocks of this size or more are never split and never lent to smaller requests."""
    large_segment_bytes: int = 20 * MIB
    """Segment requested for large blocks below 10 MiB."""
    expandable_segments: bool = False
    """Grow one virtual range per pool and stream by pages instead of separate segments."""
    roundup_power2_divisions: tuple[int, ...] = ()
    """Steps between powers of two, one entry per power from 1 MiB on; empty: no such rounding."""
    max_non_split_rounding_bytes: int = 20 * MIB
    """An unsplittable block may exceed the request it serves by less than this."""

    @classmethod
    def parse(cls, text: str) -> AllocatorConfig:
        """Read the syntax of `PYTORCH_CUDA_ALLOC_CONF`."""
        settings: dict[str, str] = {}
        for item in _split_settings(text):
            key, separator, value = item.partition(":")
            if not separator or not value:
                raise ValueError(f"allocator setting {item!r} is not of the form key:value")
            settings[key] = value
        for key, value in settings.items():
            _check_setting(key, value)
        # Limits within a large segment would forbid packing; torch refuses them too.
        large = _mebibytes(settings, "large_segment_size_mb", least=10) or 20 * MIB
        rounding = _mebibytes(settings, "max_non_split_rounding_mb", least=20) or 20 * MIB
        return cls(
            max_split_size_bytes=_mebibytes(settings, "max_split_size_mb", least=20),
            large_segment_bytes=large,
            expandable_segments=_boolean(settings.get("expandable_segments", "False")),
            roundup_power2_divisions=_divisions(settings.get("roundup_power2_divisions", "")),
            max_non_split_rounding_bytes=rounding,
        )


def _split_settings(text: str) -> Iterator[str]:
    """Split at the commas outside square brackets, dropping all spaces."""
    depth, item = 0, ""
    for character in "".join(text.split()) + ",":
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            if item:
                yield item
            item = ""
        else:
            item += character
    if item:
        raise ValueError(f"allocator setting {item.rstrip(',')!r} lacks its closing bracket")


def _check_setting(key: str, value: str) -> None:
    if key in _UNMODELLED:
        if value != _UNMODELLED[key]:
            raise ValueError(
                f"allocator setting {key}:{value} is not modelled, only {key}:{_UNMODELLED[key]}"
            )
    elif key not in _KEYS and key not in _IGNORED_KEYS:
        raise ValueError(f"unknown allocator setting {key!r}; known: {', '.join(_KEYS)}")


def _mebibytes(settings: dict[str, str], key: str, least: int) -> int | None:
    if key not in settings:
        return None
    number = _whole_number(settings[key], key)
    if number < least:
        raise ValueError(f"allocator setting {key}:{number} must be at least {least} (MiB)")
    return number * MIB


def _whole_number(text: str, key: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"allocator setting {key}: {text!r} is not a whole number")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"allocator setting expandable_segments:{text} must be True or False")
    return text == "True"


def _divisions(text: str) -> tuple[int, ...]:
    """One number for all sizes, or `[256:1,512:2,>:8]` with sizes in MiB."""
    if not text:
        return ()
    if not text.startswith("["):
        return (_power_of_two(text),) * POWER2_INTERVALS
    divisions, last = [0] * POWER2_INTERVALS, -1
    for item in text.strip("[]").split(","):
        size, _, steps = item.partition(":")
        value = _power_of_two(steps)
        if size == ">":
            divisions[last + 1 :] = [value] * (POWER2_INTERVALS - last - 1)
            continue
        index = min(_power_of_two(size).bit_length() - 1, POWER2_INTERVALS - 1)
        if last < 0:
            divisions[:index] = [value] * index
        divisions[index] = value
        last = index
    return tuple(divisions)


def _power_of_two(text: str) -> int:
    number = _whole_number(text, "roundup_power2_divisions")
    if number < 1 or number & (number - 1):
        raise ValueError(f"allocator setting roundup_power2_divisions: {number} is no power of two")
    return number
