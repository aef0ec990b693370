"""A spec file reads back as the plan it was written from, for `estimate` and for `train`."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rigsize.cli_common import settings_of
from rigsize.cli_job import parse_job, parse_target
from rigsize.emit import spec_toml
from rigsize.errors import SizingError, SpecError
from rigsize.hardware import parse_gpus
from rigsize.spec import OPTIMIZERS, POLICIES, Cluster, Strategy, Workload
from rigsize.spec.optimizers import OPTIMIZER_ALIASES
from rigsize.spec.strategy import (
    ATTENTIONS,
    LOSSES,
    METHODS,
    OFFLOADS,
    PARALLELS,
    QUANTIZATIONS,
)

MODEL = "xlm-roberta-base"
CARD = parse_gpus("H100").accelerator
CLUSTER = Cluster(
    accelerator=CARD,
    per_node=8,
    nodes=2,
    host_memory_bytes=2**40 + 1,
    network_bytes_per_s=400e9 / 8,
)


def read_back(text: str, verb: str) -> tuple[Workload, Strategy, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rigsize.toml"
        file.write_text(text, encoding="utf-8")
        found = settings_of(verb, {"spec": str(file), "offline": True})
    job = parse_job(found, verb)
    assert not job.auto_batch
    return job.workload, job.strategy, found.warnings


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Any that the record itself accepts."""
    numbers = st.integers(1, 4096)
    fields: dict[str, Any] = {
        "precision": draw(st.sampled_from([p for p in POLICIES if POLICIES[p].training])),
        "optimizer": draw(st.sampled_from(OPTIMIZERS)),
        "micro_batch": draw(numbers),
        "accumulation": draw(numbers),
        "recompute": draw(st.sampled_from(("none", "block", "selective", "every-2", "every-7"))),
        "attention": draw(st.sampled_from(ATTENTIONS)),
        "hold_output": draw(st.booleans()),
        "max_grad_norm": draw(st.none() | st.floats(1e-6, 1e6)),
        "loss": draw(st.sampled_from(LOSSES)),
        "tokens_per_batch": draw(st.none() | st.integers(4096, 10**6)),
        "parallel": draw(st.sampled_from(PARALLELS)),
        "shard_size": draw(st.none() | st.sampled_from((2, 4, 8))),
        "reshard_after_forward": draw(st.booleans()),
        "bucket_view": draw(st.booleans()),
        "offload": draw(st.sampled_from(OFFLOADS)),
        "method": draw(st.sampled_from(METHODS)),
        "lora_rank": draw(numbers),
        "rslora": draw(st.booleans()),
        "lora_dropout": draw(st.sampled_from((0.0, 0.05, 1 / 3))),
        "lora_targets": draw(st.none() | st.sampled_from(("query,value", 'a"b\\c', "q\x7f\u00e9"))),
        "adapter_dtype": draw(st.sampled_from(("fp32", "same"))),
        "virtual_tokens": draw(numbers),
        "quantization": draw(st.sampled_from(QUANTIZATIONS)),
        "optimizer_in_backward": draw(st.booleans()),
        "compile": draw(st.booleans()),
    }
    try:
        return Strategy(**fields)
    except SizingError:
        # Fewer surprises at once: each field alone beside the defaults is accepted more often.
        kept = draw(st.sets(st.sampled_from(sorted(fields)), max_size=6))
        try:
            return Strategy(**{name: fields[name] for name in kept})
        except SizingError:
            assume(False)
            raise AssertionError from None


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    padding = draw(st.sampled_from(("fixed", "dynamic", "unpadded")))
    return Workload(
        model=MODEL,
        task=draw(
            st.sampled_from(("masked-lm", "sequence-classification", "token-classification"))
        ),
        use=draw(st.sampled_from(("fine-tuning", "pre-training"))),
        max_length=draw(st.integers(8, 512)),
        num_labels=draw(st.integers(1, 99)),
        padding=padding,
        padding_in_batch=padding != "unpadded" and draw(st.booleans()),
        mask_share=draw(st.sampled_from((0.15, 0.3, 1 / 7))),
        examples=draw(st.none() | st.integers(1, 10**12)),
        epochs=draw(st.integers(1, 100)),
    )


@settings(max_examples=200, deadline=None)
@given(workload=workloads(), strategy=strategies())
def test_training_plans_read_back(workload: Workload, strategy: Strategy) -> None:
    text = spec_toml(workload, strategy, CLUSTER)
    for verb in ("estimate", "train", "measure"):
        found_workload, found_strategy, _ = read_back(text, verb)
        assert found_workload == workload
        assert found_strategy == strategy


@settings(max_examples=60, deadline=None)
@given(
    precision=st.sampled_from(sorted(POLICIES)),
    attention=st.sampled_from(ATTENTIONS),
    micro=st.integers(1, 512),
    prompt=st.integers(1, 400),
    new=st.integers(1, 100),
    writes=st.booleans(),
)
def test_inference_plans_read_back(
    precision: str, attention: str, micro: int, prompt: int, new: int, writes: bool
) -> None:
    lengths: dict[str, Any] = {"prompt_length": prompt, "max_new_tokens": new} if writes else {}
    workload = Workload(
        model="gpt2", task="causal-lm", use="inference", max_length=prompt, **lengths
    )
    strategy = Strategy(precision=precision, attention=attention, micro_batch=micro)
    text = spec_toml(workload, strategy, Cluster(accelerator=CARD))
    assert read_back(text, "estimate") == (workload, strategy, [])


def test_a_plain_plan_warns_of_nothing_and_keeps_its_cluster(tmp_path: Path) -> None:
    workload = Workload(model=MODEL, task="masked-lm", max_length=128)
    text = spec_toml(workload, Strategy(parallel="ddp"), CLUSTER)
    assert read_back(text, "train")[2] == []
    (tmp_path / "spec.toml").write_text(text)
    target = parse_target(settings_of("estimate", {"spec": str(tmp_path / "spec.toml")}))
    assert target.cluster == CLUSTER


def test_a_run_says_that_it_is_on_this_machine(tmp_path: Path) -> None:
    text = spec_toml(Workload(model=MODEL, task="masked-lm", max_length=8), Strategy(), CLUSTER)
    (tmp_path / "s.toml").write_text(text)
    found = settings_of("train", {"spec": str(tmp_path / "s.toml")})
    assert "gpus" not in found.given
    assert any("made for gpus H100-80GB-SXM:8x2" in line for line in found.assumed)


def test_other_unknown_keys_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('headrom = "1GiB"\n')
    with pytest.raises(SpecError, match="unknown key"):
        settings_of("train", {"spec": str(tmp_path / "s.toml")})


def test_names_are_toml_strings() -> None:
    name = 'a"\\\x7f\u00e9\n\U0001f600'
    text = spec_toml(Workload(model=name, task="masked-lm", max_length=8), Strategy(), CLUSTER)
    assert tomllib.loads(text)["model"] == name


def test_aliases_are_not_written() -> None:
    assert not set(OPTIMIZER_ALIASES) & set(OPTIMIZERS)
