"""Domains of sizes: where one sequence of events was proved. No torch here.

Batch 1 is another graph in most decoders; lengths that are no multiple of 8 pad their masks; past
a sliding window another mask is made. A label names the cell of this grid a size falls in.

A step that decodes one token has no length but that of its keys, C, aligned or not: `bN.c.0` to the
first window, `bN.c.1` past it.

One token is a domain of its own, one selected row too, and so is any size of a model whose events
depend on the length (Mamba's reference loop over positions): a label `at.B.S.T`, with M, N and C
where there are any, is proved for that size alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rigsize.trace.sizes import CHUNKS, SYMBOLS

THRESHOLDS = (
    "sliding_window",
    "window_size",
    "local_attention",
    "original_max_position_embeddings",
    "attention_chunk_size",
)
_ALIGNED = {
    "S": (64, 104, 152, 232, 88, 40, 120, 72, 48, 24, 16, 8),
    "T": (48, 72, 40, 120, 96, 104, 24, 56, 80, 32, 16, 8),
}
_UNALIGNED = {
    "S": (37, 75, 101, 61, 117, 53, 29, 91, 13, 7, 5, 3),
    "T": (29, 45, 83, 51, 19, 59, 35, 11, 67, 9, 5, 3),
}
LONG = 4096
LEAST_KEYS = 3
"""Of a traced decoding step: two steps before it have made the cache what it stays."""
_BATCHES = (2, 3, 5, 4, 7)
_REAL = (0.41, 0.73, 0.57, 0.35, 0.64, 0.83, 0.47, 0.29, 0.69, 0.53, 0.38, 0.77)
"""Share of real tokens in the texts behind the longest: N lies between S and B * S."""
_READ = (0.31, 0.17, 0.23, 0.13, 0.41, 0.19, 0.37, 0.11, 0.27, 0.33, 0.15, 0.21)
"""Share of all positions that the head reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Varied:
    """What varies in the batches of a trace key beside texts and length."""

    target: bool = False
    """T, target tokens."""
    rows: bool = False
    """M, rows that the head reads."""
    chunked: bool = False
    """M is a multiple of CHUNKS."""
    unpadded: bool = False
    """N, tokens of all texts together; S is the longest of these."""
    decodes: bool = False
    """C, keys of a step that decodes a token."""
    encodes: bool = False
    """S beside C: the encoder's tokens."""

    def count(self, name: str) -> int:
        """How many sizes vary in a domain; a lone unpadded text has N = S."""
        alone = name.startswith("b1.")
        if self.decodes:
            return 1 + (not alone) + self.encodes
        return 1 + (not alone) + self.target + self.rows + (self.unpadded and not alone)

    def point(self, B: int, S: int, index: int) -> dict[str, int]:
        """A size whose other figures are unlike those of any other index."""
        point = {"B": B, "S": S}
        if self.unpadded:
            point["N"] = S + round((B - 1) * S * _REAL[index])
        if self.rows:
            wanted = int(point.get("N", B * S) * _READ[index])
            # Odd where the rows are not cut in pieces: no eighth of them is taken for a size.
            pieces = CHUNKS * max(2, wanted // CHUNKS)
            point["M"] = pieces if self.chunked else max(3, wanted | 1)
        return point


def thresholds(
    config: Mapping[str, Any], max_positions: int | None, *, cached: bool = False
) -> tuple[int, ...]:
    """Lengths past which the model takes another path, ascending.

    With a cache a window is left as soon as it is full: `_ignore_causal_mask_sdpa` of
    transformers' masking_utils, and `DynamicSlidingWindowLayer`, which keeps one key less.
    """
    limit = max_positions or 1 << 62
    if config.get("use_sliding_window") is False:
        config = {k: v for k, v in config.items() if k != "sliding_window"}
    found = {config.get(name) for name in THRESHOLDS}
    if cached:
        found = {t - 1 if isinstance(t, int) else t for t in found}
    return tuple(sorted(t for t in found if isinstance(t, int) and 0 < t < limit))


def label(point: Mapping[str, int], limits: tuple[int, ...]) -> str:
    """The domain a size falls in: `bN.s8.0`."""
    if point.get("C"):
        return (
            f"{'b1' if point['B'] == 1 else 'bN'}.c.{sum(limit < point['C'] for limit in limits)}"
        )
    B, S, T = point["B"], point["S"], point.get("T", 0)
    if S == 1 or T == 1 or point.get("M", 0) == 1:
        return exact_label(point)
    passed = sum(limit < S for limit in limits)
    return f"{'b1' if B == 1 else 'bN'}.{'s8' if S % 8 == 0 and T % 8 == 0 else 'sx'}.{passed}"


def exact_label(point: Mapping[str, int]) -> str:
    """The domain of one size alone: `at.2.1.0`, with rows and unpadded tokens `at.2.9.0.3.14`."""
    numbers = [point["B"], point.get("S", 0), point.get("T", 0)]
    if point.get("M") or point.get("N") or point.get("C"):
        numbers += [point.get("M", 0), point.get("N", 0)]
    numbers += [point["C"]] if point.get("C") else []
    return ".".join(["at", *map(str, numbers)])


def possible_labels(point: Mapping[str, int]) -> list[str]:
    """The domains a size may fall in, whatever lengths bound the model's (it has few of them)."""
    first, exact = label(point, ()), exact_label(point)
    if first == exact:
        return [exact]
    cell = first.rpartition(".")[0]
    return [*(f"{cell}.{passed}" for passed in range(len(THRESHOLDS) + 1)), exact]


def all_labels(limits: tuple[int, ...]) -> list[str]:
    """Every domain of whole texts, the most used first."""
    cells = ("bN.s8", "b1.s8", "bN.sx", "b1.sx")
    return [f"{cell}.{n}" for n in range(len(limits) + 1) for cell in cells]


def decode_labels(limits: tuple[int, ...], batches: Sequence[str] = ("bN", "b1")) -> list[str]:
    """Every domain of decoding steps: a text grows through all of them."""
    return [f"{batch}.c.{n}" for batch in batches for n in range(len(limits) + 1)]


def sample_points(
    name: str, limits: tuple[int, ...], max_positions: int | None, varied: Varied, *, count: int
) -> list[dict[str, int]]:
    """Up to `count` sizes in a domain, unlike enough that no two monomials agree on them."""
    if name.startswith("at."):
        return [_exact_point(name)]
    batch, alignment, _ = name.split(".")
    if alignment == "c":
        return _decode_points(name, limits, max_positions, varied, count=count)
    table = _ALIGNED if alignment == "s8" else _UNALIGNED
    low, high = _bounds(name, limits, max_positions)
    shift = -(-low // 8) * 8
    lengths = [s + shift for s in table["S"] if low < s + shift <= high]
    points = []
    for index, length in enumerate(lengths[:count]):
        point = varied.point(1 if batch == "b1" else _BATCHES[index % 5], length, index)
        if varied.target:
            point["T"] = table["T"][index]
        points.append(point)
    return points


def _decode_points(
    name: str, limits: tuple[int, ...], max_positions: int | None, varied: Varied, *, count: int
) -> list[dict[str, int]]:
    """Aligned and unaligned numbers of keys in turn; the encoder's tokens are other numbers."""
    low, high = _bounds(name, limits, max_positions)
    mixed = [c for pair in zip(_UNALIGNED["S"], _ALIGNED["S"], strict=True) for c in pair]
    keys = [c + low for c in mixed if LEAST_KEYS <= c + low <= high]
    points = []
    for index, length in enumerate(keys[:count]):
        point = {"B": 1 if name.startswith("b1.") else _BATCHES[index % 5], "C": length}
        if varied.encodes:
            point["S"] = _UNALIGNED["T"][index] + 2
        points.append(point)
    return points


def _exact_point(name: str) -> dict[str, int]:
    numbers = [int(number) for number in name.split(".")[1:]]
    point = dict(zip(SYMBOLS, numbers, strict=False))
    return {symbol: size for symbol, size in point.items() if size}


def proof_points(
    name: str, limits: tuple[int, ...], max_positions: int | None, varied: Varied
) -> list[dict[str, int]]:
    """Three sizes that no fit has seen; one of LONG tokens or more where the model allows it."""
    seen = sample_points(name, limits, max_positions, varied, count=5)
    every = sample_points(name, limits, max_positions, varied, count=12)
    points = every[len(seen) :][:3]
    low, high = _bounds(name, limits, max_positions)
    long = -(-max(low + 1, LONG) // 8) * 8 + (0 if ".s8." in name else 5)
    if points and long <= high:
        target = {"T": points[0]["T"]} if varied.target else {}
        points[0] = varied.point(points[0]["B"], long, len(seen)) | target
    return points


def _bounds(name: str, limits: tuple[int, ...], max_positions: int | None) -> tuple[int, int]:
    """Lengths of a domain: more than the first, at most the second."""
    passed = int(name.rpartition(".")[2])
    low = limits[passed - 1] if passed else 0
    high = limits[passed] if passed < len(limits) else 1 << 62
    return low, min(high, max_positions or high)
