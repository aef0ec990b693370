"""Everything a run needs before its first step; what can be refused is refused, cheap first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rigsize.errors import SpecError, UnsupportedCombination
from rigsize.models import check_lengths, check_task
from rigsize.models.packable import can_share_row
from rigsize.run.job import recipe_of
from rigsize.run.optimizers import make_torch_optimizer
from rigsize.run.step import StepRecipe
from rigsize.spec import Workload, check_together
from rigsize.texts.source import DataSource
from rigsize.texts.tokenised import TokenisedTexts, prepare, split
from rigsize.train.checkpoint import Checkpoints
from rigsize.train.collate import Collator, Vocabulary
from rigsize.train.evaluate import Evaluator
from rigsize.train.export import check_export
from rigsize.train.feed import Feed
from rigsize.train.interrupt import KillSwitch
from rigsize.train.model import ModelMaker, reads_last
from rigsize.train.order import Order
from rigsize.train.parallel import World, shard
from rigsize.train.progress import Progress
from rigsize.train.settings import TrainJob

__all__ = ["MODEL_FOLDER", "Plan", "Prepared", "check_job", "plan_run", "prepare_run"]

MODEL_FOLDER = "model"
"""In the run's folder: the trained model as `save_pretrained` writes it."""

_CLASSIFYING = ("sequence-classification", "token-classification")
_SHOWN_CLASSES = 10
_LEAST_TOKENS = {"causal-lm": 2, "masked-lm": 1}
"""A text of one token has nothing that could be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The data and its order; nothing of the model is loaded yet."""

    job: TrainJob
    """With the number of labels that the data has."""
    texts: TokenisedTexts
    held_out: TokenisedTexts | None
    train_indices: npt.NDArray[np.int64]
    eval_indices: npt.NDArray[np.int64]
    order: Order
    steps: int
    """Optimizer steps in all."""
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A run that can begin."""

    plan: Plan
    maker: ModelMaker
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    recipe: StepRecipe
    feed: Feed
    evaluator: Evaluator | None
    checkpoints: Checkpoints
    arguments: Mapping[str, Any]
    """Of every forward call, beside the batch."""


def check_job(job: TrainJob) -> None:
    """What the records alone can tell, before data or torch."""
    workload, strategy = job.workload, job.strategy
    if not workload.training:
        raise SpecError("use", workload.use, "nothing is trained", allowed=("fine-tuning",))
    check_together(workload, strategy)
    check_task(job.source.config, workload.task)
    check_lengths(job.source, workload, strategy)
    if workload.padding == "unpadded" and not can_share_row(job.source.config):
        raise UnsupportedCombination(
            "padding",
            "unpadded",
            f"{job.source.model_type} counts positions itself and would run one text into the next",
            allowed=("fixed", "dynamic"),
            nearest="dynamic",
        )
    _maker(job).check()
    _check_out(job)
    if job.strategy.method == "full" and job.source.config.get("quantization_config"):
        raise UnsupportedCombination(
            "model", job.source.name, "quantised weights cannot be trained in full"
        )


def _check_out(job: TrainJob) -> None:
    """A folder is a run's own: it is taken up on request, never written over."""
    out, resume = job.settings.out, job.settings.resume
    if out.exists() and not out.is_dir():
        raise SpecError("out", str(out), "not a folder")
    holds = (out / "log.jsonl").exists() or (out / "checkpoints").exists()
    if holds and resume == "never":
        raise SpecError(
            "out",
            str(out),
            "holds a run already",
            hint="--resume goes on with it, or another --out",
        )
    if resume == "must" and not (out / "checkpoints").is_dir():
        raise SpecError("resume", str(out), "no checkpoint there to resume from")


def plan_run(job: TrainJob, world: World, progress: Progress) -> Plan:
    """Reads and tokenises the data (rank 0 first, the others from its cache) and deals it out."""
    texts = _texts(job, world, progress)
    job = _with_labels(job, texts)
    _check_vocabulary(job, texts)
    held_out, train, held = _split(job, texts, world, progress)
    train, notes = _usable(job.workload, texts, train)
    order = _order(job, texts, train, world.size)
    steps = job.settings.max_steps or job.workload.epochs * order.windows
    return Plan(
        job=job,
        texts=texts,
        held_out=held_out,
        train_indices=train,
        eval_indices=held,
        order=order,
        steps=steps,
        notes=(texts.report.columns, *texts.report.problems(), *notes, *_classes(texts, train)),
    )


