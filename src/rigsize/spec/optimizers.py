"""The optimizers by name, and what each asks of a run. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.errors import UnsupportedCombination

__all__ = [
    "OPTIMIZERS",
    "OPTIMIZER_ALIASES",
    "PACKAGES",
    "SIXTEEN_BIT_ONLY",
    "WHOLE_MATRICES",
    "fails_on_shards",
    "muon_takes",
    "no_matrix_for_muon",
]

OPTIMIZERS = (
    "adamw-foreach",
    "adamw-fused",
    "adamw-loop",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "adamw-8bit-torchao",
    "adamw-4bit",
    "adamw-fp8",
    "adamw-sr",
    "adafactor",
    "adafactor-foreach",
    "adafactor-hf",
    "lion",
    "lion-8bit",
    "sgd",
    "sgd-momentum",
    "rmsprop",
    "muon",
)
OPTIMIZER_ALIASES = {"adamw": "adamw-foreach"}
"""torch's default on CUDA is foreach."""
PACKAGES = {
    "adamw-8bit": "bitsandbytes",
    "paged-adamw": "bitsandbytes",
    "paged-adamw-8bit": "bitsandbytes",
    "lion": "bitsandbytes",
    "lion-8bit": "bitsandbytes",
    "adamw-8bit-torchao": "torchao",
    "adamw-4bit": "torchao",
    "adamw-fp8": "torchao",
    "adamw-sr": "torchao",
    "adafactor-hf": "transformers",
}
"""What an optimizer needs beside torch, to be run."""
SIXTEEN_BIT_ONLY = ("adamw-sr",)
"""Stochastic rounding is for bf16 weights."""
_WITHOUT_SHARDS = {
    "adafactor": "torch's Adafactor changes the norms of shards in place: DTensor refuses",
    "adafactor-foreach": "torch's Adafactor changes the norms of shards in place: DTensor refuses",
    "adafactor-hf": "transformers' Adafactor mixes shards and plain tensors",
    "adamw-8bit": "bitsandbytes has no kernels for DTensor shards",
    "adamw-4bit": "torchao's 4-bit states fail on the shards of vectors",
    "adamw-fp8": "torchao's fp8 states fail on shards",
    "lion": "bitsandbytes has no kernels for DTensor shards",
    "lion-8bit": "bitsandbytes has no kernels for DTensor shards",
    "paged-adamw": "bitsandbytes has no kernels for DTensor shards",
    "paged-adamw-8bit": "bitsandbytes has no kernels for DTensor shards",
}
"""Their steps raise on what `fully_shard` leaves a rank (torch 2.13, bitsandbytes 0.50.2, torchao
0.18, transformers 5.23; each was tried)."""


def fails_on_shards(name: str) -> str | None:
    """Why a step cannot be made on FSDP2's shards; None where it can."""
    return _WITHOUT_SHARDS.get(name)


WHOLE_MATRICES = ("muon",)
"""A step multiplies a weight with itself, so that no rank can do it on its shard alone."""


def muon_takes(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon steps on a parameter: a matrix of the numbered layers; AdamW on the rest.

    "Muon is an optimizer for 2D parameters of neural network hidden layers. Other parameters, such
    as bias, and embedding, should be optimized by a standard method such as AdamW": torch/optim/
    _muon.py. Embeddings and heads stand outside the layers of every model in transformers.
    """
    return len(shape) == 2 and any(part.isdigit() for part in name.split("."))


def no_matrix_for_muon() -> UnsupportedCombination:
    """The refusal where Muon would step on nothing."""
    return UnsupportedCombination(
        "optim", "muon", "no matrix inside the layers is trained", nearest="adamw-fused"
    )
