"""Adapted models: the trace is what the allocator did, the tiled profile what the whole model is.

Real peft on both sides. Referees: torch.profiler's allocator events of a real CPU step, a trace of
every layer, and the real PeftModel on the meta device.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiers import thinned
from tests.trace.referee import compare, profiled, traced
from tests.trace.test_profile import deep
from tests.trace.tiny import CONFIGS, Case
from validation.check_profiles import depth_difference, gradient_difference

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.models import resolve_model
from rigsize.spec.adapter import _SAME_LAYERS, Adapter, targets_like
from rigsize.trace.adapters import adapt
from rigsize.trace.capture import named_parameters
from rigsize.trace.model import build, build_base, load_config
from rigsize.trace.profile import TraceKey
from rigsize.trace.session import Session

LORA = Adapter(method="lora", rank=4)
METHODS = {
    "lora": LORA,
    "lora-dropout": replace(LORA, dropout=0.1),
    "lora-same": replace(LORA, dtype="same"),
    "lora-named": replace(LORA, targets=("q_proj", "v_proj")),
    "dora": replace(LORA, method="dora"),
    "adalora": Adapter(method="adalora", rank=6),
    "ia3": Adapter(method="ia3"),
    "prefix": Adapter(method="prefix", virtual_tokens=7),
    "prompt": Adapter(method="prompt", virtual_tokens=7),
}

EACH = tuple(name for name in METHODS if name != "lora-named")


def case(family: str, task: str, method: str, compute: str = "half", **more: Any) -> Case:
    return Case(family=family, task=task, compute=compute, adapter=METHODS[method], **more)


QUICK = [
    case("llama", "causal-lm", "lora"),
    case("llama", "causal-lm", "adalora", "fp32"),
    case("xlm-roberta", "sequence-classification", "dora"),
    case("gpt2", "causal-lm", "prefix", "fp32"),
]
SLOW = [
    *(case("llama", "causal-lm", m, c) for m in EACH for c in ("fp32", "amp", "half")),
    *(case("xlm-roberta", "sequence-classification", m) for m in ("lora", "prefix", "prompt")),
    case("bert", "token-classification", "lora", "amp"),
    case("bert", "token-classification", "prefix"),
    case("gpt2", "causal-lm", "lora", "amp"),
    case("gpt2", "causal-lm", "dora", "fp32"),
    case("deberta-v2", "sequence-classification", "ia3", "fp32"),
    case("xlm-roberta", "masked-lm", "lora", "amp", loss="masked", unpadded=True),
    case("xlm-roberta", "embedding", "lora"),
    case("llama", "sequence-classification", "prompt"),
    case("t5", "seq2seq-lm", "lora"),
    case("t5", "seq2seq-lm", "prefix", "fp32"),
    case("t5", "seq2seq-lm", "prompt", "fp32", padded=False),
    case("mixtral", "causal-lm", "lora-named"),
    *(case("llama", "causal-lm", m, recompute="block") for m in ("lora", "dora", "prompt")),
    *(case("llama", "causal-lm", m, training=False) for m in ("dora", "prefix", "prompt")),
]


@pytest.mark.parametrize("step", QUICK, ids=str)
def test_the_trace_is_what_the_allocator_did(step: Case) -> None:
    found = compare(traced(step), profiled(step))
    assert not str(found), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("step", thinned([c for c in SLOW if c not in QUICK], every=2), ids=str)
def test_every_method(step: Case) -> None:
    found = compare(traced(step), profiled(step))
    assert not str(found), str(found)


# Depth.


def key_of(step: Case) -> TraceKey:
    assert step.adapter is not None
    return TraceKey(
        config_digest="0123456789abcdef",
        task=step.task,
        use="training",
        compute=step.compute,
        attention="sdpa",
        padded=step.padded,
        recompute=step.recompute,
        device="accelerator",
        num_labels=3,
        hold_output=True,
        loss=step.loss,
        adapter=step.adapter.text(),
    )


def tiled_and_whole(step: Case) -> str:
    """The first difference between the profile, tiled, and a trace of all layers."""
    session = Session(deep(step.family, 8), key_of(step), 131)
    profile = session.profile(["bN.s8.0"])
    point = {"B": 2, "S": 40, "T": 24}
    body = profile.body_at(point)
    assert body is not None
    trace = session.record(point, full_depth=True)
    return gradient_difference(profile) or depth_difference(profile, body, trace, point)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        *(case("llama", "causal-lm", m) for m in ("dora", "adalora", "prefix", "prompt")),
        case("xlm-roberta", "sequence-classification", "lora", recompute="block"),
        case("gpt2", "causal-lm", "ia3", "amp"),
    ],
    ids=str,
)
def test_what_is_tiled_is_what_every_layer_does(step: Case) -> None:
    assert tiled_and_whole(step) == ""


# Counts: every parameter of the real PeftModel at full depth, on the meta device.

MODELS = {
    "FacebookAI/xlm-roberta-base": ("sequence-classification", ("lora", "dora", "prefix")),
    "FacebookAI/xlm-roberta-large": ("masked-lm", ("lora",)),
    "meta-llama/Meta-Llama-3.1-8B": ("causal-lm", ("lora", "dora", "adalora", "ia3", "prompt")),
    "Qwen/Qwen2.5-7B": ("causal-lm", ("lora-same", "ia3")),
    "google-bert/bert-base-uncased": ("token-classification", ("lora", "ia3")),
    "openai-community/gpt2": ("causal-lm", ("lora", "adalora", "prefix")),
}
COUNTED = [(model, task, m) for model, (task, methods) in MODELS.items() for m in methods]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task", "method"), COUNTED)
def test_counts_are_those_of_the_real_model(model: str, task: str, method: str) -> None:
    source = resolve_model(model)
    key = replace(key_of(case("llama", task, method)), config_digest=source.digest)
    session = Session(source.config, key)
    told = [
        (name, tensor.shape, tensor.itemsize, tensor.trainable)
        for name, tensor, _ in session.outline([{"B": 2, "S": 8}]).full_tensors()
        if not name.startswith(("buffer:", "input:"))
    ]
    real = [
        (name, tuple(p.shape), p.itemsize, p.requires_grad)
        for name, p in named_parameters(
            build(load_config(source.config, session.options), session.options)
        )
    ]
    assert sorted(told) == sorted(real)
    assert any(trained for *_, trained in told)


def test_a_trained_head_is_there_twice() -> None:
    step = case("xlm-roberta", "sequence-classification", "lora", "fp32")
    config = load_config(CONFIGS["xlm-roberta"], step.options())
    sizes = {True: 0, False: 0}
    for name, parameter in build(config, step.options()).named_parameters():
        if ".classifier." in name:
            sizes[parameter.requires_grad] += parameter.numel()
    assert sizes == dict.fromkeys((True, False), 96 * 96 + 96 + 96 * 3 + 3)


# Refusals.


def base_of(family: str, task: str) -> torch.nn.Module:
    options = replace(case(family, task, "lora").options(), adapter=None)
    built: torch.nn.Module = build_base(load_config(CONFIGS[family], options), options)
    return built


def trained_in(adapted: torch.nn.Module) -> int:
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_an_architecture_that_peft_does_not_know_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = base_of("xlm-roberta", "masked-lm")
    monkeypatch.setattr(type(base.config), "model_type", "new")
    with pytest.raises(UnsupportedCombination, match="target_modules") as caught:
        adapt(base, METHODS["ia3"], "masked-lm")
    assert "--lora-targets names the modules to adapt, comma separated: of decoder, dense, key" in (
        str(caught.value)
    )
    named = replace(METHODS["ia3"], targets=("key", "value"))
    assert trained_in(adapt(base, named, "masked-lm")) == 2 * 2 * 96  # layers, modules, width


@pytest.mark.parametrize("method", ["ia3", "adalora", "lora"])
def test_defaults_are_those_of_an_architecture_with_the_same_modules(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("xlm-roberta", "sequence-classification")
    ours = adapt(copy.deepcopy(base), METHODS[method], "sequence-classification")
    monkeypatch.setattr(type(base.config), "model_type", "roberta")
    theirs = adapt(base, METHODS[method], "sequence-classification")
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()]
    assert trained_in(ours) == trained_in(theirs) > 0


def test_what_peft_has_no_targets_for_is_what_we_say() -> None:
    constants = importlib.import_module("peft.utils.constants")
    for method in ("lora", "adalora", "ia3"):
        mapping = getattr(
            constants, f"TRANSFORMERS_MODELS_TO_{method.upper()}_TARGET_MODULES_MAPPING"
        )
        for model_type in _SAME_LAYERS:
            like = targets_like(method, model_type)
            assert (like is None) == (model_type in mapping)
            assert like is None or like in mapping


@pytest.mark.parametrize("targets", [("query", "foo"), ("foo",)])
def test_a_target_that_no_module_has_is_refused(targets: tuple[str, ...]) -> None:
    base = base_of("xlm-roberta", "masked-lm")
    with pytest.raises(SpecError, match="no module of XLMRobertaForMaskedLM") as caught:
        adapt(base, replace(METHODS["lora"], targets=targets), "masked-lm")
    assert caught.value.value == "foo"
    assert {"query", "value", "dense", "all-linear"} <= set(caught.value.allowed)


def test_all_linear_is_pefts_own_choice() -> None:
    named = ("query", "key", "value", "dense")
    chosen = replace(METHODS["lora"], targets=("all-linear",))
    ours = adapt(base_of("xlm-roberta", "embedding"), chosen, "embedding")
    theirs = adapt(
        base_of("xlm-roberta", "embedding"), replace(METHODS["lora"], targets=named), "embedding"
    )
    assert trained_in(ours) == trained_in(theirs) > 0


def test_rank_numbers_are_no_weights() -> None:
    step = case("llama", "causal-lm", "adalora", "half")
    model = build(load_config(CONFIGS["llama"], step.options()), step.options())
    numbers = [p for name, p in model.named_parameters() if ".ranknum." in name]
    assert len(numbers) == 4
    assert not any(p.requires_grad for p in numbers)
    assert all(isinstance(p, torch.nn.Parameter) for p in numbers)
