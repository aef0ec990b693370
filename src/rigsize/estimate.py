"""The answer: Workload x Strategy x Cluster to memory, its ledger and whether it fits.

One line of calls: profile (stored, cached or traced) -> Program -> replay -> Estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rigsize.errors import UnsupportedCombination
from rigsize.estimated import (
    DeviceShare,
    Estimate,
    Fit,
    MemoryEstimate,
    Parameters,
    Verdict,
)
from rigsize.hardware.accelerators import Accelerator
from rigsize.keys import key_for
from rigsize.ledgers import memory_of
from rigsize.memory.host import HostEstimate, host_memory, run_of
from rigsize.memory.outside import outside
from rigsize.memory.peaks import Peak, peaks_of
from rigsize.memory.replay import Replay
from rigsize.models import ModelSource, check_lengths, check_task
from rigsize.point import assumed_sizes, point_of
from rigsize.program.build import Program, build_program
from rigsize.program.environment import TORCH_VERSION, environment_of
from rigsize.program.generation import build_generation
from rigsize.program.mesh import mesh_of
from rigsize.program.placement import Placement, split
from rigsize.remarks import adapted, assumptions, kept_logits, notes, recomputed
from rigsize.spec import Cluster, Strategy, Workload, check_together
from rigsize.spec.optimizers import muon_takes, no_matrix_for_muon
from rigsize.spec.quantization import (
    assumptions_of,
    check_checkpoint,
)
from rigsize.spec.zero import ZEROS
from rigsize.trace.profile import Profile
from rigsize.trace.store import find_profile
from rigsize.verdicts import (
    beside_steps,
    compiled,
    fit_of,
    fits_on,
    fitting_replay,
    free_at_rest,
    with_host,
    worst,
)

__all__ = [
    "DeviceShare",
    "Estimate",
    "Fit",
    "MemoryEstimate",
    "Parameters",
    "Verdict",
    "build",
    "check_workload",
    "estimate",
    "estimate_where_it_fits",
    "fits_on",
    "host_of",
    "peaks",
    "profile_for",
    "with_batch",
]


def estimate(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    *,
    profile: Profile | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Estimate:
    """The memory of one device for this run.

    Raises a SizingError for what cannot be answered. `profile` overrides the stored one (a Record
    is compared under its own library versions). `sizes` of {B, S, T, M, N} are those that a run
    really had, in place of what the workload lets expect.
    """
    check_workload(source, workload, strategy)
    accelerator = cluster.accelerator
    point = point_of(workload, strategy)
    point |= {symbol: size for symbol, size in (sizes or {}).items() if symbol in point}
    if profile is None:
        profile = profile_for(source, workload, strategy, accelerator, point)
    whole = build(source, profile, strategy, cluster, point)
    run = (source, workload, strategy, cluster)
    return _answered(*run, profile, point, whole, worst(whole, accelerator), assume=not sizes)


def estimate_where_it_fits(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    profile: Profile,
) -> Estimate | None:
    """The same of a run that fits its cards, by a single replay; None of one that does not.

    The host's verdict is the Estimate's. For searches, which ask this of many.
    """
    check_workload(source, workload, strategy)
    point = point_of(workload, strategy)
    whole = build(source, profile, strategy, cluster, point)
    assert not whole.devices, "no search spreads a model by a device_map"
    played = fitting_replay(whole, cluster.accelerator)
    if played is None:
        return None
    run = (source, workload, strategy, cluster)
    return _answered(*run, profile, point, whole, (whole, played, "fits", ()))


def _answered(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    profile: Profile,
    point: Mapping[str, int],
    whole: Program,
    judged: tuple[Program, Replay, Verdict, tuple[DeviceShare, ...]],
    *,
    assume: bool = True,
) -> Estimate:
    """The Estimate of a Program that was replayed, with the host's memory."""
    accelerator = cluster.accelerator
    program, played, verdict, shares = judged
    memory = memory_of(program, played, accelerator)
    if strategy.compile:
        memory, verdict = compiled(memory, verdict, program, accelerator)
    verdict, said = beside_steps(program, played, verdict, accelerator)
    on_cpu = played if accelerator.is_cpu else None
    host = host_of(source, profile, point, workload, strategy, whole, on_cpu)
    assumed = assumed_sizes(workload, strategy) if assume else ()
    return Estimate(
        source=source,
        workload=workload,
        strategy=strategy,
        cluster=cluster,
        point=point,
        memory=memory,
        host=host,
        fit=with_host(fit_of(verdict, program, played, accelerator), host, cluster),
        devices=shares,
        parameters=_parameters(source, program),
        versions={**profile.versions, "assumed_torch": ".".join(map(str, TORCH_VERSION))},
        assumptions=(
            *assumed,
            *assumptions_of(strategy, training=workload.training),
            *assumptions(program, accelerator),
            *host.assumptions,
        ),
        notes=(
            *source.notes,
            *notes(workload, strategy, accelerator),
            *adapted(source, strategy),
            *recomputed(strategy, len(profile.full_layers())),
            *said,
            *kept_logits(program, workload, strategy, free_at_rest(program, played, accelerator)),
            *host.notes,
        ),
        program=program,
        replay=played,
    )


def host_of(
    source: ModelSource,
    profile: Profile,
    point: Mapping[str, int],
    workload: Workload,
    strategy: Strategy,
    program: Program,
    on_cpu: Replay | None = None,
) -> HostEstimate:
    """The host memory of a node that runs this Program.

    Where the host is the device, `on_cpu` is the Program's replay.
    """
    return host_memory(
        run_of(
            source,
            profile,
            point,
            workload,
            strategy,
            program.mesh,
            saved=program.saved_on_host,
            paged_bytes=program.paged_bytes,
            tensors_bytes=None if on_cpu is None else on_cpu.allocated_peak_bytes,
        )
    )


