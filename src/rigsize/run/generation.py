"""Generation with a cache, one forward pass at a time: traced by `trace`, executed by `run`.

It mirrors `GenerationMixin.generate` and `_sample` of transformers 5.23 (generation/utils.py) for
greedy search: which tensors are made, and which of them a local name there keeps alive while the
next forward pass runs: the inputs of the last one, its scores in fp32, the tokens chosen. The
model's own methods prepare inputs and cache; an end-of-text token is never looked for, so every
text writes as many tokens as are asked for.
Shape legend: B texts, P tokens of the prompt, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from rigsize.errors import UnsupportedCombination
from rigsize.run.step import StepRecipe

__all__ = ["Generation", "Held"]

Phase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that one forward pass leaves to the next."""

    name: str
    """`cache.*.keys` where it belongs to a layer, `input_ids` where it does not."""
    layer: int
    """The layer's number in the decoder from 0; -1 outside."""
    tensor: torch.Tensor


def _whose_generate(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model whose `generate` runs.

    `PeftModelForCausalLM.generate` calls its base model's (peft 0.21), into whose modules adapters
    of LoRA's kind and IA3 are put.
    """
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


class Generation:
    """One call of `generate`, to be driven by hand: `prefill`, then `decode` as often as wanted.

    Attributes are the local names of `_sample`; `given` is what the callers above it hold.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batch: Mapping[str, Any],
        recipe: StepRecipe,
        *,
        target_length: int = 1,
    ) -> None:
        """`target_length` tokens are there already for the decoder of an encoder-decoder."""
        self.model: Any = _whose_generate(model)
        self.target_length = target_length
        self.recipe = recipe
        config: Any = self.model.config
        self.encodes = bool(config.is_encoder_decoder)
        self.settings = _settings(self.model)
        self.given = dict(batch)
        self.input_ids: Any = batch["input_ids"]
        self.kwargs: dict[str, Any] = {k: v for k, v in batch.items() if k != "input_ids"}
        self.model_inputs: Any = None
        self.scores: Any = None
        self.tokens: Any = None
        self.unfinished: Any = None

    def prefill(self, phase: Phase) -> None:
        """`generate` up to the first forward pass, that pass, and the first token."""
        phase("forward")
        with torch.no_grad(), self.recipe.autocast():
            self._prepare()
            self.given |= self.kwargs  # `generate` keeps what it handed to `_sample`
            batch = self.input_ids.shape[0]
            self.unfinished = torch.ones(batch, dtype=torch.long, device=self.input_ids.device)
            outputs = self.model._prefill(
                self.input_ids, self.settings, self.kwargs, is_first_iteration=True
            )
            self._choose(outputs)
        phase("after_forward")

    def decode(self, phase: Phase) -> None:
        """One token more for every text."""
        phase("forward")
        with torch.no_grad(), self.recipe.autocast(), self.decoding():
            self.model_inputs = self.model.prepare_inputs_for_generation(
                self.input_ids, next_sequence_length=1, **self.kwargs
            )
            self._choose(self.model(**self.model_inputs, return_dict=True))
        phase("after_forward")

    def decoding(self) -> AbstractContextManager[Any]:
        """Experts of a mixture run by another implementation while tokens are written."""
        switch: AbstractContextManager[Any] = self.model._optimize_model_for_decode()
        return switch

    def _prepare(self) -> None:
        """Steps 3 to 7 of `generate`."""
        inputs, kwargs = self.input_ids, self.kwargs
        arguments = set(inspect.signature(self.model.forward).parameters)
        if not self.encodes:
            self._positions(inputs, arguments)
        self.kwargs = kwargs = self.model._maybe_prepare_encoder_kwargs_for_generation(
            inputs, kwargs, "input_ids", self.settings
        )
        if self.encodes:
            shape = (inputs.shape[0], self.target_length)
            start = torch.ones(shape, dtype=torch.long, device=inputs.device)
            self.input_ids = start * int(self.model.config.decoder_start_token_id or 0)
        if self.model._supports_logits_to_keep():
            kwargs["logits_to_keep"] = 1
        self._make_cache(inputs.shape[0])
        kwargs["use_cache"] = True

    def _positions(self, inputs: torch.Tensor, arguments: set[str]) -> None:
        """A mask that masks nothing is dropped once the positions are counted from it."""
        kwargs, padded = self.kwargs, "attention_mask" in self.kwargs
        if "attention_mask" in arguments and not padded:
            kwargs["attention_mask"] = torch.ones(
                inputs.shape[:2], dtype=torch.long, device=inputs.device
            )
        if "position_ids" in arguments:
            kwargs["position_ids"] = self.model._prepare_position_ids_for_generation(inputs, kwargs)
        if "attention_mask" in arguments:
            (kwargs["attention_mask"] == 1).all()  # its answer is known: `padded`
            if not padded:
                self.settings._mask_length = inputs.shape[1]
                kwargs["attention_mask"] = None

    def _make_cache(self, batch: int) -> None:
        from transformers.generation.configuration_utils import GenerationMode

        # A dynamic cache does not ask for the final length.
        self.model._prepare_cache_for_generation(
            self.settings, self.kwargs, GenerationMode.GREEDY_SEARCH, batch, 0
        )

    def _choose(self, outputs: Any) -> None:
        """The body of the loop in `_sample` behind the forward pass."""
        self.kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.kwargs, is_encoder_decoder=self.encodes
        )
        device = self.input_ids.device
        logits_BV = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=device)
        self.scores = logits_BV
        self.tokens = torch.argmax(logits_BV, dim=-1)
        self.input_ids = torch.cat([self.input_ids, self.tokens[:, None]], dim=-1)
        self.unfinished = self.unfinished & ~self._stopping()
        _ = self.unfinished.max() == 0  # `_sample` waits for its answer here

    def _stopping(self) -> torch.Tensor:
        """`StoppingCriteriaList` with the length alone."""
        shape, device = (self.input_ids.shape[0],), self.input_ids.device
        done = torch.full(shape, False, device=device, dtype=torch.bool)
        return done | torch.full(shape, False, device=device, dtype=torch.bool)

    # -- what is alive between two forward passes -------------------------------------------------

    def held(self) -> Iterator[Held]:
        """Every tensor that is alive between two forward passes, weights left out."""
        layers = self._cache_layers()
        for prefix, index, layer in layers:
            for name, tensor in _tensors_of(vars(layer)):
                yield Held(f"{prefix}.*.{name}", index, tensor)
        others = (
            ("input_ids", self.input_ids),
            ("scores", self.scores),
            ("tokens", self.tokens),
            ("unfinished", self.unfinished),
        )
        for label, value in others:
            yield Held(label, -1, value)
        for label, values in (
            ("kwargs", self.kwargs),
            ("model_inputs", self.model_inputs or {}),
            ("given", self.given),
        ):
            for name, tensor in _tensors_of(values):
                yield Held(f"{label}.{name}", -1, tensor)

    def _cache_layers(self) -> list[tuple[str, int, Any]]:
        """(kind of cache, number of the layer, its part of the cache)."""
        cache = self.kwargs.get("past_key_values", self.kwargs.get("cache_params"))
        if cache is None:
            return []
        if hasattr(cache, "cross_attention_cache"):
            parts = {
                "cache": cache.self_attention_cache,
                "cross_cache": cache.cross_attention_cache,
            }
        else:
            parts = {"cache": cache}
        return [
            (prefix, index, layer)
            for prefix, part in parts.items()
            for index, layer in enumerate(getattr(part, "layers", ()))
        ]


def _tensors_of(values: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in nested dicts, lists and model outputs, by path."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for name, value in items:
        path = f"{prefix}{name}"
        if isinstance(value, torch.Tensor):
            yield path, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _tensors_of(value, f"{path}.")


def _settings(model: Any) -> Any:
    """The model's generation settings with everything but a greedy search taken out."""
    found = getattr(model, "generation_config", None)
    if found is None or not hasattr(model, "_prefill"):
        raise UnsupportedCombination(
            "use",
            "inference",
            f"{type(model).__name__} cannot generate",
            hint="leave out the cache",
        )
    settings = copy.deepcopy(found)
    settings.cache_implementation = None
    settings.prefill_chunk_size = None
    settings.use_cache = True
    settings.is_assistant = False
    settings.output_attentions = settings.output_hidden_states = None
    return settings
