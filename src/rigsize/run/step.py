"""The one step function: traced by `rigsize.trace`, executed by `rigsize.run`.

Who holds which variable is part of the recipe, because it decides memory: keeping `out` alive
through the backward pass keeps one logits tensor, 2.05 GB for XLM-R masked LM at 2,048 tokens.
Shape legend: B batch, S length, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from rigsize.run.optimizers import MasterWeights, stepped_parameters

Batch = Mapping[str, torch.Tensor]
Phase = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecipe:
    """What of a step's code decides its memory."""

    task: str
    """One of `rigsize.spec.TASKS`."""
    autocast_dtype: torch.dtype | None = None
    """Run the forward pass under autocast with this dtype."""
    device_type: str = "cuda"
    """The autocast device: cpu, cuda, or the fake accelerator's name."""
    hold_output: bool = True
    """`out = model(...); out.loss.backward()` keeps `out`; False frees all but the loss."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient norm before the optimizer step; None skips it."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's context."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.autocast_dtype)


def _ignore(_phase: str) -> None: ...


def contrastive_loss(embeddings_BH: torch.Tensor, positives_B: torch.Tensor) -> torch.Tensor:
    """In-batch softmax over cosine similarities; row i's positive is row `positives_B[i]`.

    van den Oord et al. 2018 (InfoNCE), temperature 0.05 as in Gao et al. 2021 (SimCSE).
    """
    unit_BH = torch.nn.functional.normalize(embeddings_BH, dim=-1)
    similarity_BB = unit_BH @ unit_BH.T / 0.05
    return torch.nn.functional.cross_entropy(similarity_BB, positives_B)


def mean_pool(hidden_BSH: torch.Tensor, attention_mask_BS: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real positions, as sentence-transformers' Pooling does."""
    if attention_mask_BS is None:
        return hidden_BSH.mean(dim=1)
    mask_BS1 = attention_mask_BS.unsqueeze(-1).to(hidden_BSH.dtype)
    return (hidden_BSH * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1e-9)


def forward(model: torch.nn.Module, batch: Batch, recipe: StepRecipe) -> Any:
    """The model's output; with labels in the batch it carries a `loss`."""
    if recipe.task != "embedding":
        return model(**batch)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    out = model(**inputs)
    out["pooled"] = mean_pool(out.last_hidden_state, batch.get("attention_mask"))
    if "labels" in batch:
        out["loss"] = contrastive_loss(out["pooled"], batch["labels"])
    return out


def micro_step(
    model: torch.nn.Module,
    batch: Batch,
    recipe: StepRecipe,
    *,
    accumulation: int = 1,
    scaler: Any = None,
    phase: Phase = _ignore,
) -> torch.Tensor:
    """Forward, loss and backward of one micro-batch; returns the detached loss.

    `out` is a local name: it lives to the end of this function when the recipe holds it.
    """
    phase("forward")
    with recipe.autocast():
        out = forward(model, batch, recipe)
        loss = out["loss"]
    if accumulation > 1:
        loss = loss / accumulation
    if not recipe.hold_output:
        del out
    phase("backward")
    (loss if scaler is None else scaler.scale(loss)).backward()
    phase("after_backward")
    detached: torch.Tensor = loss.detach()
    return detached


def train_step(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    recipe: StepRecipe,
    *,
    accumulation: int = 1,
    scaler: Any = None,
    phase: Phase = _ignore,
) -> list[torch.Tensor]:
    """One optimizer step over `accumulation` micro-batches; returns their losses."""
    losses = [
        micro_step(model, batch, recipe, accumulation=accumulation, scaler=scaler, phase=phase)
        for batch in batches
    ]
    phase("optimizer")
    if isinstance(optimizer, MasterWeights):
        optimizer.collect_gradients()
    if scaler is not None:
        scaler.unscale_(optimizer)
    if recipe.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(stepped_parameters(optimizer), recipe.max_grad_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    phase("zero_grad")
    optimizer.zero_grad(set_to_none=True)
    return losses


def inference_step(
    model: torch.nn.Module, batch: Batch, recipe: StepRecipe, *, phase: Phase = _ignore
) -> Any:
    """One forward pass without gradients; the caller holds the output."""
    phase("forward")
    with torch.no_grad(), recipe.autocast():
        out = forward(model, batch, recipe)
    phase("after_forward")
    return out
