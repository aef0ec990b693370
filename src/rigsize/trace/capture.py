"""One concrete trace: build, place on the fake device, run the step once, return its events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from rigsize.errors import TraceFailed
from rigsize.run.generation import Generation, Held
from rigsize.run.step import StepRecipe, inference_step, micro_step
from rigsize.trace import fake_accelerator
from rigsize.trace.adapters import host_tensors
from rigsize.trace.autocast import clear_weight_casts
from rigsize.trace.model import (
    BuildOptions,
    build,
    forward_arguments,
    make_batch,
    materialize,
    named_tensors,
)
from rigsize.trace.profile import is_embedding
from rigsize.trace.quantized import named_statistics, packed
from rigsize.trace.recorder import Layers, RawTrace, Recorder, join_additions
from rigsize.trace.values import checked_value

DECODED_BEFORE = 2
"""Tokens of a decoding step's keys that are no prompt: its own, and one decoded before it."""


def _nothing(_phase: str) -> None: ...


class Traced:
    """A model on fake tensors that can be traced at any number of sizes.

    `device` is `accelerator` (dispatch as on a GPU) or `cpu` (dispatch as on a CPU, attention
    decomposed as torch does there).
    """

    def __init__(self, config: Any, options: BuildOptions, device: str = "accelerator") -> None:
        self.config, self.options = config, options
        self.device = torch.device("cpu")
        try:  # for a CPU trace too: autograd counts devices at the first backward pass
            accelerator = fake_accelerator.register()
        except TraceFailed:
            if device == "accelerator":
                raise
        else:
            self.device = accelerator if device == "accelerator" else self.device
        self._fake = fake_accelerator.fake_mode()
        self.mode = self._fake.__enter__()
        self._fake.__exit__(None, None, None)
        self.model = build(config, options)
        self.stacks = find_stacks(self.model)
        with self.mode:
            materialize(self.model, self.device)
            tokens = host_tensors(self.model)
            for name, tensor in tokens.items():
                tokens[name] = torch.empty_like(tensor, device="cpu")
        if options.quantization:
            self._settle()

    def _settle(self) -> None:
        """One forward pass: the first moves LLM.int8's scales, and casts biases for good."""
        sizes = {"B": 2, "S": 8, "T": 8, "M": 8, "N": 16}
        recorder = Recorder({}, number_layers(self.stacks), self.device.type)
        with self.mode, recorder:
            options = replace(self.options, generates=False)
            batch = make_batch(options, sizes, self.device, padded=False)
            batch |= forward_arguments(self.config, self.options)
            inference_step(self.model, batch, self._recipe(hold_output=False))
        recorder.close()

    def _recipe(self, *, hold_output: bool, saves_on_host: bool = False) -> StepRecipe:
        return StepRecipe(
            task=self.options.task,
            device_type=self.device.type,
            autocast_dtype=torch.bfloat16 if self.options.compute == "amp" else None,
            hold_output=hold_output,
            saves_on_host=saves_on_host,
        )

    def record(
        self,
        sizes: Mapping[str, int],
        *,
        padded: bool,
        hold_output: bool,
        saves_on_host: bool = False,
    ) -> RawTrace:
        """The events of one micro-step (training) or one forward pass (inference)."""
        options = self.options
        recipe = self._recipe(hold_output=hold_output, saves_on_host=saves_on_host)
        recorder = self._recorder(saves_on_host=saves_on_host)
        with self.mode:
            batch = make_batch(options, sizes, self.device, padded=padded)
            self._adopt(recorder, batch)
            batch |= forward_arguments(self.config, options)
            hooks = self._watch_gradients(recorder)
            try:
                # The order of events is the same on one thread; on the device's own, Falcon's
                # list index aborts the interpreter when it is recomputed.
                single = torch.autograd.set_multithreading_enabled(False)
                told = telling_layers(self.model, recorder)
                with single, told, recorder.watch_modules(), recorder:
                    if options.training:
                        micro_step(self.model, batch, recipe, phase=recorder.set_phase)
                    else:
                        out = inference_step(self.model, batch, recipe, phase=recorder.set_phase)
                        recorder.close()
                        del out
            finally:
                recorder.close()
                for hook in hooks:
                    hook.remove()
                self.model.zero_grad(set_to_none=True)
                clear_weight_casts()
        return join_additions(recorder.trace)

    def record_generation(self, sizes: Mapping[str, int], cache: str, *, padded: bool) -> RawTrace:
        """The events of `prefill` over S tokens, or of one `decode` step that attends to C keys.

        Before that step the model has read all tokens but two and decoded one, so that its cache
        is what it is in the middle of a text.
        """
        decodes = cache == "decode"
        with self.mode:
            batch = make_batch(self.options, self._prompt(sizes, cache), self.device, padded=padded)
            generation = Generation(
                self.model,
                batch,
                self._recipe(hold_output=True),
                target_length=sizes["C"] - DECODED_BEFORE if decodes else 1,
            )
            if decodes:
                self._warm_up(generation)
            recorder = self._recorder()
            self._adopt(recorder, {} if decodes else batch)
            for held in generation.held() if decodes else ():
                recorder.adopt_state(held.name, self._group(held), held.tensor)
            try:
                with recorder.watch_modules(), recorder:
                    step = generation.decode if decodes else generation.prefill
                    step(recorder.set_phase)
                self._carry(recorder, generation)
            finally:
                recorder.close()
                clear_weight_casts()
        return join_additions(recorder.trace)

    def _warm_up(self, generation: Generation) -> None:
        """Under a recorder of its own, which takes bitsandbytes' operators apart."""
        recorder = Recorder({}, number_layers(self.stacks), self.device.type)
        with recorder:
            generation.prefill(_nothing)
            generation.decode(_nothing)
        recorder.close()

    def _prompt(self, sizes: Mapping[str, int], cache: str) -> Mapping[str, int]:
        """A decoder's prompt is all that a decoding step does not add."""
        if cache == "prefill" or self.options.task == "seq2seq-lm":
            return sizes
        return {**sizes, "S": sizes["C"] - DECODED_BEFORE}

    def _carry(self, recorder: Recorder, generation: Generation) -> None:
        """Layer by layer, as tiling wants it; what two names share is told once."""
        found: dict[int, tuple[int, str, torch.Tensor]] = {}
        for held in generation.held():
            storage = recorder.storage_of(held.tensor)
            known = recorder.trace.persistent.get(storage, "")
            if not known or known.startswith("state:"):
                found.setdefault(storage, (self._group(held), held.name, held.tensor))
        for group, name, tensor in sorted(found.values(), key=lambda item: item[0]):
            recorder.carry(name, group, tensor)

    def _group(self, held: Held) -> int:
        """The traced layer that a part of the cache belongs to: those of the last stack."""
        if held.layer < 0 or not self.stacks:
            return 0
        before = sum(len(layers) for _, layers in self.stacks[:-1])
        return before + held.layer + 1 if held.layer < len(self.stacks[-1][1]) else 0

    def _recorder(self, *, saves_on_host: bool = False) -> Recorder:
        names = {module: name for name, module in self.model.named_modules()}
        layers = number_layers(self.stacks)
        return Recorder(
            names,
            layers,
            self.device.type,
            saves_on_host=saves_on_host,
            checked_value=checked_value(self.config.model_type),
        )

    def _adopt(self, recorder: Recorder, batch: Mapping[str, Any]) -> None:
        for name, parameter in named_parameters(self.model):
            recorder.adopt(packed(parameter), f"parameter:{name}")
        for name, tensor in named_statistics(self.model):
            recorder.adopt(tensor, f"scale:{name}")
        for name, buffer in resident_buffers(self.model, self.device):
            recorder.adopt(buffer, f"buffer:{name}")
        for name, tensor in named_tensors(batch).items():
            recorder.adopt(tensor, f"input:{name}")

    def _watch_gradients(self, recorder: Recorder) -> list[Any]:
        def watch(name: str) -> Any:
            return lambda parameter: recorder.gradient_ready(name, parameter)

        if not self.options.training:
            return []
        return [
            parameter.register_post_accumulate_grad_hook(watch(name))
            for name, parameter in named_parameters(self.model)
            if parameter.requires_grad
        ]


