"""What stands in for operators that depend on token values, beside what torch really gives."""

from __future__ import annotations

import pytest
import torch

from rigsize.trace.values import answered, checked_value, with_rows

ENDS_BS = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
HIDDEN_BSH = torch.arange(24.0).reshape(3, 4, 2)


def test_a_mask_that_is_true_once_a_text_selects_a_row_a_text() -> None:
    args = with_rows("aten::index.Tensor", (HIDDEN_BSH, [ENDS_BS]))
    rows, columns = args[1]
    assert rows.dtype == torch.int64
    shape = torch.ops.aten.index.Tensor(HIDDEN_BSH, [rows.zero_(), columns.zero_()]).shape
    assert shape == HIDDEN_BSH[ENDS_BS].shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten::add.Tensor", (HIDDEN_BSH, [ENDS_BS])),
        ("aten::index.Tensor", (HIDDEN_BSH, [torch.tensor([0, 1])])),
        ("aten::index.Tensor", (HIDDEN_BSH, [torch.tensor([True, False, True])])),
        ("aten::index.Tensor", (HIDDEN_BSH, [None, torch.tensor([0])])),
    ],
)
def test_other_indexing_is_left_alone(name: str, args: tuple[object, ...]) -> None:
    assert with_rows(name, args) is args


def test_every_text_has_as_many_ends() -> None:
    counts = answered("aten::unique_consecutive", (ENDS_BS.sum(1),), None)[0]
    assert counts.numel() == torch.unique_consecutive(ENDS_BS.sum(1)).numel() == 1


@pytest.mark.parametrize(
    ("value", "checked", "expected"),
    [
        (torch.tensor(7), True, 0),
        (torch.tensor(7.0), False, 0),
        (torch.tensor(False), True, True),
        (torch.tensor(True), False, False),
    ],
)
def test_a_value_that_is_only_looked_at(
    value: torch.Tensor, checked: bool, expected: object
) -> None:
    assert answered("aten::_local_scalar_dense", (value,), checked) == expected


def test_a_value_that_decides_is_not_answered() -> None:
    assert answered("aten::_local_scalar_dense", (torch.tensor(7),), None) is NotImplemented
    assert answered("aten::mul.Tensor", (torch.tensor(7),), True) is NotImplemented


def test_which_architectures_only_look() -> None:
    assert checked_value("xlm") is True
    assert checked_value("blt") is None
