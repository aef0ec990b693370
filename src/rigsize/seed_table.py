"""The article's two tables, predicted beside published.

One recipe for every row, stated once (RECIPE) and chosen before any row was looked at. A size
class is the smallest declared card on which the replay ends; the Program is that of the card the
article ran on.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.estimate import Estimate, build, estimate, profile_for
from rigsize.hardware import Accelerator, find_accelerator
from rigsize.memory.outside import outside
from rigsize.memory.replay import replay, replay_exact
from rigsize.models import ModelSource, resolve_model
from rigsize.point import point_of
from rigsize.program.bound import least_states_bytes
from rigsize.program.build import Program
from rigsize.program.mesh import mesh_of
from rigsize.program.timeline import Parameter
from rigsize.seed_settings import SettingSet, smallest_settings
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.units import GB, GIB

if TYPE_CHECKING:
    from rigsize.seed_hours import RowHours

ROWS = Path(__file__).parent / "data" / "seed_rows.csv"
MAX_LENGTH = 128
EDGE = 0.03
"""A need within this share of a class's usable bytes is called on the edge."""

RECIPE = (
    "fp32, torch.optim.AdamW as torch picks it on CUDA (foreach), every text padded to 128 tokens"
    " with padding in each batch, the plain loop `out = model(**batch); out.loss.backward()` that"
    " keeps `out` through the backward pass, gradients clipped to norm 1, SDPA attention,"
    " gradients kept over the accumulated micro-batches"
)
CLASS_CARDS = {
    8: "Radeon-Pro-V520",
    16: "P100-16GB-PCIe",
    24: "A30",
    32: "V100-32GB-PCIe",
    40: "A100-40GB-PCIe",
    80: "A100-80GB-PCIe",
}
"""The article's own card of each size, but for 24 GB (its K80 is two devices of 12 GB)."""

