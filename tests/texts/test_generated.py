import json
from pathlib import Path

from rigsize.texts.generated import CLASSES, generated_corpus
from rigsize.texts.tokenizer import load_tokenizer


def test_the_corpus_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = generated_corpus(tmp_path / "a.jsonl", 90, 1).read_bytes()
    assert generated_corpus(tmp_path / "b.jsonl", 90, 1).read_bytes() == first
    assert generated_corpus(tmp_path / "c.jsonl", 90, 2).read_bytes() != first
    labels = [json.loads(line)["label"] for line in first.splitlines()]
    assert [labels.count(name) for name in CLASSES] == [30, 30, 30]


def test_the_tokenizer_knows_every_word(tmp_path: Path, tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    assert len(loaded) < 1000
    assert (loaded.pad_token_id, loaded.mask_token_id) == (1, 4)
    corpus = generated_corpus(tmp_path / "a.jsonl", 300, 0).read_text().splitlines()
    ids = loaded([json.loads(line)["text"] for line in corpus])["input_ids"]
    assert not any(loaded.unk_token_id in one for one in ids)
    assert len({len(one) for one in ids}) > 10
