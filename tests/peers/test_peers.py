"""Other estimators' figures: their own code as referee, and arithmetic by hand."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from tests.report import hand_made

from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.peers import TERMS, accelerate, ask, deepspeed, models, ours, rules
from rigsize.peers.answer import PeerAnswer
from rigsize.spec import Cluster, Strategy, Workload

WEIGHTS = 4 * hand_made.PARAMETERS


def answered(
    monkeypatch: pytest.MonkeyPatch, *, use: str = "fine-tuning", per_node: int = 1, **how: Any
) -> Estimate:
    """A hand-made model's estimate."""
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)
    workload = Workload(
        model="xlm-roberta-base", task="sequence-classification", use=use, max_length=128
    )
    return estimate(
        resolve_model("xlm-roberta-base", allow_network=False),
        workload,
        Strategy(micro_batch=8, **how),
        Cluster(accelerator=find_accelerator("A100-40GB"), per_node=per_node),
    )


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Estimate:
    return answered(monkeypatch)


def test_our_terms_sum_to_the_device_peak(tuned: Estimate) -> None:
    answer = ours.our_answer(tuned)
    assert sum(answer.terms.values()) == answer.total_bytes == tuned.memory.device_peak_bytes
    assert answer.terms["weights"] == WEIGHTS
    assert answer.terms["optimizer_states"] >= 2 * WEIGHTS
    assert set(answer.terms) <= set(TERMS)


def test_a_name_of_the_ledger_is_one_term() -> None:
    assert ours.term_of("weights.lm_head") == "weights"
    assert ours.term_of("activations.norms") == "activations"
    assert ours.term_of("inputs") == ours.term_of("buffers") == "other"


@pytest.mark.parametrize(
    ("use", "optimizer", "factor", "article"),
    [
        ("fine-tuning", "adamw-foreach", 4, 3),
        ("fine-tuning", "sgd-momentum", 3, 3),
        ("fine-tuning", "sgd", 2, 3),
        ("inference", "adamw-foreach", 1, 1),
    ],
)
def test_rules_of_thumb(
    use: str, optimizer: str, factor: int, article: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answered(monkeypatch, use=use, optimizer=optimizer)
    rule = rules.multiple_of_weights(found)
    assert rule.total_bytes == factor * WEIGHTS == sum(rule.terms.values())
    assert rule.name == f"x{factor} rule"
    assert rules.of_the_article(found).total_bytes == article * WEIGHTS


def test_what_is_left_out_is_what_this_run_takes_and_the_other_does_not_count(
    tuned: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = PeerAnswer(name="x", total_bytes=1, terms={"weights": 1}, lumped=("gradients",))
    silent = PeerAnswer(name="y", total_bytes=None, unknown_reason="not there")
    monkeypatch.setattr(ask, "PEERS", (lambda _: says, lambda _: silent))
    _, judged, unjudged = ask.ask_all(tuned)
    assert {"optimizer_states", "activations", "context"} <= set(judged.left_out)
    assert not {"weights", "gradients", "communication"} & set(judged.left_out)
    assert unjudged == silent


def test_a_package_that_is_not_there_is_one_line(
    tuned: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name in ("accelerate", "deepspeed") else there(name)

    monkeypatch.setattr("importlib.util.find_spec", find)
    for answer in (accelerate.ask(tuned), deepspeed.ask_zero2(tuned), deepspeed.ask_zero3(tuned)):
        assert answer.total_bytes is None
        assert "pip install" in answer.unknown_reason
        assert "\n" not in answer.unknown_reason


def test_precisions_have_a_row_of_accelerates_table() -> None:
    assert [accelerate.dtype_of(p) for p in ("fp32", "tf32", "amp-bf16", "fp16", "int8", "int4")] \
        == ["float32", "float32", "float16", "float16", "int8", "int4"]  # fmt: skip


@pytest.mark.slow
def test_accelerate_says_what_its_own_command_says(
    tuned: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import estimate as command

    model = models.build_on_meta(tuned, "embedding")
    monkeypatch.setattr(command, "create_empty_model", lambda *a, **k: model)
    arguments = command.estimate_command_parser().parse_args(["x", "--dtypes", "float32"])
    ((_, largest, total, usage),) = command.gather_data(arguments)
    answer = accelerate.ask(tuned)
    assert answer.total_bytes == max(usage.values())
    assert answer.terms["weights"] == total
    assert f"{largest:,}" in answer.note
    # XLM-R Base without a head: 277,453,056 with its pooler, buffers of position and type ids
    assert total // 4 == pytest.approx(278_045_955, rel=0.003)


@pytest.mark.slow
def test_shared_parameters_count_once_and_the_largest_layer_is_the_head(
    tuned: Estimate,
) -> None:
    sizes = models.sizes_of(models.build_on_meta(tuned, "masked-lm"))
    # 278,295,186 with the tied head, whose module holds 250,002 rows of 768 and a bias
    assert sizes == (278_295_186, 250_002 * 768 + 250_002)


def _zero(stage: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for DeepSpeed that keeps what it is asked."""
    asked: dict[str, Any] = {}

    def function(**arguments: Any) -> tuple[int, ...]:
        asked.update(arguments)
        print("a greeting")
        return (11, 7, 3)[:stage]

    package = ModuleType("deepspeed")
    package.__version__ = "0.19.8"  # type: ignore[attr-defined]
    name = f"deepspeed.runtime.zero.{'stage_1_and_2' if stage == 2 else 'stage3'}"
    module = ModuleType(name)
    setattr(module, f"estimate_zero{stage}_model_states_mem_needs", function)
    for path in ("deepspeed.runtime", "deepspeed.runtime.zero"):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    monkeypatch.setitem(sys.modules, "deepspeed", package)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(deepspeed, "how_to_install", lambda _: "")
    monkeypatch.setattr(deepspeed, "build_on_meta", lambda *_: None)
    monkeypatch.setattr(deepspeed, "sizes_of", lambda _: models.Sizes(100, 40))
    return asked


def test_zero2_is_asked_for_this_run(tuned: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _zero(2, monkeypatch)
    answer = deepspeed.ask_zero2(tuned)
    assert asked == {
        "total_params": 100, "num_gpus_per_node": 1, "num_nodes": 1, "cpu_offload": False
    }  # fmt: skip
    assert (answer.host_bytes, answer.total_bytes) == (11, 7)
    assert answer.version == "of DeepSpeed 0.19.8"


def test_zero3_is_asked_for_this_run(tuned: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _zero(3, monkeypatch)
    answer = deepspeed.ask_zero3(tuned)
    assert asked["largest_layer_params"] == 40
    assert (asked["cpu_offload"], asked["cpu_offload_params"]) == (False, False)
    assert "had it run so" in answer.note


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is an extra")
@pytest.mark.slow
def test_deepspeeds_own_code(tuned: Estimate) -> None:
    answer = deepspeed.ask_zero2(tuned)
    # 2 + 18 bytes a parameter on one device, of XLM-R Base with three classes
    assert answer.total_bytes == 20 * 278_045_955


def test_inference_is_not_what_deepspeed_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered(monkeypatch, use="inference")
    assert "training alone" in deepspeed.ask_zero3(found).unknown_reason
