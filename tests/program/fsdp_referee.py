"""The referee of `program.fsdp`: real `fully_shard` under torch's fake process group on a CPU.

What torch.profiler's allocator events say of real steps, beside the Program of the same run: the
bytes alive where each of FSDP2's hooks begins and ends (its own `record_function` ranges) and
where each phase begins, and the peak with the last hook before it.
"""

from __future__ import annotations

import functools
import gc
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tests.trace.exemptions import SCALAR_BYTES, Event, exemption_of
from tests.trace.referee import profile_once, real_batch, timed_events
from tests.trace.tiny import CONFIGS, SIZES, Case
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from rigsize.hardware import find_accelerator
from rigsize.keys import trace_key
from rigsize.models.source import ModelSource
from rigsize.program import fsdp
from rigsize.program.build import Program, build_program
from rigsize.program.environment import environment_of
from rigsize.program.fsdp_group import Group, Policy, policy_of
from rigsize.program.mesh import Mesh
from rigsize.program.micro_step import MicroStep
from rigsize.program.timeline import Place
from rigsize.run.building import fill
from rigsize.run.job import options_of
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.step import StepRecipe, inference_step, train_step
from rigsize.spec import Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.model import build, forward_arguments, load_config, materialize
from rigsize.trace.profile import Profile, TraceKey
from rigsize.trace.session import Session
from rigsize.train.parallel import World, apply_fully_shard, before_micro

LAYERS = 3
STEPS = 2
HOOKS = ("pre_forward", "post_forward", "pre_backward", "post_backward")
CHUNK_CAT = "aten::_chunk_cat"
"""On a CPU it pads and casts through temporaries; CUDA has one kernel."""
OPERATORS = frozenset({CHUNK_CAT, "aten::_foreach_sqrt", "aten::_foreach_norm"})
TASKS = {
    "xlm-roberta": "masked-lm",
    "xlm-roberta-xl": "masked-lm",
    "albert": "masked-lm",
    "t5": "seq2seq-lm",
    "bart": "seq2seq-lm",
}
Mark = tuple[str, int]
"""Where, and the bytes alive there beyond those that were loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """One run to be refereed."""

    family: str
    world: int = 2
    precision: str = "fp32"
    parallel: str = "fsdp"
    shard_size: int | None = None
    reshard: bool = True
    recompute: bool = False
    accumulation: int = 1
    optimizer: str = "adamw-foreach"
    training: bool = True
    method: str = "full"
    half_reduce: bool = False
    """Reduce in 16 bits what is kept in fp32: `MixedPrecisionPolicy` without `reduce_dtype`."""

    def __str__(self) -> str:
        words = [self.family, f"{self.world} ranks", self.parallel, self.precision]
        words += ["whole"] * (not self.reshard) + ["recompute"] * self.recompute
        words += [f"accumulation {self.accumulation}"] * (self.accumulation > 1)
        words += [self.optimizer if self.training else "inference"]
        words += [self.method] * (self.method != "full")
        return " ".join(words + ["half reduce"] * self.half_reduce)

    @property
    def task(self) -> str:
        return TASKS.get(self.family, "causal-lm")

    @property
    def strategy(self) -> Strategy:
        return Strategy(
            precision=self.precision,
            optimizer=self.optimizer,
            micro_batch=SIZES["B"],
            accumulation=self.accumulation,
            recompute="block" if self.recompute else "none",
            parallel=self.parallel,
            shard_size=self.shard_size,
            reshard_after_forward=self.reshard,
            method=self.method,
        )

    @property
    def workload(self) -> Workload:
        use = "fine-tuning" if self.training else "inference"
        return Workload(model="tiny", task=self.task, use=use, max_length=SIZES["S"])

    @property
    def mesh(self) -> Mesh:
        shard = self.shard_size or self.world
        return Mesh(shard=shard, replicas=self.world // shard, per_node=self.world)

    @property
    def case(self) -> Case:
        """The model of the real run."""
        return Case(
            family=self.family,
            task=self.task,
            compute=self.strategy.policy.compute,
            recompute="block" if self.recompute else "none",
            training=self.training,
        )


def config_of(family: str) -> dict[str, Any]:
    depth = {} if TASKS.get(family) == "seq2seq-lm" else {"num_hidden_layers": LAYERS}
    return CONFIGS[family] | depth


@dataclass(slots=True)
class Told:
    """One side's account."""

    marks: list[Mark]
    peak_bytes: int
    peak_after: str
    """The last mark before the peak, and how many marks there were."""


