"""From settings to a job: what is said of settings without effect, and of names."""

import pytest

from rigsize.cli_job import Settings, parse_job
from rigsize.errors import SpecError

Given = dict[str, str | bool]
MODEL: Given = {"model": "xlm-roberta-base"}


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"task": "masked-lm", "num_labels": "5"}, "--num-labels has no effect on masked-lm"),
        (
            {"use": "inference", "hold_output": False},
            "--no-hold-output has no effect on inference",
        ),
        ({"rslora": True}, "--rslora has no effect on method full"),
        ({"lora_rank": "4", "method": "ia3"}, "--lora-rank has no effect on method ia3"),
        (
            {"method": "lora", "adapter_dtype": "same"},
            "--adapter-dtype has no effect on precision fp32",
        ),
    ],
)
def test_what_has_no_effect_is_said(given: Given, warning: str) -> None:
    settings = Settings(MODEL | given)
    parse_job(settings)
    assert [line[: len(warning)] for line in settings.warnings] == [warning]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_labels": "5"},
        {"use": "inference", "hold_output": True},
        {"method": "lora", "adapter_dtype": "same", "precision": "bf16", "rslora": True},
    ],
)
def test_what_has_an_effect_is_not(given: Given) -> None:
    settings = Settings(MODEL | given)
    parse_job(settings)
    assert not settings.warnings


@pytest.mark.parametrize("targets", ["", " , "])
def test_targets_that_name_nothing_are_refused(targets: str) -> None:
    with pytest.raises(SpecError, match="lora-targets: names no module"):
        parse_job(Settings(MODEL | {"method": "lora", "lora_targets": targets}))


def test_an_optimizer_that_is_nearly_adamw() -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(Settings(MODEL | {"optim": "adamx"}))
    assert caught.value.nearest == "adamw"
