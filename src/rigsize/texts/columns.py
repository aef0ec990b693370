"""Which column is the text, the label, the target: as named, else by their usual names."""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.errors import SpecError, nearest
from rigsize.texts.source import DataSource

__all__ = ["Columns", "choose_columns"]

_TEXT = ("text", "sentence", "tweet", "content", "document", "review", "body", "message", "title")
_TOKENS = ("tokens", "words")
_LABEL = ("label", "labels", "sentiment", "class", "category", "target", "stars", "rating")
_TAGS = ("tags", "ner_tags", "pos_tags", "upos", "labels", "label")
_SOURCE = ("source", "input", "article", "document", "prompt", "question", "text", "dialogue")
_TARGET = ("target", "summary", "output", "highlights", "response", "answer", "translation")
_ANCHOR = ("anchor", "query", "question", "sentence1", "premise", "text1", "text")
_POSITIVE = ("positive", "pos", "passage", "answer", "sentence2", "hypothesis", "text2", "document")

_ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "sequence-classification": {"text": _TEXT, "label": _LABEL},
    "token-classification": {"text": _TOKENS, "label": _TAGS},
    "masked-lm": {"text": _TEXT},
    "causal-lm": {"text": _TEXT},
    "seq2seq-lm": {"text": _SOURCE, "target": _TARGET},
    "embedding": {"text": _ANCHOR, "target": _POSITIVE},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns a task reads."""

    text: str
    """The text, the tokens (token-classification) or the anchor (embedding)."""
    label: str | None = None
    """The class, or the tags of the tokens."""
    target: str | None = None
    """The target text (seq2seq-lm) or the positive (embedding)."""
    guessed: tuple[str, ...] = ()
    """The roles nobody named a column for, to be told."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that are read."""
        return tuple(name for name in (self.text, self.label, self.target) if name is not None)

    def told(self) -> str:
        """`text from "tweet", label from "sentiment" (guessed)`."""
        parts = []
        for role in ("text", "label", "target"):
            name = getattr(self, role)
            if name is not None:
                parts.append(f'{role} from "{name}"{" (guessed)" if role in self.guessed else ""}')
        return ", ".join(parts)


def choose_columns(
    source: DataSource, columns: tuple[str, ...], task: str, *, labelled: bool = True
) -> Columns:
    """The columns of a task; SpecError says which there are.

    Args:
        source: with the names a person gave.
        columns: those of the file.
        task: one of `rigsize.spec.TASKS`.
        labelled: False where only texts are counted, so that labels may be missing.
    """
    roles = _ROLES[task]
    chosen: dict[str, str] = {}
    guessed = []
    for role in ("text", "label", "target"):
        named = getattr(source, f"{role}_column")
        if named is not None:
            _check(role, named, columns, needed=role in roles, task=task)
            chosen[role] = named
        elif role in roles and (labelled or role != "label"):
            chosen[role] = _guess(role, roles[role], columns, task, tuple(chosen.values()))
            guessed.append(role)
    return Columns(**chosen, guessed=tuple(guessed))


def _check(role: str, named: str, columns: tuple[str, ...], *, needed: bool, task: str) -> None:
    if not needed:
        raise SpecError(f"{role}-column", named, f"{task} reads no {role}")
    if named not in columns:
        raise SpecError(
            f"{role}-column",
            named,
            "no such column",
            allowed=columns,
            nearest=nearest(named, columns),
        )


def _guess(
    role: str, usual: tuple[str, ...], columns: tuple[str, ...], task: str, taken: tuple[str, ...]
) -> str:
    by_folded = {name.strip().casefold(): name for name in reversed(columns) if name not in taken}
    for name in usual:
        if name in by_folded:
            return by_folded[name]
    if role == "text" and len(columns) == 1:
        return columns[0]
    raise SpecError(
        f"{role}-column",
        ", ".join(columns),
        f"{task} needs a {role}, and no column has a usual name for it",
        hint=f"name one with --{role}-column",
    )
