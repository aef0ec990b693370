"""Workload: what is to be done, with which model on how much text."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rigsize.spec.checks import fraction, integer, one_of

TASKS = (
    "sequence-classification",
    "token-classification",
    "masked-lm",
    "causal-lm",
    "seq2seq-lm",
    "embedding",
)
USES = ("inference", "fine-tuning", "pre-training")
PADDINGS = ("fixed", "dynamic", "unpadded")

MAX_LENGTH = 10_000_000
MAX_BATCH = 1_000_000
MAX_LABELS = 1_000_000
DEFAULT_NEW_TOKENS = 20
"""`generate` without a length: `max_length` of transformers' GenerationConfig, 20 from 5.0 on
counted behind the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What: a model, a task, a length."""

    model: str
    """Bundled name, folder, config.json or hub id, as the user wrote it."""
    task: str
    """One of TASKS."""
    use: str = "fine-tuning"
    """One of USES; fine-tuning and pre-training are the same step with another head."""
    max_length: int
    """Tokens a text, S: every batch is sized for it."""
    max_target_length: int | None = None
    """Target tokens a text, T; sequence-to-sequence only."""
    num_labels: int = 3
    """Classes of a classification head."""
    padding: str = "fixed"
    """fixed pads every batch to max_length; dynamic to its longest text, at most max_length."""
    padding_in_batch: bool = True
    """Whether a batch holds any padded position: it decides the mask and so the kernel."""
    examples: int | None = None
    """Texts an epoch; memory does not depend on it."""
    epochs: int = 1
    prompt_length: int | None = None
    """Tokens a decoder reads before it writes (inference); None is one pass over max_length."""
    max_new_tokens: int | None = None
    """Tokens it writes, each beside the cache of all before it."""
    mask_share: float = 0.15
    """Of a text's tokens that a masked-LM step predicts; Devlin et al. 2018 (BERT), 3.1."""

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        one_of("use", self.use, USES)
        one_of("padding", self.padding, PADDINGS)
        integer("max-length", self.max_length, 1, MAX_LENGTH)
        integer("num-labels", self.num_labels, 1, MAX_LABELS)
        integer("epochs", self.epochs, 1, 1_000_000)
        fraction("mask-share", self.mask_share)
        if self.prompt_length is not None:
            integer("prompt-length", self.prompt_length, 1, MAX_LENGTH)
        if self.max_new_tokens is not None:
            integer("max-new-tokens", self.max_new_tokens, 1, MAX_LENGTH)
        if self.max_target_length is not None:
            integer("max-target-length", self.max_target_length, 1, MAX_LENGTH)
        if self.examples is not None:
            integer("examples", self.examples, 1, 10**15)

    @property
    def predicts_tokens(self) -> bool:
        """Whether the task's head is over the vocabulary."""
        return self.task.endswith("-lm")

    @property
    def generates(self) -> bool:
        """Whether tokens are written, with a cache."""
        return self.prompt_length is not None or self.max_new_tokens is not None

    @property
    def prompt_tokens(self) -> int:
        """Of a text before it is written on; the encoder's where there is one."""
        return self.prompt_length or self.max_length

    @property
    def new_tokens(self) -> int:
        """Tokens written for each text."""
        return self.max_new_tokens or DEFAULT_NEW_TOKENS

    @property
    def training(self) -> bool:
        """Whether the step has a backward pass."""
        return self.use != "inference"


def with_length(workload: Workload, tokens: int) -> Workload:
    """The same with texts, or prompts, of another length."""
    prompt = tokens if workload.prompt_length is not None else None
    return replace(workload, max_length=tokens, prompt_length=prompt)
