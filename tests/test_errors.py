import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize import errors
from rigsize.errors import (
    MeasurementFailed,
    SizingError,
    SpecError,
    TraceFailed,
    UnknownDevice,
    UnknownModel,
    UnsupportedCombination,
    nearest,
)

ALL = (SpecError, UnknownModel, UnknownDevice, UnsupportedCombination, TraceFailed)


def test_one_line_names_field_value_allowed_nearest_and_what_to_do() -> None:
    error = SpecError(
        "task",
        "masked",
        "no such task",
        allowed=("masked-lm", "causal-lm"),
        nearest="masked-lm",
        hint="see `rigsize estimate --help`",
    )
    assert str(error) == (
        "task: no such task, got 'masked'; allowed: masked-lm, causal-lm; "
        "did you mean masked-lm?; see `rigsize estimate --help`"
    )


def test_json_has_the_contract_keys() -> None:
    error = UnknownDevice("gpus", "A1000", allowed=("A100-40GB-SXM",), nearest="A100-40GB-SXM")
    assert error.to_json() == {
        "kind": "unknown_device",
        "field": "gpus",
        "value": "A1000",
        "allowed": ["A100-40GB-SXM"],
        "nearest": "A100-40GB-SXM",
    }


@pytest.mark.parametrize("error", [*ALL, MeasurementFailed])
def test_tree(error: type[SizingError]) -> None:
    assert issubclass(error, SizingError)
    assert issubclass(error, ValueError) == (error is SpecError)
    assert error.__name__ in str(errors.__doc__)


@pytest.mark.parametrize("error", ALL)
def test_bad_input_exits_with_2(error: type[SizingError]) -> None:
    assert error.exit_code == 2


def test_crosses_a_process_boundary() -> None:
    error = TraceFailed("model", "x/y", "aborted", allowed=("a",), nearest="a", hint="do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is TraceFailed
    assert str(again) == str(error)


def test_long_lists_and_values_are_shortened() -> None:
    error = SpecError("f", "x" * 10_000, allowed=[f"name{i}" for i in range(100)])
    assert len(str(error)) < 300
    assert "and 92 more" in str(error)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(field=st.text(), value=anything)
def test_any_value_renders_on_one_line_and_as_json(field: str, value: object) -> None:
    error = SpecError(field, value, allowed=("a\nb",))
    assert len(str(error).splitlines()) == 1
    json.loads(json.dumps(error.to_json(), allow_nan=False))


def test_an_integer_too_long_for_str_is_described() -> None:
    error = SpecError("num_hidden_layers", -(10**6000))
    assert "more than 80 digits" in str(error)
    json.dumps(error.to_json())


def test_nearest() -> None:
    names = ("A100-40GB-SXM", "H100-80GB-SXM")
    assert nearest("a100-40gb-sxn", names) == "A100-40GB-SXM"
    assert nearest("entirely different", names) is None
    assert nearest("", names) is None
    assert nearest("A" * 1_000_000, names) is None