@dataclass(slots=True)
class Verdict:
    """Where the two sides differ; empty where they agree."""

    ours: Told
    theirs: Told

    @property
    def differences(self) -> list[str]:
        """One line each."""
        lines = []
        names = [[name for name, _ in told.marks] for told in (self.ours, self.theirs)]
        if names[0] != names[1]:
            pairs = zip(*names, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, names)))
            lines.append(f"other hooks at {at}: {names[0][at : at + 3]}, {names[1][at : at + 3]}")
        for (name, ours), (_, theirs) in zip(self.ours.marks, self.theirs.marks, strict=False):
            if ours != theirs:
                lines.append(f"{name}: Program {ours:,}, torch {theirs:,}, {ours - theirs:+,}")
        if self.ours.peak_bytes != self.theirs.peak_bytes:
            lines.append(
                f"peak: Program {self.ours.peak_bytes:,}, torch {self.theirs.peak_bytes:,}"
            )
        if self.ours.peak_after != self.theirs.peak_after:
            lines.append(f"peak after {self.ours.peak_after}, {self.theirs.peak_after}")
        return lines

    @property
    def largest(self) -> int:
        """The largest difference in bytes at a mark or at the peak."""
        pairs = zip(self.ours.marks, self.theirs.marks, strict=False)
        at_marks = max((abs(a - b) for (_, a), (_, b) in pairs), default=0)
        return max(at_marks, abs(self.ours.peak_bytes - self.theirs.peak_bytes))


def referee(run: Sharding) -> Verdict:
    """The Program's account beside torch's."""
    ours = predicted(run)
    return Verdict(ours, real(run))


# -- the Program ----------------------------------------------------------------------------------


def point_of(task: str) -> dict[str, int]:
    return {"B": SIZES["B"], "S": SIZES["S"], "T": SIZES["T"] if task == "seq2seq-lm" else 0}


@functools.cache
def profile_of(key: TraceKey, family: str) -> Profile:
    point = point_of(key.task)
    return Session(config_of(family), key, 128).profile([exact_label(point)])


class Watched(fsdp.FullySharded):
    """Marks its hooks in the timeline by storages of no bytes."""

    def pre_forward(self, step: MicroStep, group: Group) -> None:
        self._mark(step, "pre_forward", group, "begins")
        super().pre_forward(step, group)
        self._mark(step, "pre_forward", group, "ends")

    def post_forward(self, step: MicroStep, group: Group) -> None:
        self._mark(step, "post_forward", group, "begins")
        super().post_forward(step, group)
        self._mark(step, "post_forward", group, "ends")

    def pre_backward(self, step: MicroStep, group: Group) -> None:
        if group.state == "pre_backward":
            return
        self._mark(step, "pre_backward", group, "begins")
        super().pre_backward(step, group)
        self._mark(step, "pre_backward", group, "ends")

    def post_backward(self, step: MicroStep, group: Group) -> None:
        self._mark(step, "post_backward", group, "begins")
        super().post_backward(step, group)
        self._mark(step, "post_backward", group, "ends")

    def _mark(self, step: MicroStep, hook: str, group: Group, what: str) -> None:
        where = f"layer {group.layer - 1}" if group.layer else "root"
        step.alloc(0, Place("mark", "", op=f"{hook} of {where} {what}"))


def source_of(family: str) -> ModelSource:
    return ModelSource(
        name=family,
        origin="config",
        config=config_of(family),
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )


def program_of(run: Sharding) -> Program:
    key = trace_key(source_of(run.family), run.workload, run.strategy, device="cpu")
    profile = profile_of(key, run.family)
    policy = Policy(stored_bytes=4) if run.half_reduce else policy_of(run.strategy)
    environment = environment_of(find_accelerator("cpu"), run.strategy)
    with (
        mock.patch.object(fsdp, "FullySharded", Watched),
        mock.patch.object(fsdp, "policy_of", return_value=policy),
    ):
        return build_program(profile, point_of(run.task), run.strategy, environment, run.mesh)


def predicted(run: Sharding) -> Told:
    """The bytes that live beyond load, scalars left out, through the first steps."""
    program = program_of(run)
    timeline = program.timeline
    live = peak = 0
    marks: list[Mark] = []
    peak_after = ""
    for number in range(STEPS):
        for name in program.step(number):
            starts = dict(program.phase_starts.get(name) or [])
            for index, operation in enumerate(program.slices[name]):
                if index in starts:
                    marks.append((f"{starts[index]} begins", live))
                storage = operation if operation >= 0 else ~operation
                place, size = timeline.places[storage], timeline.sizes[storage]
                if place.category == "mark":
                    if operation >= 0:
                        marks.append((place.op, live))
                elif size > SCALAR_BYTES:
                    live += size if operation >= 0 else -size
                    if live > peak:
                        peak, peak_after = live, f"{marks[-1][0]} ({len(marks)})"
        marks.append(("step ends", live))
    return Told(marks, peak, peak_after)


# -- torch ----------------------------------------------------------------------------------------


