"""The host's ledger beside real processes on this CPU: resident sets while loading and stepping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.memory.host_child import BATCH, LENGTH

from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.models import resolve_model
from rigsize.point import point_of
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.session import Session

BAND = 0.15
"""Of the resident set; malloc keeps pages that were freed, kernels have scratch of their own."""
CONFIG: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "vocab_size": 40_000,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
"""33 million parameters: 127 MiB of fp32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, weights included."""
    import transformers

    place = tmp_path_factory.mktemp("model")
    config = transformers.XLMRobertaConfig(**CONFIG)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(place)
    return place


def resident_peak(*arguments: str) -> int:
    child = Path(__file__).with_name("host_child.py")
    done = subprocess.run(
        [sys.executable, str(child), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def predicted(folder: Path, **more: Any) -> Estimate:
    source = resolve_model(str(folder))
    workload = Workload(model="m", task="masked-lm", max_length=LENGTH)
    strategy = Strategy(**{"micro_batch": BATCH, **more})
    key = trace_key(source, workload, strategy, device="cpu")
    profile = Session(source.config, key, 512).profile([exact_label(point_of(workload, strategy))])
    cluster = Cluster(accelerator=find_accelerator("cpu"))
    return estimate(source, workload, strategy, cluster, profile=profile)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw-fused"])
def test_a_step(folder: Path, optimizer: str) -> None:
    ours = dict(predicted(folder, optimizer=optimizer).host.moments)["a step"]
    theirs = resident_peak("step", str(folder), optimizer)
    print(f"{ours:,} against {theirs:,}: {ours / theirs - 1:+.1%}")
    assert abs(ours / theirs - 1) < BAND, f"{ours:,} against {theirs:,}: {ours / theirs - 1:+.1%}"


@pytest.mark.slow
def test_loading_into_another_dtype(folder: Path) -> None:
    ours = dict(predicted(folder, precision="bf16").host.moments)["loading"]
    theirs = resident_peak("load", str(folder))
    print(f"{ours:,} against {theirs:,}: {ours / theirs - 1:+.1%}")
    assert abs(ours / theirs - 1) < BAND, f"{ours:,} against {theirs:,}: {ours / theirs - 1:+.1%}"
