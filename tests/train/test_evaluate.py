"""Metrics by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rigsize.train.evaluate import classification_metrics, main_metric


def test_macro_f1_by_hand() -> None:
    # class 0: 2 hits of 3 true, 3 predicted: F1 2*2/6; class 1: 1 of 2 and 1 of 1... by hand below
    confusion = np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]])
    metrics = classification_metrics(confusion)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    # class 0: 4 / (3 + 3); class 1: 2 / (2 + 2); class 2 occurs nowhere
    assert metrics["macro_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_all_right_is_one() -> None:
    assert classification_metrics(np.diag([3, 4])) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_tasks_without_classes_go_by_their_loss() -> None:
    assert main_metric("masked-lm") == "loss"
    assert main_metric("token-classification") == "macro_f1"
