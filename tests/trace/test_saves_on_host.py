"""Traces under `save_on_cpu`: what is sent to the host is what a real model's autograd saves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.program.fsdp_referee import config_of, point_of, source_of
from tests.trace.referee import real_batch
from tests.trace.tiny import SIZES, Case

from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.memory.replay import replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.environment import environment_of
from rigsize.run.job import options_of
from rigsize.spec import Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.model import build, forward_arguments, load_config
from rigsize.trace.profile import Profile
from rigsize.trace.session import Session

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""A CPU's dropout saves a float mask, a card's a boolean one."""
TASKS = {"xlm-roberta": "masked-lm", "llama": "causal-lm"}


def workload(family: str) -> Workload:
    return Workload(model="tiny", task=TASKS[family], max_length=SIZES["S"])


def config(family: str) -> dict[str, Any]:
    return config_of(family) | (NO_DROPOUT if family == "xlm-roberta" else {})


def profile(family: str, strategy: Strategy) -> Profile:
    source = replace(source_of(family), config=config(family))
    key = trace_key(source, workload(family), strategy, device="cuda")
    return Session(config(family), key, 128).profile([exact_label(point_of(key.task))])


def program(family: str, **more: Any) -> Program:
    strategy = Strategy(**{"micro_batch": SIZES["B"], "offload": "activations", **more})
    environment = environment_of(find_accelerator("A100-40GB"), strategy)
    point = point_of(TASKS[family])
    return build_program(profile(family, strategy), point, strategy, environment)


def really_saved(family: str, **more: Any) -> Counter[int]:
    """Sizes of all that the real model's nodes save in a forward pass on the CPU."""
    strategy = Strategy(**{"micro_batch": SIZES["B"], **more})
    options = options_of(workload(family), strategy)
    loaded = load_config(config(family), options)
    torch.manual_seed(0)
    model = build(loaded, options, "cpu")
    case = Case(family=family, task=TASKS[family], compute=strategy.policy.compute)
    batch = real_batch(case) | forward_arguments(loaded, options)
    found: Counter[int] = Counter()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.numel() * tensor.element_size()] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _held = model(**batch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TASKS))
def test_what_is_sent_is_what_autograd_saves(family: str) -> None:
    found = program(family, attention="eager").saved_on_host
    ours = Counter(found["save"]) + Counter(found["save_weight"])
    theirs = really_saved(family, attention="eager")
    assert ours == theirs, (ours - theirs, theirs - ours)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TASKS))
def test_nothing_that_was_saved_is_on_the_card_when_backward_begins(family: str) -> None:
    """Of activations only what is still named: the output, and what the step itself holds."""
    offloaded, kept = program(family), program(family, offload="none")
    assert backward_begins_with(offloaded) < 0.5 * backward_begins_with(kept)
    peaks = [replay_exact(p).allocated_peak_bytes for p in (offloaded, kept)]
    assert peaks[0] <= peaks[1]


def backward_begins_with(found: Program) -> int:
    """Bytes of the micro-step alive where its backward begins."""
    starts = {phase: index for index, phase in found.phase_starts["micro"]}
    sizes = found.timeline.sizes
    return sum(
        sizes[o] if o >= 0 else -sizes[~o] for o in found.slices["micro"][: starts["backward"]]
    )


@pytest.mark.slow
def test_recomputed_blocks_save_in_their_own_way() -> None:
    """Inside a checkpoint its own hooks are innermost: only what is outside is sent."""
    plain = program("xlm-roberta").saved_on_host
    blocks = program("xlm-roberta", recompute="block").saved_on_host
    assert sum(blocks["save"]) < sum(plain["save"])
    assert len(blocks["save_weight"]) < len(plain["save_weight"])
