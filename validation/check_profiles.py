"""Prove the shipped profiles exact, and print how often they were.

    python validation/check_profiles.py [points work depth parameters optimizers]
                                        [--sample N] [--seed N] [--models GLOB ...]
                                        [--keys GLOB ...] [--max-minutes N] [--write]

points      fresh traces at three sizes in every domain that no fit has seen, one of 4,096 tokens
            or more where the model allows it, against the profile's whole event sequence
            (operator, order, birth, death, bytes)
work        the same sizes against the profile's work: per layer the dispatches, and every kernel's
            operator, dtype, layout, sizes and launches
depth       traces of the whole model, every layer, against the tiled profile, event by event
parameters  tiled names, shapes and types against torch's own on the meta device, counts against
            the published tables, every gradient against its parameter
optimizers  optimizer states against torch's own optimizers, on the meta device

`--write` puts the figures into docs/exactness.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rigsize.models import BundledModel, bundled_models, digest, max_positions
from rigsize.program.lower import Group, Lowered
from rigsize.program.optimizer_sizes import state_bytes
from rigsize.program.tiling import Tiled
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.spec.optimizers import OPTIMIZERS, PACKAGES
from rigsize.spec.strategy import Strategy
from rigsize.trace.capture import named_parameters
from rigsize.trace.child import run_under_hash_seed
from rigsize.trace.domains import proof_points
from rigsize.trace.fold import _at, _named, _Namer, give_back_layer_deaths
from rigsize.trace.fold_work import work_mismatch
from rigsize.trace.model import build, load_config
from rigsize.trace.profile import Body, Event, Profile, TraceKey, unpack
from rigsize.trace.recorder import RawTrace
from rigsize.trace.session import Session
from rigsize.trace.sizes import evaluate, monomials_at
from rigsize.trace.store import PACKAGED, WORK, read_pack

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "exactness.md"
FIGURES = ROOT / "validation" / "exactness.json"
MOST_LAYERS = 48
"""Deeper models are traced whole only where the sample falls on one."""
DEPTH_POINTS = (
    {"B": 2, "S": 40, "T": 24, "M": 24, "N": 61},
    {"B": 1, "S": 37, "T": 29, "M": 16, "N": 37},
)


@dataclass(slots=True)
class Tally:
    """One kind of proof."""

    name: str
    unit: str
    compared: int = 0
    equal: int = 0
    profiles: int = 0
    differences: list[str] = field(default_factory=list)

    def count(self, what: str, difference: str) -> None:
        """One comparison; `difference` is empty where there is none."""
        self.compared += 1
        self.equal += not difference
        if difference:
            self.differences.append(f"{what}: {difference[:400]}")
            print(f"  DIFFERS {self.differences[-1]}", flush=True)

    def line(self) -> str:
        """`points: profiles 512, points 3,210, equal 3,210`."""
        return (
            f"{self.name}: profiles {self.profiles:,},"
            f" {self.unit} {self.compared:,}, equal {self.equal:,}"
        )


@dataclass(frozen=True, slots=True)
class Shipped:
    """A stored profile and the model it is of."""

    model: BundledModel
    profile: Profile

    @property
    def name(self) -> str:
        """For messages."""
        key = self.profile.key
        later = (key.loss * (key.loss != "all"), f"one row {key.unpadded}" * bool(key.unpadded))
        flags = ("recompute" * (key.recompute == "block"), "unpadded" * (not key.padded), *later)
        return " ".join(filter(None, (self.model.id, key.task, key.use, key.compute, *flags)))

    def session(self) -> Session:
        """A session at the depth at which the profile was traced."""
        return Session.of(self.profile, self.model.config, max_positions(self.model.config))


def shipped(patterns: Sequence[str], *, work: bool = False) -> Iterator[tuple[BundledModel, bytes]]:
    """Every stored profile of births and deaths, or of work, packed, with a model of its config."""
    seen = set()
    for model in bundled_models():
        name = digest(model.config)
        if name in seen or not _matches(model, patterns):
            continue
        seen.add(name)
        for key, data in read_pack(PACKAGED / f"{name}.profiles").items():
            if key.endswith(WORK) == work:
                yield model, data


def _matches(model: BundledModel, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(model.id.lower(), p.lower()) for p in patterns)


# -- points ---------------------------------------------------------------------------------------


def check_points(item: Shipped, tally: Tally) -> None:
    """Three unseen sizes in each domain against the body that claims it."""
    profile, session = item.profile, item.session()
    varied = profile.key.varied
    for name, index in profile.domains.items():
        for point in proof_points(name, profile.limits, session.max_positions, varied):
            difference = session.differs(profile.bodies[index], point)
            tally.count(f"{item.name} {name} {point}", difference)


def check_work(item: Shipped, tally: Tally) -> None:
    """Three unseen sizes in each domain against the work that claims it."""
    profile, session = item.profile, item.session()
    varied = profile.key.varied
    for name, index in profile.domains.items():
        for point in proof_points(name, profile.limits, session.max_positions, varied):
            difference = work_mismatch(profile.bodies[index], session.record(point), point)
            tally.count(f"{item.name} {name} {point}", difference)


# -- depth ----------------------------------------------------------------------------------------


def check_depth(item: Shipped, tally: Tally) -> None:
    """The tiled profile against a trace of every layer."""
    session = item.session()
    for point in DEPTH_POINTS:
        body = item.profile.body_at(point)
        if body is None:
            continue
        trace = session.record(point, full_depth=True)
        tally.count(f"{item.name} {point}", depth_difference(item.profile, body, trace, point))


def tile(profile: Profile, body: Body) -> tuple[Tiled, list[tuple[str, int, tuple[Event, ...]]]]:
    """The Program's own tiling of a body's templates: (its state, (phase, full group, events))."""
    lowered = Lowered(
        templates={(n, g): body.templates[n] for _, g, n in body.schedule},  # type: ignore[misc]
        groups=[Group([0] * n, []) for n in body.births],
    )
    tiled = Tiled(profile, body, lowered)
    segments = [(s.phase, s.group, s.primitives) for s in tiled.segments()]
    return tiled, segments  # type: ignore[return-value]


def depth_difference(
    profile: Profile, body: Body, trace: RawTrace, point: Mapping[str, int]
) -> str:
    """The first event in which the tiled profile and a full trace differ; empty if none."""
    depths = [len(stack) for stack in profile.representative]
    stacks = list(zip(profile.stack_paths, depths, strict=True))
    give_back_layer_deaths(trace, stacks)
    names, values = _Namer(trace, stacks, whole=True), monomials_at(point)
    tiled, segments = tile(profile, body)
    told = ((phase, group, event) for phase, group, events in segments for event in events)
    number = sum(len(events) for _, _, events in segments)
    if number != len(trace.events):
        return f"{len(trace.events)} events against {number}"
    same: dict[Any, Any] = {}
    for raw, (phase, group, event) in zip(trace.events, told, strict=True):
        left = (raw.phase, raw.group, *_without_storages(_named(raw, names)))
        right = (phase, group, *_without_storages(_at(event, values)))
        if left != right:
            return f"{left} against {right}"
        pairs = [(raw.storage, event.ref), *zip(raw.outputs, event.outputs, strict=True)]
        for storage, ref in pairs:
            if not _same_storage(same, storage, ref, tiled, group):
                return f"another storage in {left}"
    return ""


def _without_storages(row: tuple[Any, ...]) -> tuple[Any, ...]:
    kind, _, op, module, size, numbers, label, _ = row
    return kind, op, module, size, numbers, label


def _same_storage(same: dict[Any, Any], storage: int, ref: Any, tiled: Tiled, group: int) -> bool:
    """Whether the two names of a storage go together wherever they occur."""
    if storage < 0 or ref is None:
        return storage < 0 and ref is None
    if ref[0] == "kept":
        return True
    number = tiled.resolve(ref, group)
    there = same.setdefault(("traced", storage), number) == number
    back = same.setdefault(("tiled", number), storage) == storage
    return bool(there and back)


# -- parameters -----------------------------------------------------------------------------------


def check_parameters(item: Shipped, tally: Tally) -> None:
    """Names, shapes, types and counts of the tiled profile against torch's own model."""
    session = item.session()
    model = build(load_config(item.model.config, session.options), session.options)
    real = [
        (name, tuple(p.shape), p.itemsize, p.requires_grad) for name, p in named_parameters(model)
    ]
    told = [
        (name, tensor.shape, tensor.itemsize, tensor.trainable)
        for name, tensor, _ in item.profile.full_tensors()
        if not name.startswith(("buffer:", "input:"))
    ]
    missing = [row for row in [*real, *told] if row not in real or row not in told]
    tally.count(f"{item.name} parameters", str(missing[:3]) if missing else _sizes(told))
    tally.count(f"{item.name} count", _count_difference(item, told))
    if item.profile.key.use == "training":
        tally.count(f"{item.name} gradients", gradient_difference(item.profile))