@contextmanager
def fake_world(size: int, device: str = "cpu") -> Iterator[World]:
    hook = sys.excepthook  # every group wraps it once more
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield World(size=size, device=torch.device(device), distributed=True, fake=True)
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def real(run: Sharding) -> Told:
    """The same from a real model under the profiler."""
    with fake_world(run.world) as world, warnings.catch_warnings():
        # XLM-R's logits are a view, of which FSDP2 warns; torchao of kernels it has no use for.
        warnings.simplefilter("ignore")
        tree = _profiled(run, world)
        gc.collect()
    key = trace_key(source_of(run.family), run.workload, run.strategy, device="cpu")
    return _account(tree, known_operators(profile_of(key, run.family)))


def known_operators(profile: Profile) -> frozenset[str]:
    """Those whose results the trace has, and the optimizer's; what dies in others is scratch."""
    names = {e.op.partition(".")[0] for b in profile.bodies for t in b.templates for e in t}
    return frozenset(f"aten::{name}" for name in names if name) | OPERATORS


def _profiled(run: Sharding, world: World) -> Any:
    torch.manual_seed(0)
    options, strategy = options_of(run.workload, run.strategy), run.strategy
    config = load_config(config_of(run.family), options)
    model = build(config, options, "meta")
    with half_reduce() if run.half_reduce else nullcontext():
        apply_fully_shard(model, strategy, world)
    materialize(model, world.device)
    fill(model)
    batch = real_batch(run.case) | forward_arguments(config, options)
    recipe = StepRecipe(task=run.task, device_type="cpu", max_grad_norm=strategy.max_grad_norm)
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
    if run.training:
        optimizer = make_torch_optimizer(model.parameters(), strategy)

    def steps() -> None:
        for _ in range(STEPS):
            if run.training:
                shares = [1.0 / run.accumulation] * run.accumulation
                train_step(
                    model,
                    [batch] * run.accumulation,
                    optimizer,
                    recipe,
                    shares=shares,
                    phase=_phase,
                    before_micro=before_micro(model),
                )
            else:
                inference_step(model, batch, recipe, phase=_phase)
            _phase("step", "ends")

    return profile_once(steps)


def half_reduce() -> AbstractContextManager[Any]:
    """Policies say nothing of the type in which gradients are reduced."""
    plain = MixedPrecisionPolicy

    def without(*, param_dtype: torch.dtype, **_: Any) -> MixedPrecisionPolicy:
        return plain(param_dtype=param_dtype)

    return mock.patch("torch.distributed.fsdp.MixedPrecisionPolicy", without)


def _phase(name: str, what: str = "begins") -> None:
    with torch.profiler.record_function(f"phase::{name} {what}"):
        pass


def _account(tree: Any, known: frozenset[str]) -> Told:
    told: list[tuple[int, Event | str]] = []
    for time, event in timed_events(tree, known):
        born = event.born or event
        if born.op != CHUNK_CAT and exemption_of(born) is None:
            told.append((time, event))
    told += _hooks(tree)
    told.sort(key=lambda item: item[0])
    live = peak = 0
    marks: list[Mark] = []
    peak_after = ""
    for _, item in told:
        if isinstance(item, str):
            marks.append((item, live))
            continue
        live += item.num_bytes if item.born is None else -item.num_bytes
        if live > peak:
            peak, peak_after = live, f"{marks[-1][0]} ({len(marks)})"
    return Told(marks, peak, peak_after)


def _hooks(tree: Any) -> list[tuple[int, str]]:
    """FSDP2's own ranges and our phases by time; `post_backward` is told in two or three parts."""
    found = sorted(
        (n for n in _nodes(tree) if n.name.startswith(("FSDP::", "phase::"))), key=_start
    )
    marks: list[tuple[int, str]] = []
    for node in found:
        kind, _, rest = node.name.partition("::")
        if rest == "after_forward begins":  # the output still lives, which is not told of a step
            continue
        if kind == "phase":
            marks.append((node.start_time_ns, rest))
            continue
        match = re.match(r"(\w+)(?: \((.*)\))?$", rest)
        if match is None:
            continue
        hook, where = match.group(1), _where(match.group(2))
        if hook in HOOKS:
            marks.append((node.start_time_ns, f"{hook} of {where} begins"))
            marks.append((node.end_time_ns, f"{hook} of {where} ends"))
        elif hook == "post_backward_accumulate":
            marks.append((node.start_time_ns, f"post_backward of {where} begins"))
            last = _last_part(found, node)
            marks.append((last.end_time_ns, f"post_backward of {where} ends"))
    return marks


def _start(node: Any) -> int:
    return int(node.start_time_ns)


def _where(name: str | None) -> str:
    return re.sub(r".*?(decoder\.)?\w+\.(\d+)$", r"\1layer \2", name) if name else "root"


def _last_part(found: list[Any], first: Any) -> Any:
    """The last of the ranges of one call of `post_backward`."""
    last = first
    for node in found[found.index(first) + 1 :]:
        if not node.name.startswith("FSDP::post_backward_") or "accumulate" in node.name:
            break
        last = node
    return last


def _nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        yield from _nodes(node.children)
