"""An optimizer in backward: by hand, and phase by phase beside the real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.program import tiny_profile as tiny
from tests.program.phases import Phase, mark, program_of, program_phases, real_phases
from tests.trace.referee import real_batch
from tests.trace.tiny import CONFIGS, Case

from rigsize.errors import UnsupportedCombination
from rigsize.memory.replay import replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.mesh import ALONE
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.step import StepRecipe, train_step
from rigsize.spec import Strategy
from rigsize.trace.model import build, forward_arguments, load_config

STEPS = 3


def strategy_of(optimizer: str = "adamw-fused", **given: Any) -> Strategy:
    return Strategy(optimizer=optimizer, optimizer_in_backward=True, max_grad_norm=None, **given)


def built(strategy: Strategy) -> Program:
    return build_program(tiny.profile(), tiny.POINT, strategy, tiny.CPU)


def test_no_two_gradients_are_alive_at_once() -> None:
    program = built(strategy_of("sgd"))
    timeline, alive, most = program.timeline, set[int](), 0
    gradients = {n for n, place in enumerate(timeline.places) if place.category == "gradients"}
    assert len(gradients) == len(program.parameters)
    for operation in program.slices["micro"]:
        if operation in gradients:
            alive.add(operation)
        elif ~operation in gradients:
            alive.discard(~operation)
        most = max(most, len(alive))
    # A layer's bias and weight are made by one operator each, the first waits for the second.
    assert most <= 2
    assert not alive
    assert program.slices["optimizer"] == program.slices["optimizer_first"] == []


def test_states_are_born_in_the_first_backward_alone() -> None:
    program = built(strategy_of())
    states = {n for n, p in enumerate(program.timeline.places) if p.category == "optimizer_states"}
    assert sum(program.timeline.sizes[n] for n in states) == 8 * tiny.PARAMETERS + 8 * 4
    assert states <= set(program.slices["first"])
    assert not states & {max(o, ~o) for o in program.slices["micro"]}


def test_a_step_ends_as_it_began() -> None:
    for name in ("adamw-foreach", "adamw-loop", "adafactor-hf", "adamw-8bit", "muon"):
        program = built(strategy_of(name))
        births = {o for o in program.slices["micro"] if o >= 0}
        deaths = {~o for o in program.slices["micro"] if o < 0}
        assert births == deaths, name


def test_it_needs_less_than_a_step_behind_backward() -> None:
    for name in ("adamw-foreach", "adamw-fused", "sgd"):
        inside = replay_exact(built(strategy_of(name))).allocated_peak_bytes
        behind = replay_exact(
            built(Strategy(optimizer=name, max_grad_norm=None))
        ).allocated_peak_bytes
        assert inside < behind, name


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"accumulation": 2}, "--grad-accum 1"),
        ({"parallel": "ddp"}, "one GPU"),
        ({"parallel": "fsdp"}, "one GPU"),
        ({"precision": "amp-fp16"}, "amp-bf16"),
        ({"precision": "fp16-master"}, "amp-bf16"),
        ({"max_grad_norm": 1.0}, "--max-grad-norm 0"),
    ],
)
def test_what_needs_all_gradients_is_refused(given: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnsupportedCombination) as raised:
        Strategy(**({"optimizer_in_backward": True, "max_grad_norm": None} | given))
    assert raised.value.nearest == nearest


def real_run(case: Case, strategy: Strategy) -> list[Phase]:
    """Steps of a real model, each of whose parameters has an optimizer in a hook."""
    options = case.options()
    config = load_config(CONFIGS[case.family], options)
    batch = real_batch(case) | forward_arguments(config, options)
    recipe = StepRecipe(
        task=case.task, device_type="cpu", hold_output=case.hold_output, max_grad_norm=None
    )

    def run() -> Any:
        mark("load")
        model = build(config, options, "cpu")
        for module in model.modules():
            if hasattr(module, "warn_if_padding_and_no_attention_mask"):
                module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
        optimizer = make_torch_optimizer(model.named_parameters(), strategy)
        for _ in range(STEPS):
            train_step(model, [batch], optimizer, recipe, shares=[1.0], phase=mark)
        mark("end")
        return model, optimizer

    held: list[Any] = []
    return real_phases(case, lambda: held.append(run()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "optimizer"),
    [
        ("xlm-roberta", "masked-lm", "adamw-fused"),
        ("xlm-roberta", "sequence-classification", "adamw-foreach"),
        ("llama", "causal-lm", "adafactor"),
    ],
)
def test_every_phase_beside_the_real_thing(family: str, task: str, optimizer: str) -> None:
    case, strategy = Case(family=family, task=task), strategy_of(optimizer)
    real = real_run(case, strategy)
    ours = program_phases(program_of(case, strategy, ALONE), STEPS)
    assert [p for p in real if p.name != "load"] == [p for p in ours if p.name != "load"]
    assert real[0].end_bytes == ours[0].end_bytes


def test_learning_rates_and_states_go_through_one_optimizer() -> None:
    """What a scheduler sets reaches every part, and what was saved comes back whole."""

    def fresh(seed: int, lr: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(8, 600), torch.nn.Linear(600, 2))
        return model, make_torch_optimizer(model.named_parameters(), strategy_of(), lr=lr)

    def losses(model: torch.nn.Module, count: int) -> list[float]:
        found = []
        for number in range(count):
            loss = model(torch.full((3, 8), 1.0 + number)).square().mean()
            loss.backward()
            found.append(float(loss.detach()))
        return found

    model, optimizer = fresh(0, 1e-2)
    losses(model, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    saved = {k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()
    states = {i: {k: v.clone() for k, v in s.items()} for i, s in saved[1]["state"].items()}
    expected = losses(model, 3)

    model, optimizer = fresh(1, 0.5)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict({**saved[1], "state": states})
    assert losses(model, 3) == expected
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = [parameter.clone() for parameter in model.parameters()]
    losses(model, 1)
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
