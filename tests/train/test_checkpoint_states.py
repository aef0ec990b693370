"""What is taken of a model and its optimizer, and under which names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.rank import tiny_xlm_roberta
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from rigsize.errors import UnsupportedCombination
from rigsize.train.checkpoint import Checkpoints
from rigsize.train.checkpoint_states import collect, model_tensors, unwrapped


class Tied(nn.Module):
    """One weight under two names, one persistent buffer and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.head = nn.Linear(2, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("made_again", torch.ones(1), persistent=False)


def test_tied_weights_once_and_persistent_buffers() -> None:
    assert sorted(model_tensors(Tied())) == ["model/embedding.weight", "model/kept"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_names_do_not_depend_on_wrappers() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)))
    assert sorted(model_tensors(wrapped)) == sorted(model_tensors(model))
    compiled: Any = torch.compile(model)
    assert unwrapped(compiled) is model
    assert sorted(model_tensors(compiled)) == ["model/0.bias", "model/0.weight"]


def test_what_is_no_tensor_becomes_json() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5), betas=(0.8, 0.9))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.state[model.weight]["rounds"] = 7
    contents = collect(model, optimizer)
    assert sorted(contents.tensors) == [
        "groups/0/lr",
        "model/weight",
        "optimizer/weight/exp_avg",
        "optimizer/weight/exp_avg_sq",
        "optimizer/weight/step",
    ]
    assert contents.scalars == {"optimizer/weight/rounds": 7}
    assert contents.groups[0]["betas"] == [0.8, 0.9]
    assert contents.document()["tensors"]["model/weight"] == {"shape": [1, 2], "dtype": "float32"}
    optimizer.state[model.weight]["odd"] = object()
    with pytest.raises(UnsupportedCombination, match="optimizer/weight/odd: object"):
        collect(model, optimizer)


@pytest.mark.slow
# peft 0.21 asks transformers 5.23 by a name that goes away in v6.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapted_model_is_saved_without_its_frozen_base(tmp_path: Path) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    def fresh(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(0)  # the base is read from somewhere, always the same
        base = tiny_xlm_roberta()
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"], lora_dropout=0.2
        )
        model: Any = get_peft_model(base, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, lr=0.1)

    def losses(model: Any, optimizer: torch.optim.Optimizer) -> list[float]:
        found = []
        for _ in range(3):
            ids, labels = torch.randint(3, 50, (4, 7)), torch.randint(0, 3, (4,))
            loss = model(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    model, optimizer = fresh(1)
    checkpoints = Checkpoints(tmp_path, identity={})
    losses(model, optimizer)
    path = checkpoints.save(3, model, optimizer, {})
    names = json.loads((path / "state.json").read_text())["tensors"]
    assert any("lora_A" in name for name in names)
    assert not any("word_embeddings" in name or "base_layer" in name for name in names)
    expected = losses(model, optimizer)
    model, optimizer = fresh(2)
    found = checkpoints.newest()
    assert found is not None
    checkpoints.load(found, model, optimizer)
    assert losses(model, optimizer) == expected
