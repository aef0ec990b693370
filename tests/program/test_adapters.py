"""Steps of adapted models: phase by phase beside the real peft model and the real optimizer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.program.phases import Phase, mark, program_of, program_phases, real_phases
from tests.trace.referee import real_batch
from tests.trace.tiny import CONFIGS, Case

from rigsize.errors import UnsupportedCombination
from rigsize.program.mesh import ALONE
from rigsize.program.rank_allocator import RankAllocator
from rigsize.program.timeline import Parameter, Place, Timeline
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.rank_allocation import rank_allocation
from rigsize.run.step import StepRecipe, train_step
from rigsize.spec import Strategy
from rigsize.spec.adapter import adapter_of
from rigsize.trace.model import build, forward_arguments, load_config

STEPS = 3


def real_run(case: Case, strategy: Strategy) -> list[Phase]:
    """Whole steps of a real adapted model on the CPU."""
    options = case.options()
    config = load_config(CONFIGS[case.family], options)
    batch = real_batch(case) | forward_arguments(config, options)
    recipe = StepRecipe(task=case.task, device_type="cpu", hold_output=case.hold_output)

    def run() -> Any:
        mark("load")
        model = build(config, options, "cpu")
        for module in model.modules():
            if hasattr(module, "warn_if_padding_and_no_attention_mask"):
                module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        optimizer = make_torch_optimizer(iter(named), strategy)
        for number in range(STEPS):
            after = rank_allocation(model, number + 1)
            train_step(
                model, [batch], optimizer, recipe, shares=[1.0], phase=mark, after_step=after
            )
        mark("end")
        return model, optimizer

    held: list[Any] = []
    return real_phases(case, lambda: held.append(run()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "method", "optimizer"),
    [
        ("llama", "causal-lm", "lora", "adamw-foreach"),
        ("llama", "causal-lm", "adalora", "adamw-foreach"),
        ("llama", "causal-lm", "prompt", "adamw-fused"),
        ("xlm-roberta", "sequence-classification", "dora", "adamw-foreach"),
        ("gpt2", "causal-lm", "ia3", "sgd-momentum"),
    ],
)
def test_every_phase_beside_the_real_thing(
    family: str, task: str, method: str, optimizer: str
) -> None:
    strategy = Strategy(method=method, lora_rank=6, virtual_tokens=7, optimizer=optimizer)
    case = Case(family=family, task=task, adapter=adapter_of(strategy))
    real = [p for p in real_run(case, strategy) if p.name != "load"]
    ours = [p for p in program_phases(program_of(case, strategy, ALONE), STEPS) if p.name != "load"]
    assert real == ours


def test_importance_is_kept_thrice() -> None:
    timeline, where = Timeline(), Place("weights.adapters", "load")
    shapes = {"E": (6, 1), "A": (6, 32), "B": (48, 6)}
    parameters = [
        Parameter(f"q.lora_{name}.default", shape, 4, True, timeline.alloc(1, where))
        for name, shape in shapes.items()
    ]
    allocator = RankAllocator()
    for number in range(2):
        start = len(timeline.operations)
        allocator.update(timeline, parameters)
        alive = {o for o in timeline.operations if o >= 0} - {
            ~o for o in timeline.operations if o < 0
        }
        kept = sum(timeline.sizes[s] for s in alive if timeline.places[s].category[:3] == "opt")
        # 6 + 192 + 288 weights of 4 bytes, three figures each.
        assert kept == 3 * 4 * (6 + 192 + 288)
        assert len(alive) == 3 + 9
        again = timeline.operations[start:]
        births = {operation for operation in again if operation >= 0}
        deaths = {~operation for operation in again if operation < 0}
        assert births
        born = {storage for three in allocator.kept.values() for storage in three}
        assert births - deaths == (set() if number else born)


@pytest.mark.parametrize("given", [{"parallel": "fsdp"}, {"parallel": "zero2"}])
def test_adalora_over_shards_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCombination, match="whole matrices") as raised:
        Strategy(method="adalora", **given)
    assert raised.value.nearest == "lora"
