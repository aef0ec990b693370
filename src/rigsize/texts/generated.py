"""A small corpus made of word lists, and a tokenizer over it: no network, no one else's text.

For tests of the training loop, and for a demonstration where the package registry is down. A model
can learn it: two of three texts hold words of their class alone, the rest are neutral words.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

__all__ = ["CLASSES", "generated_corpus", "generated_tokenizer"]

CLASSES = ("negative", "neutral", "positive")
_OWN = {
    "negative": "awful broken sad late angry worst slow rude hate dirty".split(),
    "neutral": "monday table report meeting train station paper office weekly number".split(),
    "positive": "great lovely happy fast kind best bright love clean sunny".split(),
}
_SHARED = (
    "the a this that we they it was is my our of to in on at and but so then again with for "
    "today yesterday morning evening phone bus hotel dinner weather game song city street"
).split()
_SHORTEST, _LONGEST = 3, 24
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In the order of their ids, which is that of XLM-R for the first four."""


def generated_corpus(path: Path, rows: int, seed: int) -> Path:
    """Writes `rows` JSON lines (text, label), the same for the same seed; gives the path back."""
    draw = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            label = CLASSES[number % len(CLASSES)]
            file.write(json.dumps({"text": _text(draw, label), "label": label}) + "\n")
    return path


def _text(draw: random.Random, label: str) -> str:
    # Short texts are more frequent than long ones, as they are in messages.
    length = round(draw.triangular(_SHORTEST, _LONGEST, 8))
    own = max(1, length // 4)
    words = draw.choices(_OWN[label], k=own) + draw.choices(_SHARED, k=length - own)
    draw.shuffle(words)
    return " ".join(words)


def generated_tokenizer(folder: Path) -> Path:
    """Saves a word tokenizer over the corpus, below 100 ids, with `<mask>`; gives the folder back.

    `AutoTokenizer.from_pretrained(folder)` loads it. Importing nothing here needs torch.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({*_SHARED, *(word for own in _OWN.values() for word in own)})
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    return folder
