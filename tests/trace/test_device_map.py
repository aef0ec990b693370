"""The map is transformers' own; without accelerate the answer is one line."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
from tests.program.tiny_profile import KEY
from tests.trace.tiny import CONFIGS

from rigsize.errors import UnsupportedCombination
from rigsize.models import ModelSource
from rigsize.trace import device_map as module
from rigsize.trace.device_map import device_map, main

LLAMA = CONFIGS["llama"] | {"num_hidden_layers": 8}


def request(*capacities: int) -> dict[str, Any]:
    key = replace(KEY, task="causal-lm", use="inference", compute="half", cache="prefill")
    return {
        "config": LLAMA,
        "key": [getattr(key, n) for n in key.__slots__],
        "capacities": capacities,
    }


def test_layers_are_spread_and_none_is_torn() -> None:
    found = main(request(10**8, 10**8))
    layers = {name: found[name] for name in found if ".layers." in name}
    assert set(layers) == {f"model.layers.{n}" for n in range(8)}
    assert set(layers.values()) == {0, 1}
    assert list(layers.values()) == sorted(layers.values(), key=str)
    assert found["model.embed_tokens"] == 0


def test_what_has_no_room_goes_to_the_disk() -> None:
    assert "disk" in main(request(2_000_000, 1_000_000)).values()


def test_without_accelerate_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    monkeypatch.setattr(module, "_known", {})
    source = ModelSource(
        name="tiny",
        origin="config",
        config=LLAMA,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )
    with pytest.raises(UnsupportedCombination, match="accelerate is not installed"):
        device_map(source, KEY, [10**9, 10**9])
