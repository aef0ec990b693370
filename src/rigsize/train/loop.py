"""The training loop: one step function, checkpoints, evaluation, early stop, signals."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rigsize.errors import SizingError
from rigsize.run.rank_allocation import rank_allocation
from rigsize.run.record import Record
from rigsize.run.step import train_step
from rigsize.run.supply import lasting
from rigsize.texts.tokenizer import load_tokenizer, tokenizer_place
from rigsize.trace.capture import quiet_transformers
from rigsize.trace.model import named_tensors
from rigsize.train.evaluate import HIGHER_IS_BETTER, main_metric
from rigsize.train.feed import Step
from rigsize.train.interrupt import Interrupt, KillSwitch, listening
from rigsize.train.log import Log
from rigsize.train.outcome import EARLY, FINISHED, INTERRUPTED, Outcome, State
from rigsize.train.parallel import World, before_micro, start_world, stop_world, unwrap
from rigsize.train.progress import Progress, StepReport, make_progress
from rigsize.train.record import record_of
from rigsize.train.schedule import learning_rate_factor
from rigsize.train.settings import TrainJob
from rigsize.train.setup import (
    MODEL_FOLDER,
    Prepared,
    check_job,
    plan_run,
    prepare_run,
    run_folder,
)
from rigsize.train.watch import Pace, Watch

__all__ = ["train"]

_SCANNED_WINDOWS = 200_000


def train(job: TrainJob) -> tuple[Outcome, Record | None]:
    """Trains; collective over the ranks of torchrun. The Record is on the first of them.

    Raises a SizingError for what cannot be run, before the expensive part where that is possible.
    """
    check_job(job)
    if job.strategy.precision == "tf32" or job.device == "cuda":
        tf32 = job.strategy.precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    world = start_world(job.strategy, job.device)
    try:
        with listening() as interrupt:
            outcome = _Trainer(job, world, interrupt).run()
            # A finished run that was resumed has measured nothing.
            return outcome, record_of(outcome) if outcome.micro_batches else None
    except SizingError:
        if world.first:
            _leave_no_empty_folder(job.settings.out)
        raise
    finally:
        stop_world(world)


def _leave_no_empty_folder(out: Path) -> None:
    """A run that was refused leaves no folder that a second try would stumble over."""
    checkpoints = out / "checkpoints"
    if checkpoints.is_dir() and {path.name for path in checkpoints.iterdir()} <= {".lock"}:
        shutil.rmtree(checkpoints, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty, or never made
        out.rmdir()


class _Trainer:
    def __init__(self, job: TrainJob, world: World, interrupt: Interrupt) -> None:
        self.world, self.interrupt = world, interrupt
        self.kill = KillSwitch(world.rank)
        speaks = world.first
        waiting = make_progress(
            "plain" if job.settings.progress in ("rich", "auto") else job.settings.progress,
            0,
            speaks=speaks,
        )
        if world.first:
            run_folder(job.settings.out)
        self.plan = plan_run(job, world, waiting)
        self.job = self.plan.job
        for note in self.plan.notes:
            waiting.note(note)
        self.parts: Prepared = prepare_run(self.plan, world, self.kill)
        self.state = State()
        self.notes: list[str] = []
        self.resumed_step = self._resume(waiting)
        self.progress: Progress = make_progress(
            job.settings.progress, self.plan.steps, speaks=speaks
        )
        settings = self.job.settings
        self.log = (
            Log(
                settings.out / "log.jsonl",
                resumed_step=self.resumed_step,
                tensorboard=settings.tensorboard,
            )
            if world.first
            else None
        )
        self.pace, self.losses = Pace(), list[float]()
        self.watch = Watch(world.device, self._metered_step())
        self.micro_batches = 0
        self._saved_at, self._saved_step = time.monotonic(), -1

    # -- before and after -----------------------------------------------------------------------

    def _resume(self, progress: Progress) -> int:
        """Takes up the newest whole checkpoint; the step it is of, 0 for a new run."""
        checkpoints, settings = self.parts.checkpoints, self.job.settings
        checkpoints.clean()
        found = checkpoints.newest() if settings.resume != "never" else None
        if found is None:
            torch.manual_seed(settings.seed * 1009 + self.world.rank + 1)
            return 0
        kept = checkpoints.load(found, self.parts.model, self.parts.optimizer)
        self.state = State(**kept["state"])
        if self.parts.scaler is not None:
            self.parts.scaler.load_state_dict(kept["scaler"])
        for note in found.skipped:
            progress.note(f"left out a checkpoint: {note}")
        if not kept["random_state_restored"]:
            torch.manual_seed(settings.seed * 1009 + self.world.rank + 1 + found.step)
            self.notes.append("resumed on other ranks: dropout differs from an unbroken run's")
        progress.note(f"resumed from step {found.step:,}")
        return found.step

    def run(self) -> Outcome:
        """To the last step, an early stop or a signal."""
        try:
            ended = self._steps()
            if ended != INTERRUPTED:
                self._evaluate_once()
            self._save()
            folder = self._export() if ended != INTERRUPTED else None
        finally:
            self.progress.close()
            if self.log is not None:
                self.log.close()
        return Outcome(
            plan=self.plan,
            state=self.state,
            ended=ended,
            exit_code=self.interrupt.exit_code if ended == INTERRUPTED else 0,
            world=self.world,
            pace=self.pace,
            watch=self.watch,
            losses=tuple(self.losses),
            model_folder=folder,
            resumed_step=self.resumed_step,
            micro_batches=self.micro_batches,
            notes=(*self.plan.notes, *self.notes),
        )

    def _export(self) -> Path | None:
        from rigsize.train.export import export

        if not self.job.settings.export:
            return None
        folder = self.job.settings.out / MODEL_FOLDER
        place = tokenizer_place(self.job.tokenizer or self.job.source.path or self.job.source.name)
        tokenizer = place if isinstance(place, Path) else load_tokenizer(place)
        with quiet_transformers():
            export(unwrap(self.parts.model), tokenizer, folder)
        return folder

    # -- steps ----------------------------------------------------------------------------------

    def _steps(self) -> str:
        state, steps = self.state, self.plan.steps
        feed = self.parts.feed.steps(state.epoch, state.window)
        while state.step < steps:
            if state.worse and state.worse >= (self.job.settings.patience or math.inf):
                return EARLY
            step = next(feed)
            labelled, stop, save = self.world.sum(
                step.labelled, float(bool(self.interrupt.signal_number)), float(self._save_is_due())
            )
            if stop:
                return INTERRUPTED
            if save:
                self._save()
            self._step(step, labelled)
            self._evaluate_if_due(step)
        return FINISHED

    def _step(self, step: Step, labelled: float) -> None:
        state = self.state
        self.kill.step = state.step
        began = time.perf_counter()
        listen = self.watch.begin(state.step, step, self._kept(step))
        factor = learning_rate_factor(
            self.job.settings.schedule,
            state.step,
            self.plan.steps,
            self.job.settings.warmup_share,
        )
        for group in self.parts.optimizer.param_groups:
            group["lr"] = self.job.settings.learning_rate * factor

        def phase(name: str) -> None:
            self.kill(name)
            if listen is not None:
                listen(name)

        losses = train_step(
            self.parts.model,
            self._inputs(step),
            self.parts.optimizer,
            self.parts.recipe,
            shares=step.shares(labelled, self.world.size),
            scaler=self.parts.scaler,
            phase=phase,
            before_micro=before_micro(self.parts.model),
            after_step=rank_allocation(self.parts.model, state.step + 1, self.plan.steps),
        )
        metered = self.watch.end()
        state.step += 1
        self.micro_batches += len(step.micro_batches)
        state.epoch, state.window = step.epoch, step.window + 1
        self._report(step, losses, factor, time.perf_counter() - began, metered)

    def _inputs(self, step: Step) -> Iterator[Mapping[str, Any]]:
        for batch in step.micro_batches:
            yield batch.to(self.world.device) | dict(self.parts.arguments)

    def _report(
        self,
        step: Step,
        losses: Iterable[torch.Tensor],
        factor: float,
        step_s: float,
        metered: bool,
    ) -> None:
        state, settings = self.state, self.job.settings
        reads = state.step % settings.log_every == 0 or state.step in (1, self.plan.steps)
        real = sum(b.sizes.real_tokens for b in step.micro_batches)
        computed = sum(b.sizes.computed_tokens for b in step.micro_batches)
        if not metered:
            ranks = self.world.size  # every rank has about as much
            self.pace.samples.append((step_s, step.texts, real * ranks, computed * ranks))
        if not reads:
            return
        (total,) = self.world.sum(float(sum(losses, torch.zeros(()))))
        loss = total / self.world.size
        self.losses.append(loss)
        typical_s = self.pace.step_s or step_s
        report = StepReport(
            step=state.step,
            steps=self.plan.steps,
            epoch=state.epoch + state.window / self.plan.order.windows,
            loss=loss,
            learning_rate=settings.learning_rate * factor,
            step_s=step_s,
            real_tokens_per_s=real * self.world.size / step_s,
            examples_per_s=step.texts / step_s,
            padding_share=1 - real / computed,
            memory_bytes=self.watch.peak_bytes,
            left_s=typical_s * (self.plan.steps - state.step),
        )
        self.progress.step(report)
        if self.log is not None:
            self.log.step(report)
        if not math.isfinite(loss) and "the loss is not finite" not in self.notes:
            self.notes.append("the loss is not finite")
            self.progress.note(f"step {state.step}: the loss is not finite")

    # -- evaluation and checkpoints -------------------------------------------------------------

    def _evaluate_if_due(self, step: Step) -> None:
        every = self.job.settings.eval_every
        end_of_epoch = step.window + 1 == self.plan.order.windows
        if self.state.step == self.plan.steps:
            return  # the last one comes behind the loop, on every way out of it
        if self.state.step % every == 0 if every else end_of_epoch:
            self._evaluate()

    def _evaluate_once(self) -> None:
        if self.state.metrics.get("step") != self.state.step:
            self._evaluate()

    def _evaluate(self) -> None:
        evaluator, state = self.parts.evaluator, self.state
        if evaluator is None:
            return
        metrics = evaluator(self.parts.model, self.parts.recipe)
        self.progress.evaluation(state.step, metrics)
        if self.log is not None:
            self.log.evaluation(state.step, metrics)
        name = main_metric(self.job.workload.task)
        value = metrics[name] if name in HIGHER_IS_BETTER else -metrics[name]
        if state.best is None or value > state.best:
            state.best, state.worse = value, 0
        else:
            state.worse += 1
        state.metrics = metrics | {"step": state.step}

    def _save_is_due(self) -> bool:
        settings, step = self.job.settings, self.state.step
        if not settings.checkpoint or step in (self.resumed_step, self._saved_step):
            return False
        if settings.save_every:
            return step % settings.save_every == 0
        return time.monotonic() - self._saved_at > 60 * settings.save_minutes

    def _save(self) -> None:
        state = self.state
        if not self.job.settings.checkpoint or state.step in (self._saved_step, self.resumed_step):
            return
        self.kill.step = state.step
        scaler = None if self.parts.scaler is None else self.parts.scaler.state_dict()
        self.parts.checkpoints.save(
            state.step,
            self.parts.model,
            self.parts.optimizer,
            {"state": asdict(state), "scaler": scaler},
        )
        self._saved_at, self._saved_step = time.monotonic(), state.step

    # -- memory ---------------------------------------------------------------------------------

    def _metered_step(self) -> int | None:
        """On a CPU: the step, from the second on, whose window has the longest micro-batch."""
        if self.world.device.type != "cpu":
            return None
        first = self.state.step
        coming = min(self.plan.steps - first, _SCANNED_WINDOWS)
        if coming < 2:
            return first if coming else None
        sizes = []
        for epoch, window in self._windows_to_come(coming):
            del epoch
            sizes.append(window)
        return first + 1 + max(range(len(sizes) - 1), key=lambda i: sizes[i + 1])

    def _windows_to_come(self, count: int) -> Iterator[tuple[int, int]]:
        """(epoch, tokens of the largest micro-batch) of the next windows."""
        order, lengths = self.plan.order, self.plan.texts.lengths
        unpadded = self.job.workload.padding == "unpadded"
        epoch, start, made = self.state.epoch, self.state.window, 0
        while made < count:
            for window in order.epoch(epoch, start):
                parts = [lengths[part] for ranks in window.micro_batches for part in ranks]
                yield (
                    epoch,
                    max(int(p.sum() if unpadded else len(p) * p.max()) for p in parts),
                )
                made += 1
                if made == count:
                    return
            epoch, start = epoch + 1, 0

    def _kept(self, step: Step) -> Iterator[torch.Tensor]:
        """What lives through a step: parameters, buffers, states, masters, the largest batch."""
        model, optimizer = self.parts.model, self.parts.optimizer
        tensors: list[Any] = [*lasting(model, optimizer)]
        tensors += named_tensors(step.micro_batches[-1].inputs).values()
        for tensor in tensors:
            yield tensor.to_local() if hasattr(tensor, "to_local") else tensor
