"""Which layers of a deep model to trace, so that the rest can be tiled from them.

A layer's events depend on its own kind and on its neighbours (who frees what it left). So the
traced model is the shortest one in which every (neighbours, kind) context of the full model
occurs, first and last layers being contexts of their own; where a context occurs twice, its
events must be equal, or `fold` refuses. No torch here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEPTH_FIELDS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
MIN_DEPTH = 4
"""Two layers between first and last, so that a neighbour and an end of the stack differ."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How the layers of the full model map onto those of the traced one."""

    config: dict[str, Any]
    """The reduced config."""
    representative: tuple[tuple[int, ...], ...]
    """Per stack, for every layer of the full model the traced layer (from 0) that stands for it."""
    depths: tuple[int, ...]
    """Per stack, how many layers are traced."""
    contexts: tuple[int, ...]
    """For every traced layer, stacks one after another, the number of its context."""
    recomputed: tuple[bool, ...] = ()
    """Likewise, whether it is one of every N that are recomputed."""

    @property
    def reduced(self) -> bool:
        """Whether any layer is left out."""
        return any(
            n < len(stack) for n, stack in zip(self.depths, self.representative, strict=True)
        )


def reduce_depth(
    values: Mapping[str, Any], full: Mapping[str, Any], radius: int = 1, period: int = 1
) -> Depth:
    """The reduced config of `values`, a config as written; `full` is it with all defaults filled.

    `radius` is how many neighbours on each side make a context; 0 keeps the full depth. The first
    layer of every `period`, counted through all stacks, is of another kind than the others.
    """
    config = copy.deepcopy(dict(values))
    stacks = _stacks(full)
    if radius == 0:
        whole = tuple(tuple(range(depth)) for _, depth in stacks)
        depths = tuple(depth for _, depth in stacks)
        total = range(sum(depths))
        return Depth(config, whole, depths, tuple(total), tuple(n % period == 0 for n in total))
    representative = []
    contexts: dict[Any, int] = {}
    numbers: list[int] = []
    shortened: list[int] = []
    marks: tuple[bool, ...] = ()
    before = 0
    for number, (fields, depth) in enumerate(stacks):
        marked = [(before + i) % period == 0 for i in range(depth)]
        before += depth
        kinds = [
            (*kind, mark)
            for kind, mark in zip(_kinds(full, depth, decoder=number == 1), marked, strict=True)
        ]
        chosen = shorten(kinds, radius)
        shortened.append(len(chosen))
        marks += tuple(marked[i] for i in chosen)
        for name in fields:
            config[name] = len(chosen)
        if len(chosen) < depth:
            _subset_layer_settings(config, full, depth, chosen)
        representative.append(_represent(kinds, chosen, radius))
        for context in _contexts([kinds[i] for i in chosen], radius):
            contexts.setdefault((fields[0], context), len(contexts))
        numbers += [contexts[fields[0], c] for c in _contexts([kinds[i] for i in chosen], radius)]
    kept = tuple(representative)
    return Depth(config, kept, tuple(shortened), tuple(numbers), marks)


def _stacks(full: Mapping[str, Any]) -> list[tuple[list[str], int]]:
    """(config fields, depth) of the encoder and decoder stacks, in module order."""
    if full.get("is_encoder_decoder"):
        pairs = (("encoder_layers", "decoder_layers"), ("num_layers", "num_decoder_layers"))
        for encoder, decoder in pairs:
            if isinstance(full.get(encoder), int) and isinstance(full.get(decoder), int):
                extra = ["num_hidden_layers"] if "num_hidden_layers" in full else []
                return [([encoder, *extra], full[encoder]), ([decoder], full[decoder])]
        return []
    fields = [f for f in DEPTH_FIELDS[:4] if isinstance(full.get(f), int)]
    return [(fields, full[fields[0]])] if fields else []


def _kinds(full: Mapping[str, Any], depth: int, *, decoder: bool = False) -> list[tuple[Any, ...]]:
    """What the config says of each layer: its entry in every per-layer list, dense or experts."""
    lists = [v for v in full.values() if isinstance(v, list) and len(v) == depth > 1]
    dense = full.get("first_k_dense_replace") or 0
    only = full.get("mlp_only_layers") or []
    step = full.get("decoder_sparse_step") or 1
    # T5's first layer alone holds the table of relative positions and makes the bias for all.
    # The last layer of another decoder that reads an encoder is the first whose backward pass makes
    # a gradient of what it read; all others add to it.
    alone = -1
    if "relative_attention_num_buckets" in full:
        alone = 0
    elif decoder:
        alone = depth - 1
    settings = [tuple(repr(v[i]) for v in lists) for i in range(depth)]
    return [
        (
            *settings[i],
            i < dense,
            i in only or (i + 1) % step != 0,
            # What all layers of one kind share (rotary tables, masks) dies with the first of them.
            i == alone or i == settings.index(settings[i]) > 0,
        )
        for i in range(depth)
    ]


def _contexts(kinds: Sequence[Any], radius: int) -> list[tuple[Any, ...]]:
    edge: list[Any] = [None] * radius
    padded = [*edge, *kinds, *edge]
    return [tuple(padded[i : i + 2 * radius + 1]) for i in range(len(kinds))]


def shorten(kinds: Sequence[Any], radius: int) -> list[int]:
    """Indices of the layers to keep: a shorter stack with the same set of contexts."""
    chosen = list(range(len(kinds)))
    wanted = set(_contexts(kinds, radius))
    # One more where the first or last layer is unlike all others: some context must occur twice,
    # so that `fold` can see whether equal contexts mean equal events.
    alone = (kinds[0] not in kinds[1:]) + (kinds[-1] not in kinds[:-1])
    least = max(MIN_DEPTH, 2 * radius + 2) + alone
    shortened = True
    while shortened and len(chosen) > least:
        shortened = False
        for cut in range(len(chosen) - least, 0, -1):
            found = _cut(kinds, chosen, cut, wanted, radius)
            if found is not None:
                chosen, shortened = found, True
                break
    return chosen


def _cut(
    kinds: Sequence[Any], chosen: list[int], cut: int, wanted: set[Any], radius: int
) -> list[int] | None:
    for start in range(1, len(chosen) - cut):
        candidate = chosen[:start] + chosen[start + cut :]
        if set(_contexts([kinds[i] for i in candidate], radius)) == wanted:
            return candidate
    return None


def _represent(kinds: Sequence[Any], chosen: list[int], radius: int) -> tuple[int, ...]:
    first: dict[Any, int] = {}
    for position, context in enumerate(_contexts([kinds[i] for i in chosen], radius)):
        first.setdefault(context, position)
    return tuple(first[context] for context in _contexts(kinds, radius))


def _subset_layer_settings(
    config: dict[str, Any], full: Mapping[str, Any], depth: int, chosen: list[int]
) -> None:
    for name, value in full.items():
        if isinstance(value, list) and len(value) == depth > 1:
            config[name] = [value[i] for i in chosen]
    if full.get("first_k_dense_replace"):
        config["first_k_dense_replace"] = sum(i < full["first_k_dense_replace"] for i in chosen)
    if full.get("mlp_only_layers"):
        config["mlp_only_layers"] = [
            n for n, i in enumerate(chosen) if i in full["mlp_only_layers"]
        ]
    if "attention_types" in config:  # GPT-Neo spells its per-layer list as [[kinds, repeats]]
        config["attention_types"] = [[[full["attention_layers"][i] for i in chosen], 1]]
        config.pop("attention_layers", None)