FOOTNOTES = (
    "FSDP rows are predicted with CPU offload, DDP rows without, as the article says.",
    "`16 (own 32)`: the replay ends on 16 GB by giving cached segments back; on its own card,"
    " where there is no need to, it reserves as much as the 32 GB class.",
    "XXL: the article's links for XXL lead to the XL checkpoint; the rows are answered for"
    " facebook/xlm-roberta-xxl.",
    "24 GB: the article's Tesla K80 is a board of two 12 GB devices, and no single model spans"
    " them; the class is measured on an A30 (24 GB, sm_80 as the A100). Cards sold as 24 GB with"
    " less to use (L4, A10G: 22.0 GiB) are tighter.",
    "8 GB: the article's Radeon Pro V520 has no ROCm support in PyTorch; only its size is used.",
    "80 GB: the article links the H100 PCIe; eight of them in one node are usually SXM.",
    "A class is a card's usable bytes, not its label: 16 GB is 14.6 GiB on a T4, 15.9 on a P100.",
    "279M and 561M are the published files, which keep a pooler that no run here uses.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A set of unstated settings with which a row comes out, and what it then needs."""

    settings: SettingSet
    device_peak_bytes: int
    host_peak_bytes: int

    def __str__(self) -> str:
        device, host = self.device_peak_bytes / GIB, self.host_peak_bytes / GB
        return f"{self.settings} ({device:.1f} GiB, host {host:.0f} GB)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One published row and its prediction; bytes are of one device."""

    table: str
    model: str
    training_type: str
    gpu: str
    num_gpus: int
    micro_batch: int
    accumulation: int
    published_size_class_gb: int
    published_hours: float
    published_host_gb: float
    device_peak_bytes: int | None = None
    """On the article's own card: reserved peak and context."""
    size_class_gb: int | None = None
    size_class_card: str = ""
    own_card_class_gb: int | None = None
    """The class the reserved peak on the article's own card falls in."""
    own_card_reserved_bytes: int | None = None
    host_peak_bytes: int | None = None
    """Of the node, all its ranks together."""
    stated: str = ""
    """How the article says that it ran, as predicted."""
    settings: tuple[Reproduction, ...] = ()
    """The smallest sets of other settings with which the published class comes out."""
    margin_below_bytes: int | None = None
    """Need less the usable bytes of the next smaller class."""
    margin_above_bytes: int | None = None
    """Usable bytes of the published class less the need."""
    verdict: str = "not_answered_yet"
    note: str = ""
    hours: RowHours | None = None
    """The epoch, where it was asked for (`seed_hours`)."""

    @property
    def host_error(self) -> float | None:
        """Our host memory over the article's, less one; nothing here is tuned on that column."""
        if self.host_peak_bytes is None:
            return None
        return self.host_peak_bytes / (self.published_host_gb * GB) - 1


def predict_table() -> list[TableRow]:
    """All thirteen rows in the article's order."""
    with ROWS.open(encoding="utf-8", newline="") as file:
        return [_predict(row) for row in csv.DictReader(file)]


def _predict(row: dict[str, str]) -> TableRow:
    stated = stated_of(row)
    answer = _estimate(row, stated)
    need = answer.memory.device_peak_bytes
    assert need is not None
    found = size_class(answer.program, answer.memory.allocated_peak_bytes)
    published = int(row["published_size_class_gb"])
    either = published if published == class_of(need) else found
    verdict = verdict_of(need, either, published)
    note, settings = _note(need, found), tuple[Reproduction, ...]()
    if verdict == "missed":
        settings = _unstated(row, stated, published, answer.program.parameters)
        note = _settings_note(need, found, settings)
        verdict = _verdict_with(settings, found, published)
    below = _next_below(published)
    return _row(
        row,
        stated=_words_of(stated),
        device_peak_bytes=need,
        size_class_gb=found,
        size_class_card=CLASS_CARDS.get(found or 0, ""),
        own_card_class_gb=class_of(need),
        own_card_reserved_bytes=answer.memory.reserved_peak_bytes,
        host_peak_bytes=answer.host.peak_bytes,
        margin_below_bytes=None if below is None else need - usable_bytes(below),
        margin_above_bytes=usable_bytes(published) - need,
        verdict=verdict,
        settings=settings,
        note=note,
    )


def _verdict_with(settings: Sequence[Reproduction], found_gb: int | None, published_gb: int) -> str:
    """What to say of a row that its stated settings alone do not give."""
    if settings and not settings[0].settings.contradicts:
        return "reproduced_with_unstated_settings"
    return "impossible_as_stated" if found_gb is None or found_gb > published_gb else "missed"


def stated_of(row: dict[str, str]) -> Strategy:
    """What the article says of a row: FSDP with CPU offload, DDP, or one GPU."""
    parallel = {"Single": "single", "DDP": "ddp", "FSDP": "fsdp"}[row["training_type"]]
    return Strategy(
        micro_batch=int(row["micro_batch"]),
        accumulation=int(row["accumulation"]),
        parallel=parallel,
        offload="cpu" if parallel == "fsdp" else "none",
    )


def _words_of(strategy: Strategy) -> str:
    offload = " with CPU offload" if strategy.offload == "cpu" else ""
    return {"single": "one GPU", "ddp": "DDP"}.get(strategy.parallel, "FSDP") + offload


def _estimate(row: dict[str, str], strategy: Strategy) -> Estimate:
    source, workload, cluster = question_of(row)
    return estimate(source, workload, strategy, cluster)


def question_of(row: dict[str, str]) -> tuple[ModelSource, Workload, Cluster]:
    """What a row is about: model, task and GPUs."""
    workload = Workload(
        model=row["model"],
        task=row["task"],
        use=row["table"],
        max_length=MAX_LENGTH,
    )
    cluster = Cluster(accelerator=find_accelerator(row["gpu"]), per_node=int(row["num_gpus"]))
    return resolve_model(row["model"]), workload, cluster


def _unstated(
    row: dict[str, str], stated: Strategy, published_gb: int, parameters: Sequence[Parameter]
) -> tuple[Reproduction, ...]:
    """The smallest sets of other settings with which the row falls in the published class."""
    cluster = question_of(row)[2]

    def reproduces(strategy: Strategy) -> bool:
        mesh = mesh_of(strategy, cluster)
        least = least_states_bytes(parameters, strategy, mesh, training=True)
        if least > usable_bytes(published_gb):
            return False
        program = _program(row, strategy)
        least = replay_exact(program).allocated_peak_bytes
        return _falls_in(program, least, published_gb, cluster.accelerator)

    found = smallest_settings(stated, reproduces)
    return tuple(_reproduction(one, _estimate(row, one.strategy)) for one in found)


def _falls_in(program: Program, least_bytes: int, size_class_gb: int, own: Accelerator) -> bool:
    """Whether it ends in the class and in none below, or reserves so much on its own card."""
    if not _ends_on(program, least_bytes, size_class_gb):
        return False
    below = _next_below(size_class_gb)
    if below is None or not _ends_on(program, least_bytes, below):
        return True
    assert own.capacity_bytes is not None
    beside = outside(program.mesh, own).mid
    played = replay(program, capacity_bytes=own.capacity_bytes - beside)
    return class_of(played.reserved_peak_bytes + beside) == size_class_gb


def _program(row: dict[str, str], strategy: Strategy) -> Program:
    source, workload, cluster = question_of(row)
    profile = profile_for(source, workload, strategy, cluster.accelerator)
    return build(source, profile, strategy, cluster, point_of(workload, strategy))


def _reproduction(found: SettingSet, answer: Estimate) -> Reproduction:
    device = answer.memory.device_peak_bytes
    assert device is not None
    return Reproduction(
        settings=found, device_peak_bytes=device, host_peak_bytes=answer.host.peak_bytes
    )


def _settings_note(need_bytes: int, found_gb: int | None, settings: Sequence[Reproduction]) -> str:
    """Why the stated settings cannot be all, and which others give the class."""
    found = "past 80" if found_gb is None else str(found_gb)
    words = f"as stated {need_bytes / GIB:.1f} GiB on its own card; it ends on class {found}"
    if not settings:
        return f"{words}; no three other settings reproduce the class"
    against = " (against the article's words)" if settings[0].settings.contradicts else ""
    return f"{words}; reproduced{against} with " + ", or with ".join(str(one) for one in settings)


def _row(row: dict[str, str], **predicted: object) -> TableRow:
    return TableRow(
        table=row["table"],
        model=row["model"],
        training_type=row["training_type"],
        gpu=row["gpu"],
        num_gpus=int(row["num_gpus"]),
        micro_batch=int(row["micro_batch"]),
        accumulation=int(row["accumulation"]),
        published_size_class_gb=int(row["published_size_class_gb"]),
        published_hours=float(row["published_hours"]),
        published_host_gb=float(row["published_host_gb"]),
        **predicted,  # type: ignore[arg-type]
    )


@cache
def _card(size_class_gb: int) -> Accelerator:
    return find_accelerator(CLASS_CARDS[size_class_gb])


def usable_bytes(size_class_gb: int) -> int:
    """What torch sees of the class's declared card."""
    capacity = _card(size_class_gb).capacity_bytes
    assert capacity is not None
    return capacity


def size_class(program: Program, allocated_peak_bytes: int) -> int | None:
    """The smallest class on whose card the replay ends; None past 80 GB."""
    return next((s for s in CLASS_CARDS if _ends_on(program, allocated_peak_bytes, s)), None)


def _ends_on(program: Program, least_bytes: int, size_class_gb: int) -> bool:
    """Whether the replay ends on the class's card; not tried where `least_bytes` rule it out."""
    free = usable_bytes(size_class_gb) - outside(program.mesh, _card(size_class_gb)).mid
    if least_bytes > free:
        return False
    return replay(program, capacity_bytes=free).out_of_memory is None


def class_of(device_bytes: int) -> int | None:
    """The smallest class that holds so many bytes without giving any back."""
    return next((size for size in CLASS_CARDS if device_bytes <= usable_bytes(size)), None)


def verdict_of(need_bytes: int, found_gb: int | None, published_gb: int) -> str:
    """reproduced, on_the_edge or missed."""
    below = _next_below(published_gb)
    edges = [usable_bytes(published_gb), *([] if below is None else [usable_bytes(below)])]
    if any(abs(need_bytes - edge) <= EDGE * edge for edge in edges):
        return "on_the_edge"
    return "reproduced" if found_gb == published_gb else "missed"


def _next_below(size_class_gb: int) -> int | None:
    smaller = [size for size in CLASS_CARDS if size < size_class_gb]
    return max(smaller) if smaller else None


def _note(need_bytes: int, found_gb: int | None) -> str:
    own = class_of(need_bytes)
    if own == found_gb:
        return ""
    return (
        f"fits {found_gb} GB by giving cached segments back; on its own 40 GB card the run"
        f" reserves as much as the {own} GB class"
    )
