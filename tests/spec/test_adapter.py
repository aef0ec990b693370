"""The canonical text of an adapter: read back whole, equal where memory is equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.spec import Strategy
from rigsize.spec.adapter import Adapter, adapter_of
from rigsize.spec.strategy import METHODS

_NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True)


@given(
    st.builds(
        Adapter,
        method=st.sampled_from(("lora", "dora", "adalora", "ia3", "prefix", "prompt")),
        rank=st.integers(0, 65_536),
        targets=st.lists(_NAMES, max_size=8).map(tuple),
        dropout=st.floats(0, 0.99),
        rslora=st.booleans(),
        dtype=st.sampled_from(("fp32", "same")),
        virtual_tokens=st.integers(0, 65_536),
    )
)
def test_text_is_read_back_whole(adapter: Adapter) -> None:
    assert Adapter.parse(adapter.text()) == adapter


def test_no_adapter_is_no_text() -> None:
    assert Adapter.parse("") is None
    assert adapter_of(Strategy()) is None


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_every_method_has_an_adapter(method: str) -> None:
    adapter = adapter_of(Strategy(method=method, lora_rank=4, virtual_tokens=7))
    assert adapter is not None
    assert adapter.method == {"qlora": "lora", "int8-lora": "lora"}.get(method, method)
    assert adapter.virtual_tokens == (7 if method in ("prefix", "prompt") else 0)
    assert adapter.rank == (0 if method in ("ia3", "prefix", "prompt") else 4)


def test_targets_are_a_set() -> None:
    one = adapter_of(Strategy(method="lora", lora_targets="v_proj, q_proj,q_proj"))
    other = adapter_of(Strategy(method="lora", lora_targets="q_proj,v_proj"))
    assert one == other
    assert one is not None
    assert one.text() == "method=lora,rank=8,targets=q_proj+v_proj"


def test_what_changes_no_tensor_is_one_trace() -> None:
    plain = Adapter(method="lora", rank=8)
    rooted = Adapter(method="lora", rank=8, rslora=True, dtype="same")
    assert rooted.traced("fp32") == plain.traced("fp32") == plain
    assert rooted.traced("half") != plain.traced("half")  # fp32 adapters cast their inputs
    some, more = (Adapter(method="lora", rank=8, dropout=p) for p in (0.05, 0.1))
    assert some.traced("fp32") == more.traced("fp32") != plain
