from pathlib import Path
from typing import Any

import pytest
from tests.texts.blobs import make_blob

from rigsize.texts.demo_model import write_model
from rigsize.texts.e5_blob import parse_blob
from rigsize.texts.tokenizer import check_vocabulary, load_tokenizer

pytest.importorskip("safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(parse_blob(make_blob()), tmp_path)
    return tmp_path


def test_every_weight_is_loaded(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, BertModel

    loader: Any = BertModel  # its types leave the loading info out
    model, found = loader.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = parse_blob(make_blob()).tensor("l0.fi.w", 64, 32)
    loaded = model.encoder.layer[0].intermediate.dense.weight.detach()
    assert torch.equal(loaded, torch.from_numpy(expected))
    _, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["unexpected_keys"]
    new = {key.removeprefix("bert.").split(".")[0] for key in found["missing_keys"]}
    assert new == {"pooler", "classifier"}


def test_the_tokenizer_is_loaded_with_its_normaliser(folder: Path) -> None:
    from transformers import AutoConfig

    tokenizer = load_tokenizer(folder)
    assert tokenizer("the  bus")["input_ids"] == [0, 4, 5, 2]
    # Full-width letters are NFKC's work: without the normaliser they would be unknown.
    assert tokenizer("\uff54\uff48\uff45 bus")["input_ids"] == [0, 4, 5, 2]
    assert tokenizer("the <mask>")["input_ids"] == [0, 4, 6, 2]
    assert tokenizer.mask_token_id == 6
    assert tokenizer("the bus").keys() == {"input_ids", "attention_mask"}
    config = AutoConfig.from_pretrained(folder)
    check_vocabulary(tokenizer, config)
    assert config.pad_token_id == tokenizer.pad_token_id == 1
