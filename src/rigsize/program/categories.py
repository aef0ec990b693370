"""Which ledger row a storage belongs to."""

from __future__ import annotations

import re

from rigsize.program.timeline import Place
from rigsize.trace.profile import Event, Profile, is_embedding

_ATTENTION = ("attn", "attention", "self_attn", "SelfAttention", "EncDecAttention")
_FEED_FORWARD = ("mlp", "intermediate", "ffn", "feed_forward", "DenseReluDense", "fc1", "fc2")
_POSITIONS = ("BS", "BT", "M", "M/8", "N", "S", "T", "B")
"""What a row of logits may belong to; of one text alone BS is S; a cache needs the last alone."""
_NORM = ("norm", "LayerNorm", "ln_")


_WRAPPERS = re.compile(r"^(?P<kind>buffer:)?base_model\.(model\.)?")
"""What peft puts before the names of the model it adapts: LoraModel and the like hold it as
`base_model.model`, prompt methods as `base_model`."""
_ADAPTERS = ("lora_", "ia3_", "ranknum", "prompt_encoder")
"""How the names of peft's own modules begin."""


def plain_name(name: str, *, adapted: bool) -> str:
    """The name of a tensor in the model without its adapter."""
    return _WRAPPERS.sub(r"\g<kind>", name) if adapted else name


def backbone_of(profile: Profile) -> frozenset[str]:
    """The first components of the names that are no head: those of layers and embeddings."""
    adapted = bool(profile.key.adapter)
    tables = (t.name for t in profile.tensors if is_embedding(t.name) and not is_adapter(t.name))
    names = [*profile.stack_paths, *tables]
    return frozenset(plain_name(name, adapted=adapted).split(".")[0] for name in names)


def is_adapter(name: str) -> bool:
    """Whether a parameter is peft's and no copy of the model's own."""
    return any(part.startswith(_ADAPTERS) for part in name.split("."))


def weight_category(name: str, group: int, backbone: frozenset[str], *, adapted: bool) -> str:
    """The row of a parameter, its scales, a buffer or input; `weights.lm_head` is any task's.

    Of an `adapted` head two copies count: peft keeps the frozen one beside the one it trains.
    """
    name = name.removeprefix("scale:")
    if name.startswith("input:"):
        return "inputs"
    if name.startswith("buffer:"):
        return "buffers"
    if adapted and is_adapter(name):
        return "weights.adapters"
    if group:
        return "weights.blocks"
    if is_embedding(name):
        return "weights.embeddings"
    name = plain_name(name, adapted=adapted)
    if name.split(".")[0] in backbone or name.startswith("pooler"):
        return "weights.other"
    return "weights.lm_head"


class Categories:
    """The category of each event's storage; places are shared objects."""

    def __init__(self, profile: Profile, vocabulary: int) -> None:
        self.profile = profile
        self.vocabulary = vocabulary
        self._places: dict[tuple[str, ...], Place] = {}

    def place(self, category: str, phase: str, module: str, op: str, basis: str) -> Place:
        """One Place for equal arguments."""
        key = (category, phase, module, op, basis)
        if key not in self._places:
            self._places[key] = Place(category, phase, module, op, basis)
        return self._places[key]

    def of(self, event: Event, phase: str, group: int) -> Place:
        """The place of a traced allocation."""
        category = self._name(event, phase, group)
        return self.place(category, phase, event.module, event.op, "traced")

    def _name(self, event: Event, phase: str, group: int) -> str:
        if not group and self._is_logits(event):
            return "logits"
        if phase != "forward":  # what a block computes again in backward dies there, too
            return "temporaries"
        if event.op == "_to_copy" and event.size and event.size[0][1] == "1":
            return "weights.autocast_casts"
        return f"activations.{self._part(event, group)}"

    def _part(self, event: Event, group: int) -> str:
        module = event.module.split("*", 1)[-1]
        if event.op.startswith("native_dropout"):
            return "dropout"
        if event.op.startswith("native_layer_norm") or any(p in module for p in _NORM):
            return "norms"
        if not group:
            return "embeddings_and_head"
        if any(part in module for part in _FEED_FORWARD):
            return "feed_forward"
        if any(part in module for part in _ATTENTION) or event.op.startswith("rigsize"):
            return "attention"
        return "feed_forward" if module.endswith(("output", "dense")) else "blocks_other"

    def _is_logits(self, event: Event) -> bool:
        if len(event.size) != 1 or not self.vocabulary:
            return False
        coefficient, monomial = event.size[0]
        return monomial in _POSITIONS and coefficient % self.vocabulary == 0
