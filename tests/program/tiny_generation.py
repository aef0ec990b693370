"""A generation by hand: the weights of `tiny_profile`, one tensor of keys a layer.

Prefill: each of three layers makes 64 BS bytes of keys, which stay, and 256 BS of activations,
which go; then the ids with the first token, 8 (BS + B). A decoding step with C keys a text makes
each layer's 64 BC bytes before the 64 B(C - 1) of the step before go, and ids of 8 (BC + B). Past a
window of 15 keys a step keeps no more than 16.
"""

from __future__ import annotations

from dataclasses import replace

from tests.program import tiny_profile as tiny

from rigsize.trace.profile import Body, Event, Profile
from rigsize.trace.sizes import Expression

CACHE = "state:cache.*.keys"
IDS = "state:input_ids"
WINDOW = 15


def carry(number: int, name: str) -> Event:
    return Event("carry", ("own", number), label=(name,))


def _body(keys: Expression, passing: Expression, ids: Expression, *, decodes: bool) -> Body:
    layer = (
        tiny.alloc(("own", 0), "cat", tiny.LAYER, keys),
        *((tiny.free("kept", CACHE),) if decodes else ()),
        tiny.alloc(("own", 1), "gelu", tiny.LAYER, passing),
        tiny.free("own", 1),
    )
    choose = (
        tiny.alloc(("own", 0), "cat", "", ids),
        *((tiny.free("kept", IDS),) if decodes else ()),
    )
    first = (tiny.GEMM, *layer)
    return Body(
        templates=(first, layer, choose, (carry(0, IDS),), (carry(0, CACHE),)),
        births=(1, 2, 2, 2),
        schedule=(
            ("forward", 1, 0),
            ("forward", 2, 1),
            ("forward", 3, 1),
            ("forward", 0, 2),
            ("carry", 0, 3),
            ("carry", 1, 4),
            ("carry", 2, 4),
            ("carry", 3, 4),
        ),
    )


PREFILL = _body(((64, "BS"),), ((256, "BS"),), ((8, "BS"), (8, "B")), decodes=False)
GROWING = _body(((64, "BC"),), ((256, "B"),), ((8, "BC"), (8, "B")), decodes=True)
FULL = _body(((64 * (WINDOW + 1), "B"),), ((256, "B"),), ((8, "BC"), (8, "B")), decodes=True)


def profile(*, window: bool = False) -> Profile:
    """The prefill's profile with that of its steps, for any number of texts."""
    base = tiny.profile(use="inference")
    limits = (WINDOW,) if window else ()
    key = replace(base.key, task="causal-lm", cache="prefill", padded=False)
    cells = ("bN.s8", "bN.sx", "b1.s8", "b1.sx")
    prefill = replace(
        base,
        key=key,
        bodies=(PREFILL,),
        domains={f"{cell}.{n}": 0 for cell in cells for n in range(len(limits) + 1)},
        limits=limits,
    )
    decode = replace(
        prefill,
        key=replace(key, cache="decode"),
        bodies=(GROWING, FULL),
        domains={f"{b}.c.{n}": n for b in ("bN", "b1") for n in range(len(limits) + 1)},
    )
    return replace(prefill, decode=decode)