def named_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Every parameter once; a tied one by its embedding's name, whichever torch meets first."""
    names: dict[int, tuple[str, torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = names.get(id(parameter))
        if known is None or (is_embedding(name) and not is_embedding(known[0])):
            names[id(parameter)] = (name, parameter)
    return list(names.values())


@contextlib.contextmanager
def telling_layers(model: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """While this lasts a walk over the adapted model's parameters is work of their layers.

    AdaLoRA adds a term for every adapted module to the loss, in a loop outside of all of them
    (`AdaLoraModel.forward`); which layer owns the parameter in hand says where that belongs.
    """
    base: Any = getattr(model, "base_model", None)
    if not hasattr(base, "rankallocator"):
        yield
        return
    inner = base.model
    owners = {
        id(parameter): layer
        for layer in recorder.layers.numbers
        for parameter in layer.parameters()
    }

    def walk(*args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in type(inner).named_parameters(inner, *args, **kwargs):
            recorder.stand_in(owners.get(id(parameter)))
            yield name, parameter
        recorder.stand_in(None)

    inner.named_parameters = walk
    try:
        yield
    finally:
        del inner.named_parameters


def resident_buffers(
    model: torch.nn.Module, device: torch.device
) -> list[tuple[str, torch.Tensor]]:
    """Every buffer on the device, and peft's tensors there that are none."""
    found = [*model.named_buffers(), *host_tensors(model).items()]
    return [(name, tensor) for name, tensor in found if tensor.device.type == device.type]


def find_stacks(model: torch.nn.Module) -> list[tuple[str, list[torch.nn.Module]]]:
    """The stacks of layers: outermost ModuleLists whose members share one class, longest first.

    ALBERT's shared layer is one member called many times and makes no stack.
    """
    stacks: list[tuple[str, list[torch.nn.Module]]] = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or len(module) < 2:
            continue
        if any(name.startswith(f"{outer}.") for outer, _ in stacks):
            continue
        if len({type(member) for member in module}) == 1:
            stacks.append((name, list(module)))
    return stacks


def number_layers(stacks: list[tuple[str, list[torch.nn.Module]]]) -> Layers:
    """Layers counted from 1 through all stacks."""
    members = [layer for _, stack in stacks for layer in stack]
    last, total = set(), 0
    for _, stack in stacks:
        total += len(stack)
        last.add(total)
    return Layers({layer: i + 1 for i, layer in enumerate(members)}, frozenset(last))


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """Transformers' warnings about configs and its own bars are not the user's concern here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
