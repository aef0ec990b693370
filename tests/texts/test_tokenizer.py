import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.texts import tokenizer as module
from rigsize.texts.demo import Demo
from rigsize.texts.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    own_length,
    tokenizer_digest,
    tokenizer_place,
)


@pytest.fixture(autouse=True)
def _nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_is_loaded(tokenizer: Path) -> None:
    assert load_tokenizer(tokenizer)("the bus")["input_ids"][0] == 0
    assert own_length(tokenizer) == 512


def test_a_model_folder_of_another_type_does_not_change_its_tokenizer(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    text = "the bus , unknown"
    assert load_tokenizer(folder)(text)["input_ids"] == load_tokenizer(tokenizer)(text)["input_ids"]


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no tokenizer files"):
        load_tokenizer(tmp_path)


def test_a_broken_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_remote_code_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tokenizer, folder)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    with pytest.raises(SpecError, match="cannot be loaded"):
        load_tokenizer(folder)
    assert not ran.exists()


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    with pytest.raises(MeasurementFailed, match="does not answer"):
        load_tokenizer("organisation/name")


def test_a_missing_path_is_told() -> None:
    for path in ("/no/such", "./gone", Path("gone")):
        with pytest.raises(SpecError, match="no such folder"):
            load_tokenizer(path)


def test_bundled_xlm_r_takes_the_demo_vocabulary_where_it_is(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(tokenizer_place("xlm-roberta-base"), str)
    demo = Demo(texts=tokenizer, model_folder=tokenizer, num_texts=1, label_counts={})
    monkeypatch.setattr("rigsize.texts.demo.find_demo", lambda: demo)
    assert tokenizer_place("xlm-roberta-base") == tokenizer
    assert isinstance(tokenizer_place("bert-base-uncased"), str)


def test_the_digest_is_of_the_files_that_count(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tokenizer, folder)
    (folder / "README.md").write_text("nothing")
    assert tokenizer_digest(folder) == tokenizer_digest(str(tokenizer))
    changed = (folder / "tokenizer.json").read_text().replace('"bus"', '"buss"')
    (folder / "tokenizer.json").write_text(changed)
    assert tokenizer_digest(folder) != tokenizer_digest(tokenizer)


def test_a_vocabulary_must_fit_the_model(tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    highest = len(loaded) - 1
    configs: list[Any] = [
        {"vocab_size": highest + 1},
        {"text_config": {"vocab_size": highest + 1}},
        SimpleNamespace(vocab_size=highest + 1),
        {},  # what a config does not say cannot be checked
    ]
    for config in configs:
        check_vocabulary(loaded, config)
    with pytest.raises(UnsupportedCombination, match=f"ids reach {highest}, but the model has"):
        check_vocabulary(loaded, {"vocab_size": highest})


def test_a_slow_tokenizer_is_told() -> None:
    with pytest.raises(SpecError, match="no fast implementation"):
        tokenizer_digest(SimpleNamespace(is_fast=False))
