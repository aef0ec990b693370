"""A profile: one step's events with sizes as expressions, blocks once per kind. No torch here.

A `Body` is the step in one domain of sizes: templates (a segment's events), and the schedule
that says which template runs when in the traced, shallow model. `Profile.schedule` tiles it to
full depth. Storages are named by the group that bore them (0 outside the layers, else a layer)
and their ordinal there, so that a template reads the same in every layer:

    ("own", n)           the n-th storage of this group
    ("global", n)        of group 0
    ("near", d, n)       of the layer d places away in the same stack
    ("end", k, e, d, n)  of the layer d places from the first (e=0) or last (e=1) of stack k
    ("kept", name)       a parameter, buffer or input, or what the pass before left (`state:NAME`)
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rigsize.trace.domains import Varied, exact_label, label
from rigsize.trace.sizes import Expression

SCHEMA_VERSION = 2
DISPATCHES, KERNEL = "dispatches", "kernel"
"""Kinds of event in a profile of work (`trace.fold_work`)."""

Ref = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class TraceKey:
    """What a trace depends on; everything else transforms the Program."""

    config_digest: str
    task: str
    use: str
    """training or inference."""
    compute: str
    """fp32, amp or half."""
    attention: str
    """sdpa or eager; flash is traced as sdpa and lowered to its kernel."""
    padded: bool
    recompute: str
    """A word of `spec.recompute`."""
    device: str
    """accelerator (dispatch as on a GPU) or cpu."""
    num_labels: int
    hold_output: bool
    loss: str = "all"
    """all, masked or chunked: the rows on which the LM head runs (`run.heads`)."""
    unpadded: str = ""
    """Texts one after another in one row (`run.packing`): the attention they get, flash or grid;
    empty for padded batches."""
    adapter: str = ""
    """What peft adds, in one word of names and figures; empty for none."""
    quantization: str = ""
    """How base weights are stored, one of `spec.strategy.QUANTIZATIONS`; empty for none."""
    cache: str = ""
    """Inference with a key-value cache: prefill or decode; empty for one pass without."""
    saves_on_host: bool = False
    """Traced under `save_on_cpu`: what autograd saves leaves the device until it is asked for."""

    @property
    def selects_rows(self) -> bool:
        """Whether a batch says which rows the head reads."""
        return selects_rows(self.task, self.loss, unpadded=bool(self.unpadded))

    @property
    def varied(self) -> Varied:
        """What varies in its batches; a classifier of unpadded texts reads one row a text."""
        encodes = self.task == "seq2seq-lm"
        return Varied(
            target=encodes and not self.cache,  # the first pass with a cache writes one token
            rows=self.selects_rows and self.task.endswith("-lm"),
            chunked=self.loss == "chunked",
            unpadded=bool(self.unpadded),
            decodes=self.cache == "decode",
            encodes=encodes and self.cache == "decode",
        )

    def point(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of a run as its trace has them: a cache's length is of decoding steps alone."""
        dropped = {"prefill": ("C", "T"), "decode": ("T",)}.get(self.cache, ())
        if self.cache == "decode" and self.task != "seq2seq-lm":
            dropped = ("S", "T")
        return {name: size for name, size in sizes.items() if name not in dropped}

    def text(self) -> str:
        """A file name; what is as it was before `loss` and `unpadded` existed is named as then."""
        recompute = {"none": "keep", "block": "recompute"}.get(self.recompute, self.recompute)
        flags = ("padded" if self.padded else "unpadded", recompute)
        held = "held" if self.hold_output else "freed"
        parts = (self.config_digest, self.task, self.use, self.compute, self.attention, *flags)
        later = [] if self.loss == "all" else [self.loss]
        later += [f"in_one_row_{self.unpadded}"] if self.unpadded else []
        later += [short(part) for part in (self.adapter, self.quantization, self.cache) if part]
        later += ["saved_on_host"] if self.saves_on_host else []
        return "-".join((*parts, held, self.device, str(self.num_labels), *later))


LONGEST_WORD = 60
"""Of a key's text: what is longer is told by its digest, so that a file name stays below 255."""


def short(word: str) -> str:
    """The word, or its beginning and digest where it is long (a list of adapted modules)."""
    if len(word) <= LONGEST_WORD:
        return word
    return f"{word[: LONGEST_WORD - 17]}~{hashlib.sha256(word.encode()).hexdigest()[:16]}"


