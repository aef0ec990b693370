"""What one `fully_shard` call shares: a layer's parameters, or the root's, and their bytes.

Mirrors `FSDPParam` and the data of `FSDPParamGroup` in torch/distributed/fsdp/_fully_shard/
_fsdp_param.py and _fsdp_param_group.py (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rigsize.errors import UnsupportedCombination
from rigsize.program.mesh import check_shards
from rigsize.program.timeline import Parameter
from rigsize.spec.strategy import Strategy

__all__ = [
    "Buffer",
    "Group",
    "Policy",
    "Sharded",
    "check_ranks",
    "check_types",
    "managed_order",
    "policy_of",
    "split",
]

HALF_BYTES, FLOAT_BYTES = 2, 4
HEAD = "weights.lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`MixedPrecisionPolicy` in bytes an element; None where it asks for nothing."""

    stored_bytes: int | None = None
    """Of the shards, where they are kept wider than what computes (`param_dtype` then casts)."""
    reduce_bytes: int | None = None
    """Of gradients while they are reduced."""


def policy_of(strategy: Strategy) -> Policy:
    """What `train.parallel.apply_fully_shard` asks for.

    amp-bf16 is `MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)` on fp32 shards;
    no autocast runs, so the layers compute as in a model of bf16 weights.
    """
    if strategy.policy.compute == "amp":
        return Policy(stored_bytes=FLOAT_BYTES, reduce_bytes=FLOAT_BYTES)
    return Policy()


@dataclass(slots=True, kw_only=True)
class Sharded:
    """A parameter, split by rows of its first dimension and padded to equal shards."""

    whole: Parameter
    """As the layers compute with it."""
    shard: Parameter
    """What this rank keeps and steps on. That of the first rank, which is never short of rows."""
    ranks: int

    @property
    def casts(self) -> bool:
        """Whether the shard is cast before it is gathered."""
        return self.shard.itemsize != self.whole.itemsize

    @property
    def input_bytes(self) -> int:
        """This rank's part of what is gathered, in the type that computes."""
        return self.shard.numel * self.whole.itemsize

    @property
    def gathered_bytes(self) -> int:
        """The unsharded parameter with its padding."""
        return self.input_bytes * self.ranks


def split(parameter: Parameter, ranks: int, policy: Policy) -> Sharded:
    """Rank 0's shard: `cdiv(rows, ranks)` rows (`_chunk_with_empty` of _fsdp_common.py)."""
    if not parameter.shape:
        raise UnsupportedCombination(
            "parallel", "fsdp", f"fully_shard cannot split {parameter.name}, a single number"
        )
    rows, *rest = parameter.shape
    stored = parameter.itemsize
    if policy.stored_bytes is not None and stored == HALF_BYTES:
        stored = policy.stored_bytes
    shard = Parameter(
        parameter.name,
        (-(-rows // ranks), *rest),
        stored,
        parameter.trainable,
        -1,
        category=parameter.category,
        layer=parameter.layer,
    )
    return Sharded(whole=parameter, shard=shard, ranks=ranks)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A gathered tensor in flight; without storage where one rank has nothing to gather."""

    storage: int = -1
    once: bool = False
    """Of the very first pass alone: in inference what stays whole is not gathered again."""


@dataclass(slots=True, kw_only=True)
class Group:
    """`FSDPParamGroup`: what is gathered and reduced together."""

    layer: int
    """0 for the root."""
    reshards: bool
    """Frees its whole parameters after its forward pass."""
    parameters: list[Sharded] = field(default_factory=list)
    state: str = "idle"
    """The `TrainingState`: idle, forward, pre_backward or post_backward."""
    pending: Buffer | None = None
    """Gathered and not yet copied out."""
    unsharded: list[Buffer] = field(default_factory=list)
    """The whole parameters, while they are there."""
    post_forward: list[int] = field(default_factory=list)
    """Its places in the order in which forward passes ended."""
    gradients: dict[str, int] = field(default_factory=dict)
    """By parameter: the unsharded gradients of this micro-step."""
    all_reduce_input: int = -1
    """HSDP's reduced tensor, held to the end of backward."""

    @property
    def input_bytes(self) -> int:
        """This rank's part of what is gathered."""
        return sum(p.input_bytes for p in self.parameters)

    @property
    def gathered_bytes(self) -> int:
        """The gathered tensor."""
        return sum(p.gathered_bytes for p in self.parameters)

    def with_gradients(self) -> list[Sharded]:
        """The parameters whose gradients are there, in registration order."""
        return [p for p in self.parameters if p.whole.name in self.gradients]


def managed_order(parameters: Sequence[Sharded]) -> list[Sharded]:
    """The order in which `fully_shard` meets them: those of a module behind its children's.

    Source: `_get_managed_modules` and `_get_managed_states` of _fsdp_init.py.
    """
    return [p for _, p in _below("", list(zip(_names(parameters), parameters, strict=True)))]


def _names(parameters: Sequence[Sharded]) -> list[str]:
    """Names by which they are met: a head that comes before the embeddings has the tied weight."""
    heads = {p.whole.shape for p in parameters if p.whole.category == HEAD}
    names = [p.whole.name for p in parameters]
    for index, (before, p) in enumerate(pairwise(parameters), start=1):
        embeds = p.whole.category == "weights.embeddings" and p.whole.shape not in heads
        if embeds and before.whole.category == HEAD:
            names[index] = f"{before.whole.name.partition('.')[0]}.tied.weight"
    return names


def _below(prefix: str, named: Sequence[tuple[str, Sharded]]) -> list[tuple[str, Sharded]]:
    own: list[tuple[str, Sharded]] = []
    children: dict[str, list[tuple[str, Sharded]]] = {}
    for name, p in named:
        child, dot, _ = name.removeprefix(prefix).partition(".")
        (children.setdefault(child, []) if dot else own).append((name, p))
    found = [p for child, inner in children.items() for p in _below(f"{prefix}{child}.", inner)]
    return found + own


def check_types(group: Group) -> None:
    """`_init_mp_dtypes` asserts one type for what is trained in a group."""
    sizes = {p.shard.itemsize for p in group.parameters if p.whole.trainable}
    if len(sizes) > 1:
        names = [p.whole.name for p in group.parameters if p.shard.itemsize == max(sizes)]
        raise UnsupportedCombination(
            "parallel",
            "fsdp",
            f"fully_shard trains one type in a layer, and {names[0]} has another",
            hint="--precision amp-bf16 shards in fp32",
        )


def check_ranks(parameters: Sequence[Parameter], ranks: int) -> None:
    """More shards than the largest parameter has elements would leave ranks with padding alone."""
    largest = max((p.numel for p in parameters), default=0)
    hint = f"at most {largest:,} ranks a copy of the states: --parallel hsdp makes copies"
    check_shards(ranks, largest, "the largest parameter", hint)