def _sizes(told: Sequence[tuple[str, tuple[int, ...], int, bool]]) -> str:
    names = [row[0] for row in told]
    return "" if len(names) == len(set(names)) else "a parameter is there twice"


def _count_difference(item: Shipped, told: Sequence[tuple[Any, ...]]) -> str:
    task = item.profile.key.task
    tables = {**item.model.meta_parameters, **item.model.loaded_parameters}
    expected = tables.get(task, tables.get("base") if task == "embedding" else None)
    total = sum(_product(shape) for _, shape, _, _ in told)
    return "" if expected in (None, total) else f"{total:,} against {expected:,}"


def _product(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def gradient_difference(profile: Profile) -> str:
    """Every gradient has its parameter's bytes; a parameter that is used has one gradient."""
    point = DEPTH_POINTS[0]
    body = profile.body_at(point)
    if body is None:
        return ""
    sizes = {
        name: _product(tensor.shape) * tensor.itemsize
        for name, tensor, _ in profile.full_tensors()
        if tensor.trainable
    }
    tiled, segments = tile(profile, body)
    values, born, seen = monomials_at(point), {}, set()
    for _, group, events in segments:
        for event in events:
            if event.kind == "alloc":
                born[tiled.resolve(_ref(event), group)] = evaluate(event.size, values)
            elif event.kind == "gradient":
                name = tiled.name(str(event.label[0]), group)
                found = born.get(tiled.resolve(_ref(event), group))
                if found != sizes.get(name) or name in seen:
                    return f"gradient of {name}: {found} bytes against {sizes.get(name)}"
                seen.add(name)
    return ""


def _ref(event: Event) -> tuple[Any, ...]:
    assert event.ref is not None
    return event.ref


# -- optimizers -----------------------------------------------------------------------------------


def check_optimizers(model: BundledModel, task: str, tally: Tally) -> None:
    """States of each optimizer after one step of torch's own on the meta device."""
    for itemsize, compute in ((4, "fp32"), (2, "half")):
        key = TraceKey("", task, "training", compute, "sdpa", True, "none", "accelerator", 3, True)
        options = Session(model.config, key, None).options
        parameters = list(build(load_config(model.config, options), options).parameters())
        for name in OPTIMIZERS:
            if name in PACKAGES or name in ("adamw-fused", "muon"):
                continue  # they need a package, or a device that computes
            told = state_bytes(name, [tuple(p.shape) for p in parameters], itemsize)
            real = real_state_bytes(name, parameters)
            difference = "" if told == real else f"{told:,} against {real:,}"
            tally.count(f"{model.id} {task} {name} {compute}", difference)


def real_state_bytes(name: str, parameters: Sequence[torch.Tensor]) -> int:
    """Bytes on the parameters' device of what one step leaves in the optimizer."""
    fresh = [torch.nn.Parameter(p.detach()) for p in parameters]
    for parameter in fresh:
        parameter.grad = torch.empty_like(parameter)
    optimizer = make_torch_optimizer(fresh, Strategy(optimizer=name))
    # Adafactor reads norms back to the host; on meta they have no value, and states need none.
    with mock.patch.object(torch.Tensor, "item", return_value=1.0):
        optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(
        t.numel() * t.itemsize
        for t in tensors
        if isinstance(t, torch.Tensor) and t.device == fresh[0].device
    )


# -- the run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> list[Tally]:
    """The chosen proofs on the chosen profiles, until the time is up."""
    deadline = time.monotonic() + 60 * options.max_minutes
    tallies = []
    checks = {
        "points": check_points,
        "work": check_work,
        "depth": check_depth,
        "parameters": check_parameters,
    }
    units = {
        "points": "points",
        "work": "points",
        "depth": "whole models",
        "parameters": "comparisons",
    }
    for what in options.proofs:
        tally = Tally(what, units.get(what, "states"))
        tallies.append(tally)
        if what == "optimizers":
            _all_optimizers(options, tally, deadline)
            continue
        for model, data in _chosen(options, work=what == "work"):
            if time.monotonic() > deadline:
                break
            item = Shipped(model, unpack(data))
            if options.keys and not any(fnmatch.fnmatch(item.name, p) for p in options.keys):
                continue
            deep = len(item.profile.full_layers()) > MOST_LAYERS
            if what == "depth" and deep and not options.deep:
                continue
            tally.profiles += 1
            checks[what](item, tally)
        print(tally.line(), flush=True)
    return tallies


def _chosen(options: argparse.Namespace, *, work: bool) -> list[tuple[BundledModel, bytes]]:
    """The stored profiles of one kind that are asked for."""
    everything = list(shipped(options.models, work=work))
    number = min(options.sample or len(everything), len(everything))
    return random.Random(options.seed).sample(everything, number)


def _all_optimizers(options: argparse.Namespace, tally: Tally, deadline: float) -> None:
    for model in bundled_models():
        if _matches(model, options.models) and time.monotonic() < deadline:
            tasks = [t for t in model.meta_parameters if t != "base"]
            tally.profiles += 1
            check_optimizers(model, tasks[0], tally)
    print(tally.line().replace("profiles", "models"), flush=True)


def write(tallies: Sequence[Tally]) -> None:
    """The figures of this run into the page; those of other proofs stay."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    import transformers

    for tally in tallies:
        figures[tally.name] = {
            "profiles": tally.profiles,
            "compared": tally.compared,
            "equal": tally.equal,
            "differences": tally.differences[:50],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(figures))


PROOFS = {
    "points": "fresh traces at sizes that no fit has seen, three a domain, against the profile's"
    " whole event sequence: operator, order, birth, death, bytes",
    "work": "fresh traces at the same sizes against the profile's work: per layer the number of"
    " dispatches and every kernel's operator, dtype, layout, sizes and launches",
    "depth": "traces of the whole model, every layer, against the tiled profile, event by event:"
    " kind, operator, module, bytes, and which storage",
    "parameters": "names, shapes and types of the tiled profile against torch's own model on the"
    " meta device; counts against the bundled table; every gradient against its parameter",
    "optimizers": "optimizer states by formula against what one step of torch's own optimizer"
    " leaves on the meta device (AdamW foreach and loop, SGD, SGD with momentum, Adafactor; fp32"
    " and 16-bit). Fused AdamW is compared on the CPU in `tests/program`; 8-bit AdamW is read in"
    " the source of bitsandbytes and compared with no run here",
}


def page(figures: Mapping[str, Any]) -> str:
    """docs/exactness.md."""
    lines = [
        "# Exactness of the shipped profiles",
        "",
        "Generated by `validation/check_profiles.py`. A comparison is equal or it is not: there"
        " is no tolerance.",
        "",
        "| proof | profiles or models | comparisons | equal | with |",
        "|---|---:|---:|---:|---|",
    ]
    for name, proof in PROOFS.items():
        if name in figures:
            row = figures[name]
            libraries = f"torch {row['torch']}, transformers {row['transformers']}"
            counts = f"{row['profiles']:,} | {row['compared']:,} | {row['equal']:,}"
            lines.append(f"| {name}: {proof} | {counts} | {libraries} |")
    lines += ["", "## What differed", ""]
    found = [d for row in figures.values() for d in row["differences"]]
    lines += [f"- {line}" for line in found] or ["Nothing."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("proofs", nargs="*", default=list(PROOFS), metavar="PROOF")
    parser.add_argument("--sample", type=int, help="profiles drawn at random; all without it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=[], help="ids, wildcards allowed")
    parser.add_argument("--keys", nargs="*", default=[], help="'* embedding training *', as told")
    parser.add_argument("--deep", action="store_true", help="depth: models of any depth")
    parser.add_argument("--max-minutes", type=float, default=1e6)
    parser.add_argument("--write", action="store_true", help="write docs/exactness.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.proofs) - set(PROOFS):
        parser.error(f"no such proof: {', '.join(unknown)}; there are {', '.join(PROOFS)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    tallies = run(options)
    if options.write:
        write(tallies)
    return int(any(tally.differences for tally in tallies))


if __name__ == "__main__":
    run_under_hash_seed()
    sys.exit(main())
