from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.run.test_measure import BART, ENCODER, LLAMA, a_source, job

from rigsize.errors import SpecError
from rigsize.run.feeds import Feed, make_feed
from rigsize.run.job import Job, MeasureOptions, build_options
from rigsize.run.synthetic import SyntheticTexts
from rigsize.spec import Strategy, Workload
from rigsize.texts.stats import LengthHistogram
from rigsize.trace.model import load_config
from rigsize.train.parallel import World

HISTOGRAM = LengthHistogram(((4, 20), (7, 11), (16, 1)))
ALONE = World(device=torch.device("cpu"))


def feed(config: dict[str, Any], workload: Workload, steps: int = 4, **strategy: Any) -> Feed:
    asked = Job(
        source=a_source(config),
        workload=workload,
        strategy=Strategy(**({"micro_batch": 4} | strategy)),
        device="cpu",
        steps=steps,
        seed=0,
        options=MeasureOptions(histogram=HISTOGRAM, histogram_source="h.json"),
    )
    return make_feed(asked, load_config(config, build_options(asked)), ALONE)


def test_the_worst_window_of_the_epoch_comes_second() -> None:
    # 32 texts in 8 windows of 4; a single one has 16 tokens: 4 x 16 positions.
    found = feed(ENCODER, job("masked-lm", padding="dynamic"))
    assert len(found.windows) == 4
    (worst,) = found.step(1)
    assert worst.sizes == found.largest
    assert (worst.sizes.B, worst.sizes.S) == (4, 16)
    assert found.texts.texts == 32
    assert found.texts.mean_length == (4 * 20 + 7 * 11 + 16) / 32
    assert "4 x 16 positions" in found.texts.worst
    assert found.examples == 32


def test_unpadded_windows_hold_the_texts_alone() -> None:
    found = feed(ENCODER, job("masked-lm", padding="unpadded"), loss="masked", accumulation=2)
    for window in found.windows:
        assert len(window) == 2
        for batch in window:
            assert batch.sizes.N == batch.sizes.real_tokens == batch.inputs["input_ids"].numel()
            assert len(batch.inputs["positions"]) == batch.sizes.M


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (ENCODER, "sequence-classification"),
        (ENCODER, "token-classification"),
        (ENCODER, "embedding"),
        (BART, "seq2seq-lm"),
        (LLAMA, "causal-lm"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_task_has_its_labels_and_none_for_inference(
    config: dict[str, Any], task: str
) -> None:
    assert "labels" in feed(config, job(task)).windows[0][0].inputs
    inputs = feed(config, job(task, "inference")).windows[0][0].inputs
    assert "labels" not in inputs
    assert ("decoder_input_ids" in inputs) == (task == "seq2seq-lm")


def test_synthetic_texts_repeat_and_avoid_special_ids() -> None:
    config = load_config(ENCODER, build_options(_plain()))
    texts = SyntheticTexts(HISTOGRAM, job("masked-lm"), config, seed=3, least=2)
    again = SyntheticTexts(HISTOGRAM, job("masked-lm"), config, seed=3, least=2)
    for number in (0, 21, 31):
        ids = texts.example(number).input_ids
        assert ids.tolist() == again.example(number).input_ids.tolist()
        assert ids[-1] == 2
        assert not {0, 1, 2} & set(ids[:-1].tolist())
    assert len(texts) == 32


def test_texts_longer_than_the_limit_are_cut_and_short_ones_left_out() -> None:
    config = load_config(ENCODER, build_options(_plain()))
    workload = Workload(model="tiny", task="causal-lm", max_length=5)
    texts = SyntheticTexts(LengthHistogram(((1, 9), (9, 2))), workload, config, seed=0, least=2)
    assert texts.lengths.tolist() == [5, 5]
    with pytest.raises(SpecError, match="no text has 2 tokens"):
        SyntheticTexts(LengthHistogram(((1, 9),)), workload, config, seed=0, least=2)


def test_a_histogram_of_more_texts_than_fit_is_drawn_from() -> None:
    config = load_config(ENCODER, build_options(_plain()))
    many = LengthHistogram(((3, 10**9), (6, 10**9)))
    texts = SyntheticTexts(many, job("masked-lm"), config, seed=0, least=2)
    assert len(texts) == 1_000_000
    assert float(texts.lengths.mean()) == pytest.approx(4.5, abs=0.02)


def _plain() -> Job:
    return Job(
        source=a_source(ENCODER),
        workload=job("masked-lm"),
        strategy=Strategy(),
        device="cpu",
        steps=3,
        seed=0,
    )
