import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError
from rigsize.models import (
    bundled_models,
    check_config,
    default_task,
    digest,
    max_positions,
    parse_config,
)
from rigsize.models.validate import MAX_CONFIG_BYTES

BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
}


def refused(config: dict[str, Any]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        check_config(config)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"model_type": "bert",', "line 1, column"),
        (b'{\n "a": 1,\n "b": }', "line 3, column 7"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "too large a number"),
        (b" " * (MAX_CONFIG_BYTES + 1), "too large"),
        (b'"' + b"\\" * 1_000_001, "not valid JSON"),
        (b"[" * 70 + b'"' + b'\\"' * 1_000_000, "nested too deeply"),
    ],
)
def test_broken_files(data: bytes, said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        parse_config(data)
    assert caught.value.field == "config.json"
    assert len(str(caught.value)) < 400


def test_brackets_in_strings_are_no_nesting() -> None:
    assert parse_config(json.dumps({"a": "[{" * 1000, "b": '"[' * 500}).encode())


def test_a_byte_order_mark_is_fine() -> None:
    assert parse_config(b'\xef\xbb\xbf{"model_type": "bert"}') == {"model_type": "bert"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "12"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", None),
        ("hidden_size", 768.0),
        ("hidden_size", [768]),
        ("hidden_size", {}),
        ("hidden_size", float("nan")),
        ("vocab_size", 10**9),
        ("intermediate_size", 0),
        ("max_position_embeddings", -5),
        ("num_attention_heads", 7),
        ("hidden_dropout_prob", float("inf")),
        ("anything", 10**30),
    ],
)
def test_bad_values_name_the_field(key: str, value: object) -> None:
    if isinstance(value, list):
        # A list means a size a layer; one of one entry is as good as its entry.
        check_config({**BERT, key: value})
        return
    error = refused({**BERT, key: value})
    assert error.field == key
    assert error.allowed


def test_nested_configs_are_checked_too() -> None:
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**12}}
    assert refused(config).field == "text_config.num_hidden_layers"


def test_groups_divide_heads() -> None:
    config = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 5}
    assert refused(config).field == "num_key_value_heads"


def test_mamba2_may_say_infinity() -> None:
    check_config({"model_type": "mamba2", "time_step_limit": [0.0, float("inf")]})


def test_nullable_sizes() -> None:
    check_config({"model_type": "gpt2", "n_inner": None})
    check_config({**BERT, "model_type": "llama", "num_key_value_heads": None, "head_dim": None})


def test_model_type() -> None:
    assert refused({}).problem == "missing"
    assert refused({"model_type": 5}).problem == "not a name"
    assert refused({"model_type": "xlm-robert"}).nearest == "xlm-roberta"
    assert refused({"model_type": "vit"}).problem == "reads no text"


def test_remote_code_only_when_asked_for() -> None:
    config = {"model_type": "new_model", "auto_map": {"AutoModel": "modeling_new.NewModel"}}
    assert "--trust-remote-code" in refused(config).hint
    assert "runs code" in check_config(config, trust_remote_code=True)[0]
    assert "ignored" in check_config({**BERT, "auto_map": {}})[0]


def test_digest() -> None:
    same = {**dict(reversed(BERT.items())), "architectures": ["X"], "id2label": {"0": "no"}}
    assert digest(BERT) == digest(same)
    assert digest(BERT) != digest({**BERT, "hidden_act": "relu"})
    assert digest({"text_config": {"dtype": "float16"}}) == digest({"text_config": {}})
    assert len(digest(BERT)) == 16
    # Stored profiles are found by it: a change of the rule would lose them all.
    assert digest({"model_type": "bert"}) == "7b5017c2bd719d8f"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**12, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
keys = st.sampled_from(sorted({key for model in bundled_models() for key in model.config}))


def use(config: dict[str, Any]) -> None:
    """What every caller does with an accepted config."""
    check_config(config)
    default_task(config)
    max_positions(config)
    digest(config)


@given(st.binary())
def test_any_bytes_are_a_config_or_one_clear_line(data: bytes) -> None:
    with contextlib.suppress(SizingError):
        use(parse_config(data))


@given(json_values)
def test_any_json_is_a_config_or_one_clear_line(value: object) -> None:
    with contextlib.suppress(SizingError):
        use(parse_config(json.dumps(value).encode()))


@given(
    model=st.sampled_from(bundled_models()),
    changes=st.dictionaries(
        keys | st.sampled_from(["auto_map", "text_config", "is_decoder", "alibi"]),
        json_values,
        min_size=1,
        max_size=3,
    ),
)
def test_a_spoilt_real_config_is_accepted_or_one_clear_line(
    model: Any, changes: dict[str, object]
) -> None:
    with contextlib.suppress(SizingError):
        use(parse_config(json.dumps({**model.config, **changes}).encode()))
