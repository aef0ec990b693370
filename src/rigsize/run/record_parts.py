"""What a Record is made of: dataclasses that a run fills, and their JSON. No torch here.

A None has its reason in `unknown`, and its JSON beside it as `..._unknown_reason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rigsize.errors import SpecError
from rigsize.run.calibrated import Sample

__all__ = [
    "STATISTICS",
    "Attribution",
    "Cap",
    "Hardware",
    "HostMemory",
    "Memory",
    "ModelIdentity",
    "RankPeaks",
    "Texts",
    "Throughput",
    "Versions",
    "WorldRun",
    "check_schema",
    "part_from_json",
    "part_to_json",
]

STATISTICS = (
    "allocated_peak_bytes",
    "reserved_peak_bytes",
    "device_peak_bytes",
    "context_bytes",
    "host_peak_bytes",
)
REASON = "_unknown_reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model ran; its config is kept, so that the run can be traced again anywhere."""

    name: str
    origin: str
    """bundled, folder, config, hub-cache or hub."""
    config_digest: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What it ran on; None where it could not be read."""

    gpu: str | None = None
    """As torch or the driver names it."""
    gpu_memory_bytes: int | None = None
    """What torch reports as total memory."""
    sm_count: int | None = None
    compute_capability: str | None = None
    driver: str | None = None
    cpu: str | None = None
    cores: int | None = None
    host_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The software it ran with; None where it is not installed."""

    python: str
    rigsize: str
    torch: str | None = None
    transformers: str | None = None
    cuda: str | None = None
    cudnn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peaks in bytes; a None has its reason in `unknown`."""

    allocated_peak_bytes: int | None = None
    """CUDA: peak of the caching allocator's blocks. CPU: peak of requested bytes alive."""
    reserved_peak_bytes: int | None = None
    """Peak of the segments the caching allocator held."""
    device_peak_bytes: int | None = None
    """Reserved peak plus context: what this process took of the card."""
    context_bytes: int | None = None
    """Used minus reserved at the end of a step, from the second on."""
    host_peak_bytes: int | None = None
    """Peak resident set of the process, measuring included."""
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [n for n in STATISTICS if getattr(self, n) is None and n not in self.unknown]
        if missing:
            raise SpecError("memory", missing[0], "unknown without a reason")

    def to_json(self) -> dict[str, Any]:
        """Every statistic, and beside each null its reason."""
        document: dict[str, Any] = {}
        for name in STATISTICS:
            document[name] = getattr(self, name)
            if document[name] is None:
                document[name + REASON] = self.unknown[name]
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPeaks:
    """The peaks of one rank, in bytes; None where the device has no such figure."""

    rank: int
    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    """Peak resident set of the rank's process (VmHWM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRun:
    """How many ranks there were, and what each held."""

    size: int
    """Ranks that the parameters, gradients and states are divided among, or replicated on."""
    parallel: str
    offload: str
    fake: bool
    """One process in a fake process group: `note` says what that leaves out."""
    note: str = ""
    ranks: tuple[RankPeaks, ...] = ()
    """Those that really ran; the headline is that of the worst."""
    context_start_bytes: int | None = None
    """Of the card, after the first tensor and before anything else."""
    communicator_bytes: int | None = None
    """Growth of the card's use at the first collective, outside the allocator."""
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The host's memory, over all ranks of this machine."""

    pss_peak_bytes: int | None = None
    """Proportional set sizes summed over the ranks; the largest seen after load and each step."""
    pinned_bytes: int | None = None
    """Peak of page-locked memory, by torch's host allocator, summed over the ranks."""
    cgroup_peak_bytes: int | None = None
    """Of the container, everything in it, page cache included."""
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast the steady steps were: the first two are left out."""

    step_times_s: tuple[float, ...]
    """Every timed step, warm-up included."""
    steady_steps: int
    step_s: float | None = None
    """Median of the steady steps."""
    real_tokens_per_s: float | None = None
    """Median over the steady steps, padding not counted, all ranks."""
    examples_per_s: float | None = None
    spread: float | None = None
    """Interquartile range of the rate over its median."""
    padding_share: float | None = None
    """Of the positions that were computed."""
    examples: int | None = None
    """Texts an epoch, where that is known."""
    epoch_hours: float | None = None
    """Extrapolated: examples over examples a second."""
    warning: str = ""
    """Why the figures are to be doubted, and the remedy."""
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the steps were fed with."""

    kind: str
    """full-length (every text has max_length tokens), histogram or data."""
    source: str = ""
    """The file's name."""
    texts: int | None = None
    """Texts of an epoch that the micro-batches are taken from."""
    mean_length: float | None = None
    """Tokens, special ones included, cut to max_length."""
    micro_batches: int
    """Different ones that were run."""
    micro_steps: int | None = None
    """The most that one optimizer step had: a token budget makes as many as it takes."""
    worst: str = ""
    """The micro-batch with the most positions to compute, in words."""
    padded: bool = True
    """Whether that one holds padding: it decides the mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who held the bytes at the allocated peak, by the identity of storages."""

    step: int
    """From 1."""
    phase: str
    categories: Mapping[str, int]
    """Bytes of weights, gradients, optimizer_states, inputs and rest; they sum to `total_bytes`."""
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A card made smaller, to prove that a run fits one."""

    cap_bytes: int
    allocator_limit_bytes: int
    """The cap less the context as it was before the run."""
    proven: bool
    """The run ended, and its device peak is not above the cap."""
    note: str = ""


def part_to_json(part: Any) -> dict[str, Any]:
    """Every field; beside a None that has a reason, the reason."""
    document: dict[str, Any] = {}
    reasons: Mapping[str, str] = getattr(part, "unknown", {})
    for item in fields(part):
        if item.name == "unknown":
            continue
        document[item.name] = _plain(getattr(part, item.name))
        if document[item.name] is None and item.name in reasons:
            document[item.name + REASON] = reasons[item.name]
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        nested = (RankPeaks, Sample)
        return [part_to_json(one) if isinstance(one, nested) else one for one in value]
    return dict(value) if isinstance(value, Mapping) else value


_NESTED = {"ranks": RankPeaks, "samples": Sample}


def part_from_json(kind: Any, document: Mapping[str, Any]) -> Any:
    """The part of a document; fields of a later minor version are left out."""
    known = {item.name for item in fields(kind)}
    values = {name: value for name, value in document.items() if name in known}
    for name, value in values.items():
        if name in _NESTED:
            values[name] = tuple(part_from_json(_NESTED[name], one) for one in value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    if "unknown" in known:
        values["unknown"] = {
            name.removesuffix(REASON): str(value)
            for name, value in document.items()
            if name.endswith(REASON)
        }
    return kind(**values)


def check_schema(document: Mapping[str, Any], ours: str) -> None:
    """Takes any minor version of our own major, refuses a later major and what has none."""
    version = document.get("schema_version")
    major = str(version).partition(".")[0]
    ours = ours.partition(".")[0]
    if not major.isdecimal() or int(major) < 1:
        raise SpecError("schema_version", version, "not a Record", allowed=(f"{ours}.x",))
    if int(major) > int(ours):
        hint = "written by a newer rigsize: install it to read this Record"
        raise SpecError("schema_version", version, "too new", allowed=(f"{ours}.x",), hint=hint)
