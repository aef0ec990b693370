import importlib
import json
import sys
from pathlib import Path

import pytest

from rigsize.errors import SpecError
from rigsize.models import check_task, default_task, max_positions, tasks_of
from rigsize.models.positions import architecture_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        # 514 rows, the first two belong to padding.
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 8194}, 8192),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "bert"}, 512),
        ({"model_type": "gpt2", "n_positions": 2048}, 2048),
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 99}}, 99),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        ({"model_type": "falcon", "max_position_embeddings": 2048, "alibi": False}, 2048),
        ({"model_type": "falcon", "max_position_embeddings": 2048, "alibi": True}, None),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_usable_positions(config: dict[str, object], usable: int | None) -> None:
    assert max_positions(config) == usable


def test_positions_that_padding_uses_up() -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 600}
    with pytest.raises(SpecError, match="no usable position"):
        max_positions(config)


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("xlm-roberta", "sequence-classification"),
        ("modernbert", "sequence-classification"),
        ("llama", "causal-lm"),
        ("gpt2", "causal-lm"),
        ("mamba", "causal-lm"),
        ("t5", "seq2seq-lm"),
        ("bart", "seq2seq-lm"),
        ("m2m_100", "seq2seq-lm"),
    ],
)
def test_default_task(model_type: str, task: str) -> None:
    assert default_task({"model_type": model_type}) == task


def test_a_decoder_made_of_an_encoder_generates() -> None:
    assert default_task({"model_type": "bert", "is_decoder": True}) == "causal-lm"


def test_remote_code_says_itself_what_it_can_do() -> None:
    config = {"model_type": "new", "auto_map": {"AutoModelForCausalLM": "modeling_new.NewLM"}}
    assert default_task(config) == "causal-lm"
    assert check_task(config, "causal-lm") == "modeling_new.NewLM"


def test_tasks() -> None:
    assert tasks_of("mamba") == ("causal-lm", "embedding")
    assert tasks_of("vit") == ()
    assert tasks_of("no-such") == ()


def test_check_task() -> None:
    assert check_task({"model_type": "bert"}, "masked-lm") == "BertForMaskedLM"
    with pytest.raises(SpecError, match="mamba has no head") as caught:
        check_task({"model_type": "mamba"}, "sequence-classification")
    assert caught.value.allowed == ("causal-lm", "embedding")
    with pytest.raises(SpecError, match="no such task") as caught:
        check_task({"model_type": "bert"}, "masked")
    assert caught.value.nearest == "masked-lm"


@pytest.mark.slow
def test_the_table_is_what_transformers_says(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    table = ROOT / "src/rigsize/models/data/architectures.json"
    written = json.loads(table.read_text(encoding="utf-8"))
    if transformers.__version__ != written["transformers"]:
        pytest.skip(f"the table was written from transformers {written['transformers']}")
    monkeypatch.syspath_prepend(str(ROOT / "validation"))
    builder = importlib.import_module("build_architectures")
    monkeypatch.delitem(sys.modules, "build_architectures")
    for model_type in ("xlm-roberta", "llama", "t5", "mamba", "gemma3", "mpt", "vit"):
        assert builder.entry(model_type) == written["architectures"][model_type]
    assert tuple(sorted(builder.CONFIG_MAPPING)) == architecture_names()