def _texts(job: TrainJob, world: World, progress: Progress) -> TokenisedTexts:
    if not world.first:
        world.wait()
    try:
        if world.first:
            progress.note(f"reading {job.data.path}")
        texts = _prepared(job, job.data, job.labels_asked, None)
    finally:
        if world.first:
            world.wait()
    return texts


def _prepared(
    job: TrainJob, data: Any, num_labels: int | None, label_names: tuple[str, ...] | None
) -> TokenisedTexts:
    workload = job.workload
    return prepare(
        data,
        job.tokenizer or job.source.path or job.source.name,
        task=workload.task,
        max_length=workload.max_length,
        max_target_length=workload.max_target_length,
        num_labels=num_labels,
        label_names=label_names,
    )


def _with_labels(job: TrainJob, texts: TokenisedTexts) -> TrainJob:
    if job.workload.task not in _CLASSIFYING:
        return job
    count = job.labels_asked or len(texts.label_names)
    return replace(job, workload=replace(job.workload, num_labels=max(1, count)))


def _check_vocabulary(job: TrainJob, texts: TokenisedTexts) -> None:
    size = int(job.source.config.get("vocab_size") or 0)
    highest = max(texts.largest_id, *texts.special_ids.values(), -1)
    if size and highest >= size:
        raise UnsupportedCombination(
            "tokenizer",
            job.tokenizer or job.source.name,
            f"its ids reach {highest:,}, but the model has {size:,} embeddings",
            hint="use the model's own tokenizer",
        )
    if job.workload.task == "masked-lm" and "mask" not in texts.special_ids:
        raise UnsupportedCombination(
            "task", "masked-lm", "the tokenizer has no mask token", hint="--task causal-lm?"
        )


