"""Every class that transformers has for one of the zoo's tasks, by its own auto mappings."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.models.auto import modeling_auto

TABLES = {
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One architecture at one task."""

    model_type: str
    task: str
    class_name: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.model_type} {self.task}"


def cases() -> list[Case]:
    """All of them, in order of architecture and task."""
    return sorted(
        Case(model_type, task, class_name)
        for task, table in TABLES.items()
        for model_type, class_name in table.items()
    )