def peaks(answer: Estimate) -> tuple[Peak, ...]:
    """The peak of each moment of the run, what is beside the steps among them."""
    accelerator = answer.cluster.accelerator
    beside = None if accelerator.is_cpu else outside(answer.program.mesh, accelerator)
    return peaks_of(answer.replay, beside)


def profile_for(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    accelerator: Accelerator,
    point: Mapping[str, int] | None = None,
) -> Profile:
    """The profile of this run, by default at the sizes to be expected: stored or traced now."""
    key = key_for(source, workload, strategy, accelerator)
    sizes = point or point_of(workload, strategy)
    found = find_profile(source, key, sizes)
    if not sizes.get("C"):
        return found
    return replace(found, decode=find_profile(source, replace(key, cache="decode"), sizes))


def build(
    source: ModelSource,
    profile: Profile,
    strategy: Strategy,
    cluster: Cluster,
    point: Mapping[str, int],
) -> Program:
    """The Program of one rank; nothing leaves a device that is the host itself."""
    if cluster.accelerator.is_cpu:
        strategy = replace(strategy, offload="none")
    make = build_generation if profile.key.cache else build_program
    program = make(
        profile,
        point,
        strategy,
        environment_of(cluster.accelerator, strategy),
        mesh_of(strategy, cluster, training=profile.key.use == "training"),
        vocabulary=int(source.config.get("vocab_size") or 0),
    )
    if strategy.parallel == "single" and cluster.devices > 1:
        program.devices, left_out = _place(program, source, profile, cluster)
        program.assumptions += _placed(cluster, left_out)
    trained = [p for p in program.stepped if p.trainable]
    matrices = any(muon_takes(p.name, p.shape) for p in trained)
    if program.training and strategy.optimizer == "muon" and not matrices:
        raise no_matrix_for_muon()
    return program


def _place(
    program: Program, source: ModelSource, profile: Profile, cluster: Cluster
) -> tuple[list[Program], tuple[str, ...]]:
    """The part of each device, and what of the model would be left to the disk."""
    from rigsize.trace.device_map import device_map

    accelerator, devices = cluster.accelerator, cluster.devices
    if accelerator.capacity_bytes is None:
        raise UnsupportedCombination(
            "gpus", accelerator.id, "no capacity is known to spread a model over"
        )
    free = accelerator.capacity_bytes - accelerator.context_bytes.value.mid
    paths = profile.stack_paths
    layers = tuple(f"{paths[k]}.{index}" for k, index, _ in profile.full_layers())
    found = device_map(source, profile.key, [free] * devices)
    placement = Placement.of(found, layers, devices)
    return split(program, placement), placement.left_out


def _placed(cluster: Cluster, left_out: tuple[str, ...]) -> list[str]:
    lines = [
        f"device_map='auto' spreads the layers over {cluster.devices} devices, one running at a"
        " time; the fullest is answered"
    ]
    if left_out:
        lines.append(
            f"device_map='auto' would leave {len(left_out)} modules to the disk; they are counted"
            " on the last device"
        )
    return lines


def check_workload(source: ModelSource, workload: Workload, strategy: Strategy) -> None:
    """Refuses what each record alone cannot see."""
    check_task(source.config, workload.task)
    check_together(workload, strategy)
    check_checkpoint(source.config, strategy)
    check_lengths(source, workload, strategy)
    if workload.max_target_length and workload.task != "seq2seq-lm":
        raise UnsupportedCombination(
            "max-target-length",
            workload.max_target_length,
            f"only seq2seq-lm has target tokens, the task is {workload.task}",
        )
    _check_targets(strategy)
    _refuse_later(strategy)


def _check_targets(strategy: Strategy) -> None:
    """A block is traced once for all of its kind, so what adapts one of them alone is not known."""
    for target in (strategy.lora_targets or "").split(","):
        if any(part.isdigit() for part in target.split(".")):
            raise UnsupportedCombination(
                "lora-targets",
                target.strip(),
                "a block of its own is not answered: all of a kind are adapted alike",
                hint="leave out the number",
            )


def _refuse_later(strategy: Strategy) -> None:
    """FSDP2 has no offload of parameters alone; `check_zero` has looked at ZeRO's."""
    if strategy.offload == "cpu-params" and strategy.parallel not in ZEROS:
        raise UnsupportedCombination(
            "offload",
            strategy.offload,
            "not answered yet",
            allowed=("none", "cpu", "optimizer", "activations"),
        )


def _parameters(source: ModelSource, program: Program) -> Parameters:
    total = sum(p.numel for p in program.parameters)
    head = sum(p.numel for p in program.parameters if p.category == "weights.lm_head")
    return Parameters(
        model=total,
        trainable=sum(p.numel for p in program.parameters if p.trainable),
        head=head,
        checkpoint=source.checkpoint_parameters,
        checkpoint_note=source.checkpoint_note,
    )


def with_batch(strategy: Strategy, micro_batch: int, accumulation: int | None = None) -> Strategy:
    """The strategy at another micro-batch; a budget of tokens goes with the number of texts."""
    tokens = strategy.tokens_per_batch
    return replace(
        strategy,
        micro_batch=micro_batch,
        accumulation=strategy.accumulation if accumulation is None else accumulation,
        tokens_per_batch=tokens and -(-tokens * micro_batch // strategy.micro_batch),
    )