def selects_rows(task: str, loss: str, *, unpadded: bool) -> bool:
    """Whether a batch has `positions`: the rows of the backbone's output that the head reads.

    Labels of an unpadded causal row are shifted before the step: no row predicts another text's
    first token.
    """
    if task.endswith("-lm"):
        return loss != "all" or (unpadded and task == "causal-lm")
    return unpadded and task == "sequence-classification"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a template."""

    kind: str
    """alloc, free, kernel, attention, attention_backward, gradient or carry."""
    ref: Ref | None
    op: str = ""
    module: str = ""
    size: Expression = ()
    """Bytes of an alloc."""
    numbers: tuple[Expression, ...] = ()
    """Sizes of a kernel or an attention node (`trace.recorder`)."""
    label: tuple[Any, ...] = ()
    outputs: tuple[Ref | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter, buffer or input."""

    name: str
    """`*` stands for the layer's number in a name that belongs to a layer."""
    size: Expression
    """Bytes in the traced dtype."""
    shape: tuple[int, ...]
    """Of parameters and buffers; empty for inputs."""
    itemsize: int
    group: int
    """0, or the traced layer (from 1) that owns it."""
    trainable: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """The step in the domains that share one sequence of events."""

    templates: tuple[tuple[Event, ...], ...]
    births: tuple[int, ...]
    """Storages born per traced group, 0 first."""
    schedule: tuple[tuple[str, int, int], ...]
    """(phase, traced group, template) in the order of the traced, shallow model."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything a Program needs of the model, for all proved domains."""

    key: TraceKey
    versions: dict[str, str]
    representative: tuple[tuple[int, ...], ...]
    """Per stack: for each full layer, the traced layer (from 0 in the stack) it is tiled from."""
    traced_depths: tuple[int, ...]
    """Per stack: layers of the traced model."""
    stack_paths: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    bodies: tuple[Body, ...]
    domains: dict[str, int]
    """Domain label (`trace.domains`) to index in `bodies`."""
    limits: tuple[int, ...]
    """Lengths past which the model takes another path (`trace.domains.thresholds`)."""
    decode: Profile | None = None
    """Of a prefill: the decoding steps behind it, which are traced and stored apart."""

    def covers(self, point: Mapping[str, int]) -> bool:
        """Whether all that a run of this size goes through is proved."""
        behind = self.decode is None or self.decode.body_at(point) is not None
        return behind and self.body_at(point) is not None

    def body_at(self, point: Mapping[str, int]) -> Body | None:
        """The body proved for a size {B, S, T, M, N, C}; None outside the proved domains."""
        point = self.key.point(point)
        index = self.domains.get(label(point, self.limits))
        if index is None:
            index = self.domains.get(exact_label(point))
        return None if index is None else self.bodies[index]

    def traced_layers(self) -> list[list[int]]:
        """Group numbers of the traced layers, per stack."""
        numbers, start = [], 1
        for depth in self.traced_depths:
            numbers.append(list(range(start, start + depth)))
            start += depth
        return numbers

    def full_layers(self) -> list[tuple[int, int, int]]:
        """For every full layer in order: (stack, index in the stack, traced group)."""
        starts = [group[0] if group else 0 for group in self.traced_layers()]
        return [
            (k, i, starts[k] + traced)
            for k, stack in enumerate(self.representative)
            for i, traced in enumerate(stack)
        ]

    def full_tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """(full name, tensor, full group) in registration order, layers tiled."""
        layers = self.full_layers()
        by_group: dict[int, list[Tensor]] = {}
        for tensor in self.tensors:
            by_group.setdefault(tensor.group, []).append(tensor)
        done: set[int] = set()
        stack_of = {g: k for k, groups in enumerate(self.traced_layers()) for g in groups}
        for tensor in self.tensors:
            if tensor.group == 0:
                yield tensor.name, tensor, 0
                continue
            stack = stack_of[tensor.group]
            if stack in done:
                continue
            done.add(stack)
            for full, (k, index, traced) in enumerate(layers, start=1):
                if k == stack:
                    for member in by_group.get(traced, ()):
                        yield member.name.replace("*", str(index), 1), member, full


def is_embedding(name: str) -> bool:
    """Whether a parameter's name is an embedding table's (`wte`, `shared`, `embed_tokens`, ...)."""
    return any(part in name.lower() for part in ("embed", "wte", "wpe", "shared."))


