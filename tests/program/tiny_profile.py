"""A profile by hand: one global template a phase and one stack of layers traced three deep.

    embeddings 1000 x 64      layers: weight 64 x 64 and bias 64      classifier 2 x 64      fp32

With three layers: 64,000 + 3 x 4,160 + 128 = 76,608 parameters, 306,432 bytes, eight tensors. In
forward the embedding makes 256 BS bytes, each layer twice as many (product and activation) and
the classifier 8 B. In backward each layer makes the gradient of its input (256 BS) and of its
parameters, then frees what the layer above handed down. Layer 1 runs the first product of
forward, the classifier that of backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rigsize.program.environment import Environment
from rigsize.trace.profile import Body, Event, Profile, Ref, Tensor, TraceKey
from rigsize.trace.sizes import Expression

KIB = 1024
PARAMETERS = 76_608
WEIGHTS = 4 * PARAMETERS
POINT = {"B": 2, "S": 8, "T": 0}
LOADED = WEIGHTS + KIB + 128
"""Parameters, the buffer, and the batch of 8 BS bytes at POINT."""
CPU = Environment(device="cpu", compute_capability=(0, 0), sm_count=1, max_threads_per_sm=1)
A100 = Environment(device="cuda", compute_capability=(8, 0), sm_count=108, max_threads_per_sm=2048)

LAYER = "encoder.layer.*.dense"
BS: Expression = ((256, "BS"),)


def alloc(ref: Ref, op: str, module: str, size: Expression) -> Event:
    return Event("alloc", ref, op, module, size)


def free(*ref: Any) -> Event:
    return Event("free", ref)


def gradient(number: int, name: str) -> Event:
    module = name.rpartition(".")[0]  # a recorder tells whose node handed the gradient over
    return Event("gradient", ("own", number), module=module, label=(name,))


def constant(num_bytes: int) -> Expression:
    return ((num_bytes, "1"),)


GEMM = Event("kernel", None, "mm", label=("gemm",))
EMBED = (alloc(("own", 0), "embedding", "embeddings.word_embeddings", BS),)
LAYER_FORWARD = (
    alloc(("own", 0), "addmm", LAYER, BS),
    alloc(("own", 1), "gelu", LAYER, BS),
)
CLASSIFY = (alloc(("own", 1), "addmm", "classifier", ((8, "B"),)),)
CLASSIFY_BACKWARD = (
    GEMM,
    alloc(("own", 2), "mm", "classifier", BS),
    alloc(("own", 3), "mm", "classifier", constant(512)),
    gradient(3, "classifier.weight"),
)
EMBED_BACKWARD = (
    alloc(("own", 4), "embedding_dense_backward", "embeddings", constant(256_000)),
    gradient(4, "embeddings.word_embeddings.weight"),
    free("end", 0, 0, 0, 2),
    free("own", 0),
)


def layer_backward(*handed_down: Any) -> tuple[Event, ...]:
    return (
        alloc(("own", 2), "gelu_backward", LAYER, BS),
        free("own", 1),
        free("own", 0),
        alloc(("own", 3), "mm", LAYER, constant(16_384)),
        gradient(3, f"{LAYER}.weight"),
        alloc(("own", 4), "sum", LAYER, constant(256)),
        gradient(4, f"{LAYER}.bias"),
        free(*handed_down),
    )


TRAINING = Body(
    templates=(
        EMBED,
        (GEMM, *LAYER_FORWARD),
        LAYER_FORWARD,
        CLASSIFY,
        CLASSIFY_BACKWARD,
        layer_backward("global", 2),
        layer_backward("near", 1, 2),
        EMBED_BACKWARD,
    ),
    births=(5, 5, 5, 5),
    schedule=(
        ("forward", 0, 0),
        ("forward", 1, 1),
        ("forward", 2, 2),
        ("forward", 3, 2),
        ("forward", 0, 3),
        ("backward", 0, 4),
        ("backward", 3, 5),
        ("backward", 2, 6),
        ("backward", 1, 6),
        ("backward", 0, 7),
    ),
)
INFERENCE = Body(
    templates=(
        EMBED,
        (GEMM, *LAYER_FORWARD, free("own", 0), free("global", 0)),
        (*LAYER_FORWARD, free("own", 0), free("near", -1, 1)),
        (*CLASSIFY, free("end", 0, 1, 0, 1)),
    ),
    births=(2, 2, 2, 2),
    schedule=(
        ("forward", 0, 0),
        ("forward", 1, 1),
        ("forward", 2, 2),
        ("forward", 3, 2),
        ("forward", 0, 3),
    ),
)


def weight(name: str, shape: tuple[int, ...], group: int) -> Tensor:
    numel = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return Tensor(name, constant(4 * numel), shape, 4, group, trainable=True)


TENSORS = (
    weight("embeddings.word_embeddings.weight", (1000, 64), 0),
    *(
        tensor
        for group in (1, 2, 3)
        for tensor in (
            weight(f"{LAYER}.weight", (64, 64), group),
            weight(f"{LAYER}.bias", (64,), group),
        )
    ),
    weight("classifier.weight", (2, 64), 0),
    Tensor("buffer:embeddings.position_ids", constant(KIB), (128,), 8, 0),
    Tensor("input:input_ids", ((8, "BS"),), (), 8, 0),
)
KEY = TraceKey(
    config_digest="0" * 16,
    task="sequence-classification",
    use="training",
    compute="fp32",
    attention="sdpa",
    padded=True,
    recompute="none",
    device="accelerator",
    num_labels=2,
    hold_output=True,
)
DOMAINS = {f"{batch}.{length}.0": 0 for batch in ("b1", "bN") for length in ("s8", "sx")}


def profile(*, layers: Sequence[int] = (0, 1, 2), use: str = "training") -> Profile:
    """`layers` says from which traced layer (0 to 2) each layer of the full model is tiled."""
    return Profile(
        key=replace(KEY, use=use),
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        representative=(tuple(layers),),
        traced_depths=(3,),
        stack_paths=("encoder.layer",),
        tensors=TENSORS,
        bodies=(TRAINING if use == "training" else INFERENCE,),
        domains=DOMAINS,
        limits=(),
    )


def attending(label: tuple[Any, ...], numbers: Sequence[int]) -> Profile:
    """One attention node and its backward outside all layers, nothing else."""
    sizes = tuple(constant(n) if n else () for n in numbers)
    trains = bool(label[-1])
    node = Event("attention", ("own", 0), "rigsize::attention", "attn", numbers=sizes, label=label)
    outputs = (("own", 1), ("own", 2), ("own", 3), None)
    back = Event("attention_backward", ("own", 0), "", "attn", outputs=outputs)
    body = Body(
        templates=((node,), (back,)),
        births=(4,),
        schedule=(("forward", 0, 0), ("backward", 0, 1))[: 1 + trains],
    )
    return replace(
        profile(use="training" if trains else "inference"),
        bodies=(body,),
        tensors=(),
        representative=(),
        traced_depths=(),
        stack_paths=(),
    )
