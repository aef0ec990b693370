"""Quantised storages: those of the real libraries, layer by layer and in whole models."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trace.tiny import CONFIGS

from rigsize.keys import trace_key
from rigsize.models import resolve_model
from rigsize.spec import Strategy, Workload
from rigsize.trace.domains import exact_label
from rigsize.trace.model import BuildOptions, build, load_config, materialize
from rigsize.trace.quantized import named_statistics, packed, quantize, shape_of
from rigsize.trace.session import Session
from rigsize.trace.sizes import evaluate

BLOCKS = ((64, 64), (128, 320), (48, 40), (33, 70), (256, 1088))
"""[outputs, inputs]: whole blocks of 64 and 256, and neither."""
METHODS = ("nf4", "nf4-double", "int8", "int8-torchao", "fp8")


class OneLayer(torch.nn.Module):
    """Just enough of a transformers model for its quantizers."""

    _keep_in_fp32_modules: list[str] | None = None

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.all_tied_weights_keys: dict[str, str] = {}
        self.tp_plan: dict[str, str] = {}
        self.ep_plan: dict[str, str] = {}
        self.layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
        self.last = torch.nn.Linear(2, 2, dtype=dtype)
        self.config = load_config(CONFIGS["bert"], BuildOptions(task="masked-lm", compute="fp32"))

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.last


def bytes_of(model: torch.nn.Module) -> dict[str, int]:
    """Every storage of a model by name."""
    found = {n: packed(p).untyped_storage().nbytes() for n, p in model.named_parameters()}
    return found | {n: t.untyped_storage().nbytes() for n, t in named_statistics(model)}


def real_layer(outputs: int, inputs: int, method: str) -> dict[str, int]:
    """What the library's own layer holds on the CPU, asked of the library."""
    plain = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    if method in ("int8-torchao", "fp8"):
        api = importlib.import_module("torchao.quantization")
        config = api.Int8WeightOnlyConfig() if method == "int8-torchao" else None
        api.quantize_(plain, config or api.Float8WeightOnlyConfig())
        weight: Any = plain.weight
        names, _ = weight.__tensor_flatten__()
        return {n: getattr(weight, n).untyped_storage().nbytes() for n in names}
    nn = importlib.import_module("bitsandbytes.nn")
    layer = (
        nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
        if method == "int8"
        else nn.LinearNF4(inputs, outputs, bias=False, compress_statistics=method == "nf4-double")
    )
    layer.load_state_dict(plain.state_dict())
    state = layer.to("cpu").state_dict()
    saved = {n: t.untyped_storage().nbytes() for n, t in state.items() if "bitsandbytes" not in n}
    return {n: size for n, size in saved.items() if n != "weight_format"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_a_layer_holds_what_the_library_s_layer_holds(shape: tuple[int, int], method: str) -> None:
    made = OneLayer(*shape, torch.bfloat16).to("meta")
    quantize(made, method, torch.bfloat16, training=False)
    ours = {n: size for n, size in bytes_of(made).items() if n.startswith("layer")}
    # The offset of nested scales is a number in a state dict, on the card a tensor of 4 bytes.
    offset = ours.pop("layer.weight.nested_offset", None)
    assert offset == (4 if method == "nf4-double" else None)
    assert sorted(ours.values()) == sorted(real_layer(*shape, method).values())


def test_nf4_by_hand() -> None:
    made = OneLayer(256, 1088, torch.bfloat16).to("meta")
    quantize(made, "nf4-double", torch.bfloat16, training=False)
    found = bytes_of(made)
    # 256 x 1088 = 278,528 weights, two a byte; a scale byte each 64; four bytes each 256 of those
    # (4,352 scales: 17 groups); the codes of 16 and of 256 values; the offset.
    assert found["layer.weight"] == 139_264
    assert found["layer.weight.absmax"] == 4_352
    assert found["layer.weight.nested_absmax"] == 17 * 4
    assert found["layer.weight.quant_map"] == 16 * 4
    assert found["layer.weight.nested_quant_map"] == 256 * 4
    assert shape_of(dict(made.named_parameters())["layer.weight"]) == (256, 1088)


def test_int4_of_torchao_by_hand() -> None:
    made = OneLayer(250, 1152, torch.bfloat16).to("meta")
    quantize(made, "int4-torchao", torch.bfloat16, training=False)
    found = bytes_of(made)
    # `Int4TilePackedTo4dTensor.from_hp`: inputs padded to 2048, outputs to 256; half a byte each;
    # scale and zero point of 2 bytes a group of 128.
    assert found["layer.weight"] == 256 * 2048 // 2
    assert found["layer.weight.scale_and_zero"] == 256 * (2048 // 128) * 2 * 2


def from_pretrained(family: str, task: str, folder: Path, method: str) -> torch.nn.Module:
    """A tiny model as transformers itself loads it with the library's config, on the CPU."""
    transformers: Any = importlib.import_module("transformers")

    options = BuildOptions(task=task, compute="half")
    plain: Any = build(load_config(CONFIGS[family], options), options, "cpu")
    plain.save_pretrained(folder)
    api: Any = importlib.import_module("torchao.quantization")
    config = {
        "nf4": lambda: transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4"
        ),
        "nf4-double": lambda: transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        "int8": lambda: transformers.BitsAndBytesConfig(load_in_8bit=True),
        "int8-torchao": lambda: transformers.TorchAoConfig(api.Int8WeightOnlyConfig()),
        "fp8": lambda: transformers.TorchAoConfig(api.Float8WeightOnlyConfig()),
    }[method]()
    loaded: torch.nn.Module = type(plain).from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    return loaded


WHOLE = [
    ("llama", "causal-lm", "nf4"),
    ("llama", "causal-lm", "int8"),
    ("llama", "sequence-classification", "nf4-double"),
    ("qwen2", "causal-lm", "int8-torchao"),
    ("xlm-roberta", "sequence-classification", "nf4"),
    ("xlm-roberta", "masked-lm", "int8"),
    ("xlm-roberta", "sequence-classification", "fp8"),
    ("gpt2", "causal-lm", "nf4"),
    ("t5", "seq2seq-lm", "int8"),
    ("mixtral", "causal-lm", "nf4"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task", "method"), WHOLE)
def test_a_model_holds_what_transformers_loads(
    family: str, task: str, method: str, tmp_path: Path
) -> None:
    real = from_pretrained(family, task, tmp_path, method)
    options = BuildOptions(task=task, compute="half", quantization=method, training=False)
    ours = build(load_config(CONFIGS[family], options), options)
    assert bytes_of(ours) == bytes_of(real)


def test_fused_experts_stay_as_they_are() -> None:
    options = BuildOptions(task="causal-lm", compute="half", quantization="nf4", training=False)
    model = build(load_config(CONFIGS["mixtral"], options), options)
    kept = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert any("experts" in name for name in kept)
    assert not any("self_attn" in name for name in kept)


def test_what_an_adapter_s_head_trains_is_no_integer() -> None:
    options = BuildOptions(task="sequence-classification", compute="half", quantization="nf4")
    model = build(load_config(CONFIGS["xlm-roberta"], options), options)
    heads = {n: p.dtype for n, p in model.named_parameters() if n.startswith("classifier")}
    assert set(heads.values()) == {torch.bfloat16}
    # For inference transformers keeps none of it: the last parameter, which it skips, is a bias.
    served = build(load_config(CONFIGS["xlm-roberta"], options), replace(options, training=False))
    assert served.get_parameter("classifier.dense.weight").dtype == torch.uint8


@pytest.mark.parametrize("method", [*METHODS, "int4-torchao"])
def test_a_moved_model_holds_the_same(method: str) -> None:
    options = BuildOptions(task="causal-lm", compute="half", quantization=method, training=False)
    model = build(load_config(CONFIGS["llama"], options), options)
    before = bytes_of(model)
    materialize(model, torch.device("cpu"))
    assert bytes_of(model) == before
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "method"),
    [
        ("meta-llama/Llama-3.1-8B", "causal-lm", "nf4-double"),
        ("mistralai/Mixtral-8x7B-v0.1", "causal-lm", "nf4"),
        ("FacebookAI/xlm-roberta-large", "sequence-classification", "int8"),
    ],
)
def test_whole_models_count_as_the_libraries_have_them(name: str, task: str, method: str) -> None:
    """All layers, tiled from the traced few, beside every layer replaced by transformers."""
    source = resolve_model(name)
    workload = Workload(model=name, task=task, use="inference", max_length=16)
    strategy = Strategy(precision="bf16", quantization=method)
    key = trace_key(source, workload, strategy, device="cuda")
    session = Session(source.config, key)
    profile = session.profile([exact_label({"B": 2, "S": 16})])
    tiled = {
        n.removeprefix("scale:"): evaluate(t.size, {"1": 1})
        for n, t, _ in profile.full_tensors()
        if not n.startswith(("input:", "buffer:"))
    }
    whole = build(load_config(source.config, session.options), session.options)
    assert tiled == bytes_of(whole)
    counted = sum(math.prod(shape_of(p)) for p in whole.parameters())
    plain = replace(session.options, quantization="")
    unquantized = build(load_config(source.config, plain), plain)
    assert counted == sum(p.numel() for p in unquantized.parameters())