def pack(profile: Profile) -> bytes:
    """A profile as compressed JSON with its repeated events, strings and sizes in tables."""
    tables = _Tables()
    bodies = [
        {
            "templates": [[tables.event(e) for e in template] for template in body.templates],
            "births": body.births,
            "schedule": body.schedule,
        }
        for body in profile.bodies
    ]
    key = profile.key
    document = {
        "schema": SCHEMA_VERSION,
        "key": _packed_key(key),
        "versions": profile.versions,
        "representative": [_runs(stack) for stack in profile.representative],
        "traced_depths": profile.traced_depths,
        "stack_paths": profile.stack_paths,
        "tensors": [
            [t.name, tables.size(t.size), t.shape, t.itemsize, t.group, int(t.trainable)]
            for t in profile.tensors
        ],
        "bodies": bodies,
        "domains": profile.domains,
        "limits": profile.limits,
        "events": list(tables.rows.values()),
        "strings": list(tables.strings),
        "sizes": [[x for term in size for x in term] for size in tables.sizes],
    }
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 9)


def unpack(data: bytes) -> Profile:
    """The inverse of `pack`."""
    document = json.loads(zlib.decompress(data))
    strings = document["strings"]
    sizes = [tuple(zip(flat[::2], flat[1::2], strict=True)) for flat in document["sizes"]]
    events = [
        Event(
            strings[kind],
            _to_ref(ref, strings),
            strings[op],
            strings[module],
            sizes[size],
            tuple(sizes[n] for n in numbers),
            tuple(label),
            tuple(_to_ref(r, strings) for r in outputs),
        )
        for kind, ref, op, module, size, numbers, label, outputs in document["events"]
    ]
    return Profile(
        key=_unpacked_key(document["key"]),
        versions=document["versions"],
        representative=tuple(tuple(_unrun(runs)) for runs in document["representative"]),
        traced_depths=tuple(document["traced_depths"]),
        stack_paths=tuple(document["stack_paths"]),
        tensors=tuple(
            Tensor(name, sizes[size], tuple(shape), itemsize, group, bool(trainable))
            for name, size, shape, itemsize, group, trainable in document["tensors"]
        ),
        bodies=tuple(
            Body(
                tuple(tuple(events[i] for i in template) for template in body["templates"]),
                tuple(body["births"]),
                tuple((p, g, t) for p, g, t in body["schedule"]),
            )
            for body in document["bodies"]
        ),
        domains=document["domains"],
        limits=tuple(document["limits"]),
    )


def _packed_key(key: TraceKey) -> list[Any]:
    """Its fields; `none` and `block` are false and true, as before there were more words."""
    fields = {name: getattr(key, name) for name in TraceKey.__slots__}
    word = fields["recompute"]
    return list((fields | {"recompute": _OLD_WORDS.get(word, word)}).values())


def _unpacked_key(fields: list[Any]) -> TraceKey:
    key = TraceKey(*fields)
    words = {old: word for word, old in _OLD_WORDS.items()}
    return replace(key, recompute=words.get(key.recompute, key.recompute))  # type: ignore[call-overload]


_OLD_WORDS = {"none": False, "block": True}


class _Tables:
    def __init__(self) -> None:
        self.strings: dict[str, int] = {}
        self.sizes: dict[Expression, int] = {}
        self.rows: dict[Event, list[Any]] = {}
        self.events: dict[Event, int] = {}

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def size(self, size: Expression) -> int:
        return self.sizes.setdefault(size, len(self.sizes))

    def ref(self, ref: Ref | None) -> list[Any] | None:
        return None if ref is None else [self.string(ref[0]), *ref[1:]]

    def event(self, event: Event) -> int:
        if event not in self.rows:
            self.events[event] = len(self.rows)
            self.rows[event] = self._row(event)
        return self.events[event]

    def _row(self, event: Event) -> list[Any]:
        return [
            self.string(event.kind),
            self.ref(event.ref),
            self.string(event.op),
            self.string(event.module),
            self.size(event.size),
            [self.size(n) for n in event.numbers],
            event.label,
            [self.ref(r) for r in event.outputs],
        ]


def _to_ref(row: list[Any] | None, strings: list[str]) -> Ref | None:
    return None if row is None else (strings[row[0]], *row[1:])


def _runs(values: tuple[int, ...]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _unrun(runs: list[list[int]]) -> list[int]:
    return [value for value, count in runs for _ in range(count)]


def describe(domains: Mapping[str, int]) -> str:
    """The proved domains in words, for messages."""
    return ", ".join(sorted(domains))
