"""Random states come back from JSON as they were."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from rigsize.train.checkpoint_random import capture, restore


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.standard_normal()),  # the legacy generator is what is saved
        float(torch.rand(1)),
        float(torch.randn(1)),
    ]


def test_all_generators_continue() -> None:
    draws()  # an odd number of gauss() calls leaves a second value waiting in Python and NumPy
    document = json.loads(json.dumps(capture()))
    expected = draws() + draws()
    draws()
    restore(document)
    assert draws() + draws() == expected
