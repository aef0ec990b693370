"""Adapter: what peft adds to a frozen model, as the trace key names it. No peft here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from rigsize.spec.strategy import LORA_METHODS, PROMPT_METHODS, Strategy

__all__ = ["ALL_LINEAR", "Adapter", "adapter_of", "targets_like"]

ALL_LINEAR = "all-linear"
"""peft's own word for every linear layer but the head."""
_BY_RANK = ("lora", "dora", "adalora")
_SAME_LAYERS = {
    "camembert": "roberta",
    "data2vec-text": "roberta",
    "electra": "bert",
    "mistral": "llama",
    "roberta-prelayernorm": "roberta",
    "xlm-roberta": "roberta",
    "xlm-roberta-xl": "roberta",
}
"""Architectures whose modules have the names of another's, for which peft has default targets."""
_KNOWN_TO_PEFT = {
    "lora": ("electra", "mistral", "xlm-roberta"),
    "adalora": (),
    "ia3": ("mistral",),
}
"""Of these, those that peft 0.21 has targets of its own for (peft/utils/constants.py)."""


def targets_like(method: str, model_type: str) -> str | None:
    """The architecture whose default targets serve one that peft has none for; None for its own."""
    known = _KNOWN_TO_PEFT.get(method, _KNOWN_TO_PEFT["lora"])
    return None if model_type in known else _SAME_LAYERS.get(model_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter; fields that its method has no use for stay at their defaults."""

    method: str
    """lora, dora, adalora, ia3, prefix or prompt."""
    rank: int = 0
    """Of lora, dora and adalora (whose first rank it is)."""
    targets: tuple[str, ...] = ()
    """Names of the adapted modules, sorted; empty for peft's choice for the architecture."""
    dropout: float = 0.0
    rslora: bool = False
    dtype: str = "fp32"
    """fp32 or `same` as the weights."""
    virtual_tokens: int = 0
    """Of prefix and prompt."""

    def traced(self, compute: str) -> Adapter:
        """The same for memory: scaling and the share dropped out are numbers, not tensors.

        The adapter's dtype is a choice only over 16-bit weights.
        """
        return replace(
            self,
            rslora=False,
            dropout=0.5 if self.dropout else 0.0,
            dtype=self.dtype if compute == "half" else "fp32",
        )

    def text(self) -> str:
        """`method=lora,rank=8,targets=k_proj+q_proj`: what is not at its default, in order."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "method" or value != item.default:
                shown.append(f"{item.name}={'+'.join(value) if item.name == 'targets' else value}")
        return ",".join(shown)

    @classmethod
    def parse(cls, text: str) -> Adapter | None:
        """The inverse of `text`; None of an empty one."""
        if not text:
            return None
        read: dict[str, Any] = {
            "rank": int,
            "targets": lambda value: tuple(value.split("+")),
            "dropout": float,
            "rslora": lambda value: value == "True",
            "virtual_tokens": int,
        }
        pairs = (part.split("=", 1) for part in text.split(","))
        return cls(**{name: read.get(name, str)(value) for name, value in pairs})


def adapter_of(strategy: Strategy) -> Adapter | None:
    """The adapter of a strategy's method; None when all weights are trained.

    qlora and int8-lora are LoRA on a base that is stored otherwise (`Strategy.stored_as`).
    """
    method = strategy.method
    if method == "full":
        return None
    if method in PROMPT_METHODS:
        return Adapter(method=method, virtual_tokens=strategy.virtual_tokens)
    names = (strategy.lora_targets or "").split(",")
    targets = tuple(sorted({name.strip() for name in names if name.strip()}))
    if method == "ia3":
        return Adapter(method="ia3", targets=targets, dtype=strategy.adapter_dtype)
    assert method in LORA_METHODS
    return Adapter(
        method=method if method in _BY_RANK else "lora",
        rank=strategy.lora_rank,
        targets=targets,
        dropout=strategy.lora_dropout,
        rslora=strategy.rslora,
        dtype=strategy.adapter_dtype,
    )
