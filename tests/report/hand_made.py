"""A model of four weights as a hand-made profile: estimates without a trace, in milliseconds.

    embeddings  1000 x 64    two layers of 64 x 64    classifier 3 x 64, all fp32

64,000 + 2 x 4,096 + 192 = 72,384 parameters. An activation of 256 BS bytes lives for the
embedding and for each layer from its forward to its backward pass.
"""

from __future__ import annotations

from rigsize.models import ModelSource
from rigsize.trace.profile import Body, Event, Profile, Tensor, TraceKey

PARAMETERS = 72_384


def _weight(name: str, rows: int, columns: int, group: int) -> Tensor:
    return Tensor(
        name=name,
        size=((rows * columns * 4, "1"),),
        shape=(rows, columns),
        itemsize=4,
        group=group,
        trainable=True,
    )


_TENSORS = (
    _weight("embeddings.word_embeddings.weight", 1000, 64, 0),
    _weight("encoder.layer.*.dense.weight", 64, 64, 1),
    _weight("classifier.weight", 3, 64, 0),
    Tensor(name="input:input_ids", size=((8, "BS"),), shape=(), itemsize=8, group=0),
)
_EMBEDDING, _DENSE = "embeddings.word_embeddings", "encoder.layer.*.dense"


def _alloc(number: int, op: str, module: str, coefficient: int, monomial: str) -> Event:
    return Event("alloc", ("own", number), op, module, ((coefficient, monomial),))


def _free(number: int) -> Event:
    return Event("free", ("own", number))


def _gradient(number: int, name: str) -> Event:
    return Event("gradient", ("own", number), label=(name,))


_Templates = tuple[tuple[Event, ...], ...]

_FORWARD: _Templates = (
    (_alloc(0, "embedding", _EMBEDDING, 256, "BS"),),
    (_alloc(0, "addmm", _DENSE, 256, "BS"),),
    (_alloc(1, "addmm", "classifier", 12, "B"),),
)
_BACKWARD: _Templates = (
    (_alloc(2, "mm", "classifier", 768, "1"), _gradient(2, "classifier.weight")),
    (
        _alloc(1, "mm", _DENSE, 16_384, "1"),
        _gradient(1, "encoder.layer.*.dense.weight"),
        _free(0),
    ),
    (
        _alloc(3, "embedding_dense_backward", _EMBEDDING, 256_000, "1"),
        _gradient(3, "embeddings.word_embeddings.weight"),
        _free(0),
        _free(1),
    ),
)
_INFERENCE_END: _Templates = ((_free(0),), (_free(0), _free(1)))


def profile(key: TraceKey) -> Profile:
    """The profile as if traced for `key`, proved for every aligned and unaligned length."""
    if key.use == "training":
        phases, templates = ["forward"] * 3 + ["backward"] * 3, _FORWARD + _BACKWARD
        groups, births = [0, 1, 0, 0, 1, 0], (4, 2)
    else:
        phases, templates = ["forward"] * 5, _FORWARD + _INFERENCE_END
        groups, births = [0, 1, 0, 1, 0], (2, 1)
    body = Body(
        templates=templates,
        births=births,
        schedule=tuple((p, g, n) for n, (p, g) in enumerate(zip(phases, groups, strict=True))),
    )
    return Profile(
        key=key,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        representative=((0, 0),),
        traced_depths=(1,),
        stack_paths=("encoder.layer",),
        tensors=_TENSORS,
        bodies=(body,),
        domains={f"{batch}.{length}.0": 0 for batch in ("b1", "bN") for length in ("s8", "sx")},
        limits=(),
    )


def find_profile(source: ModelSource, key: TraceKey, point: object) -> Profile:
    """Stands in for `trace.store.find_profile`."""
    return profile(key)
