"""What is exported is what `from_pretrained` reads, with the trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.launch import Job, launch
from tests.train.rank import tiny_xlm_roberta

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.train.export import check_export, export

pytestmark = pytest.mark.slow


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.arange(4, 24).reshape(2, 10)).logits
    return output


def load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(folder)
    return model


def test_reloads_and_replaces_an_earlier_export(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "model.safetensors").write_text("not the tokenizer's")
    folder = tmp_path / "export"
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = tiny_xlm_roberta()
        check_export(folder)
        assert export(model, tokenizer, folder) == folder
        assert logits(load(folder)).equal(logits(model))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "tokenizer"]


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import XLMRobertaForMaskedLM

    config: Any = tiny_xlm_roberta().config
    model = XLMRobertaForMaskedLM(config)
    folder = export(model, None, tmp_path / "export")
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "roberta.embeddings.word_embeddings.weight" in names
    assert "lm_head.decoder.weight" not in names
    assert logits(XLMRobertaForMaskedLM.from_pretrained(folder)).equal(logits(model))


# peft 0.21 asks transformers 5.23 by a name that goes away in v6.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_exported_through_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    base = tiny_xlm_roberta()
    export(base, None, tmp_path / "base")
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"])
    model: Any = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    folder = export(model, None, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").stat().st_size < 20_000
    again = PeftModel.from_pretrained(load(tmp_path / "base"), folder)
    assert logits(again).equal(logits(model))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "fsdp-offload"])
def test_ranks_gather_the_whole_model(parallel: str, tmp_path: Path) -> None:
    """Trained for a step on two ranks and on one, exported, and reloaded: the same weights."""
    folders = []
    for size, kind in ((2, parallel), (1, "single")):
        folders.append(tmp_path / kind)
        job = Job(
            folder=tmp_path / f"checkpoints-{kind}",
            log=tmp_path / f"log-{kind}",
            until=1,
            size=size,
            model="xlm-r",
            parallel=kind,
            export_to=folders[-1],
        )
        assert launch(job) == [0] * size
    two, one = map(load, folders)
    assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()
    for a, b in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_other_peoples_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"is not empty.*earlier export"):
        export(tiny_xlm_roberta(), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_space_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_xlm_roberta()
    folder = export(model, None, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full: Callable[..., None] = lambda *args, **options: (_ for _ in ()).throw(  # noqa: E731
        OSError(28, "No space left on device")
    )
    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(MeasurementFailed, match="no space left"):
        export(model, None, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
