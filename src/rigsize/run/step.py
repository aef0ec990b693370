"""The one step function: traced by `rigsize.trace`, executed by `rigsize.run` and `rigsize.train`.

Who holds which variable is part of the recipe, because it decides memory: keeping `out` alive
through the backward pass keeps one logits tensor, 2.05 GB for XLM-R masked LM at 2,048 tokens.
Shape legend: B batch, S length, N tokens of an unpadded row, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from rigsize.run.optimizers import MasterWeights, stepped_parameters
from rigsize.run.packing import Packing

Batch = Mapping[str, Any]
"""Tensors by the names of the model's arguments; `positions` [M] where the head runs on selected
rows (`run.heads`), `packing` for an unpadded row (`run.packing`)."""
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
    saves_on_host: bool = False
    """What autograd saves goes to pinned host memory until the backward pass asks for it."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's context."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.autocast_dtype)

    def saved(self) -> AbstractContextManager[Any]:
        """Where the forward pass saves tensors: `torch.autograd.graph.save_on_cpu` or in place.

        Every tensor of every node is copied, weights and what another node saved already too.
        """
        if not self.saves_on_host:
            return nullcontext()
        pinned = self.device_type != "cpu"
        return torch.autograd.graph.save_on_cpu(pin_memory=pinned, device_type=self.device_type)


def _ignore(_phase: str) -> None: ...


def contrastive_loss(embeddings_BH: torch.Tensor, positives_B: torch.Tensor) -> torch.Tensor:
    """In-batch softmax over cosine similarities; row i's positive is row `positives_B[i]`.

    A row is no candidate for itself. Chen et al. 2020 (SimCLR), equation 1; temperature 0.05 as in
    Gao et al. 2021 (SimCSE).
    """
    unit_BH = torch.nn.functional.normalize(embeddings_BH, dim=-1)
    similarity_BB = unit_BH @ unit_BH.T / 0.05
    similarity_BB.fill_diagonal_(-torch.inf)
    return torch.nn.functional.cross_entropy(similarity_BB, positives_B)


def mean_pool(hidden_BSH: torch.Tensor, attention_mask_BS: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real positions, as sentence-transformers' Pooling does."""
    if attention_mask_BS is None:
        return hidden_BSH.mean(dim=1)
    mask_BS1 = attention_mask_BS.unsqueeze(-1).to(hidden_BSH.dtype)
    return (hidden_BSH * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1e-9)


def mean_pool_packed(hidden_1NH: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Mean over each text of an unpadded row, [B, H]."""
    hidden_NH = hidden_1NH.squeeze(0)
    text_N = packing.grid // packing.longest
    sums_BH = hidden_NH.new_zeros(packing.texts, hidden_NH.shape[-1]).index_add(
        0, text_N, hidden_NH
    )
    return sums_BH / packing.offsets.diff().unsqueeze(-1).to(hidden_NH.dtype)


def forward(model: torch.nn.Module, batch: Batch, recipe: StepRecipe) -> Any:
    """The model's output; with labels in the batch it carries a `loss`."""
    if recipe.task != "embedding":
        return model(**batch)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    out = model(**inputs)
    packing = batch.get("packing")
    if packing is None:
        out["pooled"] = mean_pool(out.last_hidden_state, batch.get("attention_mask"))
    else:
        out["pooled"] = mean_pool_packed(out.last_hidden_state, packing)
    if "labels" in batch:
        out["loss"] = contrastive_loss(out["pooled"], batch["labels"])
    return out


def micro_step(
    model: torch.nn.Module,
    batch: Batch,
    recipe: StepRecipe,
    *,
    share: float = 1.0,
    scaler: Any = None,
    phase: Phase = _ignore,
) -> torch.Tensor:
    """Forward, loss and backward of one micro-batch; returns its share of the loss, detached.

    `share` is this micro-batch's part of all that the optimizer step predicts, over accumulation
    and ranks: its mean loss times it, summed, is the mean over everything, as one device would have
    it. `out` is a local name: it lives to the end of this function when the recipe holds it.
    """
    phase("forward")
    with recipe.saved(), recipe.autocast():
        out = forward(model, batch, recipe)
        loss = out["loss"]
    if share != 1.0:
        loss = loss * share
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
    shares: Sequence[float],
    scaler: Any = None,
    phase: Phase = _ignore,
    before_micro: Callable[[bool], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[torch.Tensor]:
    """One optimizer step over `len(shares)` micro-batches; returns their shares of the loss.

    `before_micro(last)` is where DDP and FSDP are told whether gradients travel now, `after_step`
    where AdaLoRA looks at them for the last time (`run.rank_allocation`).
    """
    losses = []
    # `zip` would hold the batch that is over while the next one is made.
    for number, batch in enumerate(batches, start=1):
        if before_micro is not None:
            before_micro(number == len(shares))
        share = shares[number - 1]
        losses.append(micro_step(model, batch, recipe, share=share, scaler=scaler, phase=phase))
    phase("optimizer")
    apply_gradients(optimizer, recipe, scaler)
    if after_step is not None:
        after_step()
    phase("zero_grad")
    optimizer.zero_grad(set_to_none=True)
    return losses


def apply_gradients(
    optimizer: torch.optim.Optimizer, recipe: StepRecipe, scaler: Any = None
) -> None:
    """Clips what backward left and steps on it."""
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


def inference_step(
    model: torch.nn.Module, batch: Batch, recipe: StepRecipe, *, phase: Phase = _ignore
) -> Any:
    """One forward pass without gradients; the caller holds the output."""
    phase("forward")
    with torch.no_grad(), recipe.autocast():
        out = forward(model, batch, recipe)
    phase("after_forward")
    return out
