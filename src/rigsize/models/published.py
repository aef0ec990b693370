"""How many bytes the file of a published checkpoint has: what a run downloads and reads."""

from __future__ import annotations

from rigsize.models.registry import find_bundled
from rigsize.models.source import ModelSource

__all__ = ["published_bytes"]

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
USUAL = "float32"
"""What a config means that names no dtype."""


def published_bytes(source: ModelSource, parameters: int) -> tuple[int | None, str]:
    """(bytes, whose dtype it is); no bytes of a file whose packing is not counted.

    Its parameters, without the file's header, in the dtype that is published of a bundled model,
    else named by the config, else float32. `parameters` are those of the model that is run, for
    where nobody counted the file's own.
    """
    count = source.checkpoint_parameters or parameters
    bundled = find_bundled(source.name) if source.origin == "bundled" else None
    if bundled is None and source.config.get("quantization_config"):
        return None, "of a packed checkpoint"
    named = bundled.checkpoint_dtype if bundled else _named(source)
    size = _DTYPE_BYTES.get((named or USUAL).removeprefix("torch."))
    if size is None:
        return None, f"of a checkpoint in {named}"
    if not named:
        return count * size, f"published in {USUAL}: the config names no other dtype"
    return count * size, f"published in {named}"


def _named(source: ModelSource) -> str:
    return str(source.config.get("dtype") or source.config.get("torch_dtype") or "")
