"""Base weights as bitsandbytes and torchao store them, put there by transformers' own quantizers.

Which layers stay as they are is transformers' choice (`HfQuantizer.get_modules_to_not_convert`,
`replace_with_bnb_linear`, `TorchAoHfQuantizer.param_needs_quantization`): tied weights, the output
embedding, the last module, and whatever is no Linear: embeddings, norms, experts fused into one
parameter. The libraries quantise on any device, the meta device too, so that the storages of a
traced model are theirs by construction.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from rigsize.errors import MeasurementFailed

__all__ = [
    "is_quantized",
    "move",
    "named_statistics",
    "packed",
    "quantize",
    "shape_of",
]

TRAINED_HEADS = ["classifier", "score"]
"""What peft trains beside its adapters in a classifier (`modules_to_save` of
`PeftModelForSequenceClassification`): integers have no gradients, so they stay as they are."""
INT4_GROUP = 128
"""torchao's default group (`Int4WeightOnlyConfig.group_size`)."""


def quantize(
    model: torch.nn.Module,
    method: str,
    dtype: torch.dtype,
    *,
    training: bool,
    device: torch.device | str | None = None,
) -> torch.nn.Module:
    """`model` with its linear layers stored as `method`, one of `spec.strategy.QUANTIZATIONS`.

    `dtype` is that of the products. Weights are quantised where they are, or each on `device`, and
    the rest follows.
    """
    base: Any = model
    quantizer = _quantizer(base, method, dtype, training=training)
    linear = {name: module for name, module in base.named_modules() if _has_matrix(module)}
    quantizer.preprocess_model(base, device_map=None)
    while linear:  # each weight goes when it has become the other
        name, module = linear.popitem()
        place = module.weight.device if device is None else torch.device(device)
        _store(base, quantizer, name, module.weight.detach().to(place, dtype))
        made = base.get_submodule(name)
        if made is not module and module.bias is not None:
            made.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
    quantizer.postprocess_model(base)
    return model if device is None else model.to(device)


def _has_matrix(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D))


def _quantizer(model: Any, method: str, dtype: torch.dtype, *, training: bool) -> Any:
    """Transformers' quantizer with the library's defaults; LLM.int8's threshold is 6."""
    from transformers.quantizers.auto import AutoHfQuantizer
    from transformers.quantizers.base import HfQuantizer

    asked = getattr(model.config, "quantization_config", None)  # a quantised checkpoint's own
    skipped = asked.get("llm_int8_skip_modules") if isinstance(asked, dict) else None
    if training:
        skipped = [*(skipped or HfQuantizer.get_modules_to_not_convert(model)), *TRAINED_HEADS]
    make = _bitsandbytes if method in ("nf4", "nf4-double", "int8") else _torchao
    return AutoHfQuantizer.from_config(make(method, dtype, skipped), pre_quantized=False)


def _bitsandbytes(method: str, dtype: torch.dtype, skipped: list[str] | None) -> Any:
    from transformers import BitsAndBytesConfig

    functional = _library("bitsandbytes.functional")
    # Whichever device comes first would keep the only copy, the meta device too.
    functional.name2qmap.setdefault("dynamic", functional.create_dynamic_map())
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast to fp16
    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def _torchao(method: str, _dtype: torch.dtype, skipped: list[str] | None) -> Any:
    from transformers import TorchAoConfig

    library = _library("torchao.quantization")
    config = {
        "int8-torchao": lambda: library.Int8WeightOnlyConfig(set_inductor_config=False),
        "int4-torchao": lambda: library.Int4WeightOnlyConfig(
            group_size=INT4_GROUP,
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        ),
        "fp8": lambda: library.Float8WeightOnlyConfig(set_inductor_config=False),
    }[method]()
    return TorchAoConfig(quant_type=config, modules_to_not_convert=skipped)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise MeasurementFailed(
            "quantization",
            package,
            f"quantised weights need the package {package}, which is not installed",
            hint="pip install 'rigsize[quantization]'",
        ) from error