def _split(
    job: TrainJob, texts: TokenisedTexts, world: World, progress: Progress
) -> tuple[TokenisedTexts | None, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(the evaluation texts, indices to train on, indices to evaluate on)."""
    everything = np.arange(len(texts))
    if job.eval_data is not None:
        read = replace(job, data=job.eval_data)
        if not world.first:
            world.wait()
        held = _evaluation_texts(read, job.eval_data, texts.label_names or None)
        if world.first:
            progress.note(f"evaluation set: {len(held):,} texts of {job.eval_data.path}")
            world.wait()
        return held, everything, np.arange(len(held))
    train, kept = split(texts, job.settings.eval_share, job.settings.seed)
    return (texts if len(kept) else None), train, kept


def _evaluation_texts(
    job: TrainJob, data: DataSource, label_names: tuple[str, ...] | None
) -> TokenisedTexts:
    """The evaluation file, whose mistakes name it: row 21 of which file?"""
    try:
        return _prepared(job, data, job.workload.num_labels, label_names)
    except SpecError as error:
        error.problem = f"in {data.path}: {error.problem}"
        raise


def _usable(
    workload: Workload, texts: TokenisedTexts, indices: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Without the texts that predict nothing, and how many those were."""
    least = _LEAST_TOKENS.get(workload.task, 1)
    kept = indices[texts.lengths[indices] >= least]
    left_out = len(indices) - len(kept)
    if not len(kept):
        raise SpecError("data", len(indices), "no text is long enough to predict anything")
    return kept, [f"{left_out:,} texts of one token left out"] if left_out else []


def _classes(texts: TokenisedTexts, indices: npt.NDArray[np.int64]) -> list[str]:
    """The classes that were found, and those that teach nothing: a stray label makes one too."""
    if texts.labels is None:
        return []
    counts = np.bincount(np.asarray(texts.labels)[indices], minlength=len(texts.label_names))
    named = list(zip(texts.label_names, counts, strict=False))
    shown = ", ".join(f"{name} {count:,}" for name, count in named[:_SHOWN_CLASSES])
    more = " ..." if len(named) > _SHOWN_CLASSES else ""
    lines = [f"{len(named):,} classes: {shown}{more}"]
    empty = int((counts == 0).sum())
    if empty:
        lines.append(f"{empty:,} of the classes have no text to train on")
    if (counts > 0).sum() == 1:
        lines.append("all texts to train on are of one class")
    return lines


def _order(
    job: TrainJob, texts: TokenisedTexts, indices: npt.NDArray[np.int64], ranks: int
) -> Order:
    strategy, settings = job.strategy, job.settings
    usual = strategy.micro_batch * strategy.accumulation * ranks
    lengths = texts.lengths[indices]
    if job.workload.task == "embedding" and texts.second_lengths is not None:
        lengths = lengths + texts.second_lengths[indices]
    return Order(
        lengths=lengths,
        indices=indices,
        global_batch=settings.global_batch or usual,
        micro_batch=strategy.micro_batch,
        ranks=ranks,
        seed=settings.seed,
        tokens_per_batch=strategy.tokens_per_batch,
        group_by_length=settings.group_by_length,
    )


def prepare_run(plan: Plan, world: World, kill: KillSwitch) -> Prepared:
    """Builds what the plan needs: model, optimizer, checkpoints; the expensive part."""
    job = plan.job
    settings, strategy = job.settings, job.strategy
    maker = _maker(job, plan.texts.label_names)
    if settings.export:
        check_export(settings.out / MODEL_FOLDER)
    checkpoints = Checkpoints(
        settings.out / "checkpoints", identity=_identity(plan), keep=settings.keep, phase=kill
    )
    if settings.resume == "never":
        checkpoints.check_empty()
    model = shard(maker, strategy, world)
    optimizer = make_torch_optimizer(
        model.named_parameters(),
        strategy,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    if settings.checkpoint:
        checkpoints.check_space(model, optimizer)
    collator = _collator(plan, maker)
    from rigsize.trace.model import forward_arguments

    return Prepared(
        plan=plan,
        maker=maker,
        model=model,
        optimizer=optimizer,
        scaler=_scaler(job, world),
        recipe=recipe_of(job.workload, strategy, world.device.type),
        feed=Feed(plan.texts, plan.order, collator, world),
        evaluator=_evaluator(plan, collator, world),
        checkpoints=checkpoints,
        arguments=forward_arguments(collator.config, maker.options),
    )


def _maker(job: TrainJob, label_names: tuple[str, ...] = ()) -> ModelMaker:
    return ModelMaker(
        source=job.source,
        workload=job.workload,
        strategy=job.strategy,
        init=job.settings.init,
        seed=job.settings.seed,
        label_names=label_names,
    )


def _evaluator(plan: Plan, collator: Collator, world: World) -> Evaluator | None:
    if plan.held_out is None:
        return None
    micro_batch = plan.job.strategy.micro_batch
    return Evaluator(plan.held_out, plan.eval_indices, collator, world, micro_batch)


def _collator(plan: Plan, maker: ModelMaker) -> Collator:
    job, special = plan.job, plan.texts.special_ids
    config = maker.config()
    text_config = config.get_text_config()
    pad = getattr(text_config, "pad_token_id", None)
    vocabulary = Vocabulary(
        size=int(text_config.vocab_size),
        pad_id=special.get("pad", 0) if pad is None else int(pad),
        mask_id=special.get("mask"),
        special_ids=frozenset(special.values()),
    )
    return Collator(
        job.workload,
        job.strategy,
        maker.options,
        config,
        vocabulary,
        seed=job.settings.seed,
        reads_last=reads_last(job.source),
    )


def _scaler(job: TrainJob, world: World) -> Any:
    return torch.amp.GradScaler(world.device.type) if job.strategy.policy.loss_scaling else None


def _identity(plan: Plan) -> dict[str, Any]:
    """What a checkpoint must agree with: on it hang shapes, losses or the order of the data."""
    job = plan.job
    workload, strategy, settings = job.workload, job.strategy, job.settings
    return {
        "model": job.source.digest,
        "weights": _weights_digest(job),
        "task": workload.task,
        "num_labels": workload.num_labels,
        "max_length": workload.max_length,
        "mask_share": workload.mask_share,
        "method": strategy.method,
        "adapter": [strategy.lora_rank, strategy.lora_targets, strategy.virtual_tokens],
        "precision": strategy.precision,
        "optimizer": strategy.optimizer,
        "global_batch": plan.order.global_batch,
        "group_by_length": settings.group_by_length,
        "data": plan.texts.fingerprint,
        "eval_share": settings.eval_share,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "schedule": settings.schedule,
        "warmup_share": settings.warmup_share,
        "steps": plan.steps,
        "seed": settings.seed,
    }


def _weights_digest(job: TrainJob) -> str:
    """Which weights a run began with: an adapter's checkpoint does not hold its base.

    Of each file its name, its size and the hash of its first MiB, where safetensors keeps names,
    shapes and the first tensors: whole files would take minutes.
    """
    if job.settings.init == "random":
        return f"random {job.settings.seed}"
    if job.source.origin != "folder" or job.source.path is None:
        return job.source.name
    digest = hashlib.sha256()
    for file in sorted(Path(job.source.path).glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + stream.read(2**20))
    return digest.hexdigest()[:16]


def run_folder(out: Path) -> Path:
    """The run's folder, made; SpecError where it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError("out", str(out), f"cannot be made ({error.strerror})") from error
    return out
