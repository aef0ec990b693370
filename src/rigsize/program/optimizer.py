"""The optimizer phase of a step as events: states, master copies, temporaries, in real order.

The same phase runs for real in `rigsize.run` (`run/step.py` `train_step`, `run/optimizers.py`);
each implementation's own allocations are in `program/optimizer_steps.py`.

The recipe **fp16-master**: fp16 weights and gradients, one fp32 master copy a parameter, made once
before the first step. At the step each fp16 gradient is copied to the fp32 gradient of its master
(the fp16 one stays); unscaling, clipping and the optimizer work on the masters, with fp32 states;
the masters are copied back into the weights in place; `zero_grad` frees the fp32 gradients, then
the fp16 ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rigsize.program.clipping import LossScaler, clip_events, zero_grad_events
from rigsize.program.foreach import FP32_BYTES, Device, place
from rigsize.program.optimizer_muon import in_groups
from rigsize.program.optimizer_sizes import BLOCKWISE, is_blockwise, paged_sizes
from rigsize.program.optimizer_state import ColumnScratch, OptimizerState, Step
from rigsize.program.optimizer_steps import STEPS
from rigsize.program.rank_allocator import RankAllocator
from rigsize.program.timeline import Parameter, Timeline, trainable
from rigsize.spec.optimizers import muon_takes
from rigsize.spec.strategy import Strategy
from rigsize.spec.zero import ZEROS
from rigsize.units import format_bytes

__all__ = [
    "Optimizer",
    "OptimizerState",
    "make_optimizer",
    "optimizer_assumptions",
    "optimizer_phase",
]

MIN_OFFLOADED_NUMEL = 4096
"""Smaller tensors are stepped on where they are, to spare as many small copies: `minimal_size` of
torchao's `CPUOffloadOptimizer` (torchao/optim/cpu_offload.py)."""


@dataclass(slots=True, kw_only=True)
class Optimizer:
    """An optimizer on a timeline; it keeps the storage ids of its states between steps."""

    name: str
    """One of `spec.optimizers.OPTIMIZERS`."""
    has_masters: bool = False
    """Steps on fp32 master copies (the recipe fp16-master)."""
    offloaded: bool = False
    """Steps on host copies of all but small tensors (`run.optimizers.HostOptimizer`)."""
    rank_allocator: RankAllocator | None = None
    """AdaLoRA's, which follows each step."""
    column_scratch: ColumnScratch | None = None
    """What the card's kernels stage for a norm over rows (Adafactor); None leaves it out."""
    state: OptimizerState = field(default_factory=OptimizerState)

    def on_device(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Those that are stepped on where the weights are."""
        return [p for p in parameters if not self.offloaded or p.numel < MIN_OFFLOADED_NUMEL]

    def setup(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """Makes the master copies, as the constructor does; a later call makes only new ones."""
        if not self.has_masters:
            return
        masters = self.state.masters
        where = place("master_copy", "fp16-master.clone", "load")
        for p in self.on_device(parameters):
            if p.trainable and p.name not in masters:
                storage = timeline.alloc(p.numel * FP32_BYTES, where)
                masters[p.name] = Parameter(p.name, p.shape, FP32_BYTES, True, storage)

    def collect_gradients(
        self, timeline: Timeline, parameters: Sequence[Parameter]
    ) -> list[Parameter]:
        """What is unscaled, clipped and stepped on: the masters with fresh fp32 gradients.

        Without master copies, the parameters themselves. A gradient that was collected stays.
        """
        found = self.on_device(trainable(parameters))
        if not self.has_masters:
            return in_groups(self.name, found)
        self.setup(timeline, parameters)
        masters = [self.state.masters[parameter.name] for parameter in found]
        where = place("temporaries", "fp16-master.collect_gradients")
        for master in masters:
            if master.gradient < 0:
                master.gradient = timeline.alloc(master.num_bytes, where)
        return in_groups(self.name, masters)

    def step(self, timeline: Timeline, parameters: Sequence[Parameter], *, device: Device) -> None:
        """`optimizer.step()`: the first call makes the states, every call its temporaries."""
        stepped = self.collect_gradients(timeline, parameters)
        call = Step(self.name, timeline, self.state, device, self.column_scratch)
        STEPS[self.name](call, stepped)
        if self.rank_allocator is not None:
            self.rank_allocator.update(timeline, parameters)

    def zero_grad(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """`optimizer.zero_grad(set_to_none=True)`: the masters' gradients, then the weights'."""
        zero_grad_events(timeline, in_groups(self.name, list(self.state.masters.values())))
        weights = parameters if self.has_masters else in_groups(self.name, parameters)
        zero_grad_events(timeline, weights)


def make_optimizer(strategy: Strategy, *, column_scratch: ColumnScratch | None = None) -> Optimizer:
    """The optimizer that `rigsize.run.optimizers.make_torch_optimizer` makes for real.

    DeepSpeed keeps master copies and offloads itself (`program.zero`).
    """
    return Optimizer(
        name=strategy.optimizer,
        has_masters=strategy.policy.master_bytes > 0 and strategy.parallel not in ZEROS,
        offloaded=strategy.offload == "optimizer" and strategy.parallel not in ZEROS,
        rank_allocator=RankAllocator() if strategy.method == "adalora" else None,
        column_scratch=column_scratch,
    )


def optimizer_phase(
    timeline: Timeline,
    optimizer: Optimizer,
    parameters: Sequence[Parameter],
    *,
    device: Device,
    clip: bool,
    scaler: LossScaler | None = None,
) -> None:
    """From the last backward to the end of the step, in the order of `run.step.train_step`."""
    timeline.mark("optimizer")
    stepped = optimizer.collect_gradients(timeline, parameters)
    if scaler is not None:
        scaler.unscale(timeline)
    if clip:
        clip_events(timeline, stepped, device=device)
    optimizer.step(timeline, parameters, device=device)
    if scaler is not None:
        scaler.update(timeline)
    timeline.mark("zero_grad")
    optimizer.zero_grad(timeline, parameters)


def optimizer_assumptions(strategy: Strategy, parameters: Sequence[Parameter]) -> list[str]:
    """What the optimizer's events take for granted, in words; nothing for most."""
    trained = [p for p in parameters if p.trainable]
    lines = []
    if strategy.optimizer == "muon":
        matrices = sum(muon_takes(p.name, p.shape) for p in trained)
        lines.append(
            f"muon steps on {matrices:,} matrices of the layers, fused AdamW on the other"
            f" {len(trained) - matrices:,} parameters"
        )
    paged = sum(sum(paged_sizes(strategy.optimizer, p.shape)) for p in trained)
    if paged:
        lines.append(
            f"{format_bytes(paged)} of optimizer states are managed memory: host pages that a step"
            " moves to the card and that leave it when room is short"
        )
    blockwise = BLOCKWISE.get(strategy.optimizer)
    if blockwise is not None:
        numel = max((p.numel for p in trained if is_blockwise(blockwise, p.numel)), default=0)
        lines.append(
            f"{strategy.optimizer}'s compiled step is taken to need no temporaries; what the CPU's"
            f" compiler leaves unfused is {format_bytes(int(numel * blockwise.compiled_scratch))}"
            " of the largest parameter"
        )
    return lines