def _store(model: Any, quantizer: Any, name: str, weight: torch.Tensor) -> None:
    """Quantises one weight, as the quantizer's `convert` does (`Bnb4bitQuantize`, ...)."""
    module = model.get_submodule(name)
    if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
        from transformers.pytorch_utils import Conv1D

        if issubclass(module.source_cls, Conv1D):
            weight = weight.T.contiguous()
        # On a CPU with AVX512-BF16 alone, `Linear4bit.forward` would pack the weights anew in a
        # format of its own, for matrices of whole 32 rows: a run must not depend on the host.
        module.support_avx512bf16_for_cpu = False
        old = module.weight
        # `.to` of either class leaves the meta device alone; what it calls elsewhere does not.
        module.weight = type(old)(weight, requires_grad=False, **old.__dict__)._quantize(
            weight.device
        )
    elif quantizer.param_needs_quantization(model, f"{name}.weight"):
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        with _as_on_a_card(weight.device):
            kind = quantizer.quantization_config.get_apply_tensor_subclass()
            _library("torchao.quantization").quantize_(module, kind, _always)


def _always(_module: torch.nn.Module, _name: str) -> bool:
    return True


@contextlib.contextmanager
def _as_on_a_card(device: torch.device) -> Iterator[None]:
    """`Int4TilePackedTo4dTensor.from_hp` asks the card in the machine what it is."""
    if device.type == "cuda":
        yield
        return
    with mock.patch("torch.cuda.get_device_capability", return_value=(8, 0)):
        yield


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether a parameter is of a library's own kind, with statistics beside it."""
    return any(hasattr(parameter, mark) for mark in ("quant_state", "has_fp16_weights", "qdata"))


def packed(parameter: torch.Tensor) -> torch.Tensor:
    """The tensor whose storage holds a parameter's values."""
    held: torch.Tensor = getattr(parameter, "qdata", parameter)
    return held


def shape_of(parameter: torch.Tensor) -> tuple[int, ...]:
    """What a parameter stands for: packed 4-bit weights are one long column."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def named_statistics(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What quantised weights keep beside themselves, by the names of a state dict."""
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or not is_quantized(weight):
            continue
        for name, tensor in _statistics(module, weight).items():
            yield f"{path}.weight.{name}", tensor


def _statistics(module: Any, weight: Any) -> dict[str, torch.Tensor]:
    state = getattr(weight, "quant_state", None)
    if state is not None:
        found = {"absmax": state.absmax, "quant_map": state.code}
        if state.nested:
            found |= {
                "nested_absmax": state.state2.absmax,
                "nested_quant_map": state.state2.code,
                "nested_offset": state.offset,
            }
        return found
    if hasattr(weight, "qdata"):
        names, _ = weight.__tensor_flatten__()
        return {name: getattr(weight, name) for name in names if name != "qdata"}
    # The first forward pass moves it from the weight to the module's state.
    scales = weight.SCB if weight.SCB is not None else module.state.SCB
    return {"SCB": scales}


def move(parameter: torch.Tensor, device: torch.device) -> torch.nn.Parameter:
    """A quantised parameter with storages of its own on `device`, with no values in them."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=device)

    if hasattr(parameter, "qdata"):
        wrapper: Any = parameter
        names, context = wrapper.__tensor_flatten__()
        inner = {name: empty(getattr(wrapper, name)) for name in names}
        whole = type(wrapper).__tensor_unflatten__(inner, context, wrapper.shape, wrapper.stride())
        return torch.nn.Parameter(whole, requires_grad=False)
    # No fake tensor can be of bitsandbytes' own class; forward passes ask for attributes alone.
    made = torch.nn.Parameter(empty(parameter.data), requires_grad=False)
    made.__dict__.update(parameter.__dict__)
    moved: Any = made
    if getattr(moved, "quant_state", None) is not None:
        moved.quant_state = moved.module.quant_state = _moved_state(moved.quant_state, empty)
    else:
        moved.CB, moved.SCB = made.data, empty(moved.SCB)
    return made


def _moved_state(state: Any, empty: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A QuantState with new storages."""
    moved = copy.copy(state)
    moved.absmax, moved.code = empty(state.absmax), empty(state.code)
    if state.nested:
        moved.offset, moved.state2 = empty(state.offset), _moved_state(state.state2, empty)
    return moved
