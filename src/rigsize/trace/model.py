"""The model that is traced: built by transformers from a config on the meta device.

Sources of the defects worked around here: docs/trace.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rigsize.run import heads, packing
from rigsize.spec.adapter import Adapter
from rigsize.trace import profile, quantized
from rigsize.trace.adapters import adapt
from rigsize.trace.recompute import enable_recompute

AUTO_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "embedding": "AutoModel",
}
ATTENTION_INTERFACES = {"sdpa": None, "eager": "eager", "flash": None}
"""None is transformers' own choice: SDPA where the family has it (DeBERTa, MPNet, BLOOM, Gemma 2
have not), else eager. `flash` is SDPA with the kernel named in Program: same shapes, and no package
to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What of a run changes the model that is built."""

    task: str
    compute: str
    """fp32, amp (fp32 weights under autocast) or half (16-bit weights)."""
    attention: str = "sdpa"
    recompute: str = "none"
    """A word of `spec.recompute`."""
    recomputed: tuple[bool, ...] = ()
    """Of every-N at reduced depth: for each traced block whether it is recomputed."""
    training: bool = True
    num_labels: int = 3
    loss: str = "all"
    """all, masked or chunked: the rows on which the LM head runs (`run.heads`)."""
    unpadded: bool = False
    """Texts one after another in one row (`run.packing`)."""
    flash: bool = True
    """Whether their attention may be FlashAttention: not where a trace is for a card without."""
    adapter: Adapter | None = None
    """What peft adds; base weights are frozen then."""
    quantization: str = ""
    """How base weights are stored, one of `spec.strategy.QUANTIZATIONS`; empty for none."""
    half_dtype: str = "bfloat16"
    """Of 16-bit weights and products. In a trace bf16 stands for both, but where LLM.int8 has its
    own fp16 beside them."""
    trust_remote_code: bool = False
    generates: bool = False
    """Inference with a cache: the decoder starts from its own first token."""

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of what is built."""
        return self.product_dtype if self.compute == "half" else torch.float32

    @property
    def product_dtype(self) -> torch.dtype:
        """Of matrix products."""
        dtype: torch.dtype = getattr(torch, self.half_dtype)
        return torch.float32 if self.compute == "fp32" else dtype


def load_config(config: Mapping[str, Any], options: BuildOptions) -> Any:
    """A transformers config object with what the task needs set."""
    from transformers import AutoConfig

    values = {k: v for k, v in config.items() if k not in ("transformers_version", "auto_map")}
    model_type = values.pop("model_type")
    loaded = AutoConfig.for_model(model_type, **copy.deepcopy(values))
    if options.task in ("sequence-classification", "token-classification"):
        loaded.num_labels = options.num_labels
        loaded.problem_type = "single_label_classification"
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(loaded, name):
            setattr(loaded, name, 0.0)  # a dropped layer would hide the peak
    for part in (loaded, loaded.get_text_config()):  # classifiers read the one of the text's own
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
    languages = getattr(loaded, "languages", None)
    if languages and getattr(loaded, "default_language", None) is None:
        loaded.default_language = languages[0]  # X-MOD: an adapter a language, all of one size
    starts = getattr(loaded, "decoder_start_token_id", None)
    if getattr(loaded, "is_encoder_decoder", False) and starts is None:
        loaded.decoder_start_token_id = loaded.pad_token_id  # T5's files say so, its default not
    return loaded


def build(config: Any, options: BuildOptions, device: str = "meta") -> torch.nn.Module:
    """The model in train or eval mode: on `meta` to be traced, on `cpu` or `cuda` to be run."""
    return prepare(build_base(config, options, device), options)


def build_base(config: Any, options: BuildOptions, device: str = "meta") -> torch.nn.Module:
    """The architecture in the dtype of its weights, as transformers makes it from a config."""
    import transformers

    auto = getattr(transformers, AUTO_CLASSES[options.task])
    dtype = options.weight_dtype
    with torch.device(device):
        model: torch.nn.Module = auto.from_config(
            config, attn_implementation=attention_interface(config, options), dtype=dtype
        )
    untie_as_loaded(model, config, options)
    return model


def attention_interface(config: Any, options: BuildOptions) -> str | None:
    """What transformers is asked for; UnsupportedCombination where texts cannot share a row."""
    if not options.unpadded:
        return ATTENTION_INTERFACES[options.attention]
    packing.check_packable(config, options.task)
    return packing.register()


def prepare(
    model: torch.nn.Module, options: BuildOptions, device: str | None = None
) -> torch.nn.Module:
    """What a run of these options needs of a base model that is built or loaded.

    Recompute before the adapter: peft asks the model for it, and lets the embeddings' output
    require gradients. `device` is where quantised weights go one by one, and the rest with them.
    """
    if options.quantization:
        quantized.quantize(
            model,
            options.quantization,
            options.product_dtype,
            training=options.training,
            device=device,
        )
    if options.recompute != "none":
        enable_recompute(model, options.recompute, options.recomputed)
    if selects_rows(options):
        heads.select_rows(
            model,
            predicts_tokens=options.task.endswith("-lm"),
            chunks=heads.CHUNKS if options.loss == "chunked" else 1,
        )
    model = adapt(model, options.adapter, options.task, training=options.training)
    return model.train(options.training)


def selects_rows(options: BuildOptions) -> bool:
    """Whether a batch has `positions`: the rows of the backbone's output that the head reads."""
    return profile.selects_rows(options.task, options.loss, unpadded=options.unpadded)


def untie_as_loaded(model: torch.nn.Module, config: Any, options: BuildOptions) -> None:
    """T5 v1.1, Flan-T5 and mT5 files hold their own LM head; `from_config` ties it all the same.

    transformers 5.23 sets `tie_word_embeddings` for the family, `from_pretrained` then finds two
    tensors in the file and keeps both. The mark of the family is the gated feed-forward.
    """
    gated = str(getattr(config, "feed_forward_proj", "")).startswith("gated")
    if options.task == "seq2seq-lm" and config.model_type in ("t5", "mt5") and gated:
        head: Any = model.lm_head
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))


def materialize(model: torch.nn.Module, device: torch.device) -> None:
    """Gives every meta parameter and buffer a storage on `device`, tied ones a common one.

    `Module.to_empty` makes a new tensor for each name and so unties what is tied.
    """
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = _moved(parameter, device)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if id(buffer) not in moved:
                    moved[id(buffer)] = torch.empty_like(buffer, device=device)
                module._buffers[name] = moved[id(buffer)]


def _moved(parameter: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
    if quantized.is_quantized(parameter):
        return quantized.move(parameter, device)
    return torch.nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)


def make_batch(
    options: BuildOptions, sizes: Mapping[str, int], device: torch.device | str, *, padded: bool
) -> dict[str, Any]:
    """Inputs of the step, int64 as HF makes them, with no values.

    B texts of S tokens, T target tokens for seq2seq, M rows that the head reads; unpadded texts are
    N tokens of one row, the longest text S of them. Without padding no mask is handed over:
    transformers drops an all-ones mask on every real forward pass, but never while tracing.
    """
    B, S, T = sizes["B"], sizes["S"], sizes.get("T", 0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=device)

    row = (1, sizes["N"]) if options.unpadded else (B, S)
    batch: dict[str, Any] = {"input_ids": tokens(*row)}
    if options.unpadded:
        batch["position_ids"] = tokens(*row)
        batch["packing"] = packing.Packing(
            offsets=torch.empty(B + 1, dtype=torch.int32, device=device),
            grid=tokens(sizes["N"]),
            texts=B,
            longest=S,
            flash=options.flash,
        )
    elif padded:
        batch["attention_mask"] = tokens(B, S)
    labels = {
        "sequence-classification": (B,),
        "embedding": (B,),
        "seq2seq-lm": (B, T),
    }.get(options.task, row)
    if selects_rows(options):
        read = sizes["M"] if options.task.endswith("-lm") else B
        batch["positions"], labels = tokens(read), (read,)
    if options.training:
        batch["labels"] = tokens(*labels)
    elif options.task == "seq2seq-lm" and not options.generates:
        batch["decoder_input_ids"] = tokens(B, T)
    return batch


def named_tensors(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of a batch by name, those of its packing too."""
    found: dict[str, torch.Tensor] = {}
    for name, value in batch.items():
        if isinstance(value, packing.Packing):
            found |= {f"{name}.offsets": value.offsets, f"{name}.grid": value.grid}
        elif isinstance(value, torch.Tensor):
            found[name] = value
    return found


def forward_arguments(config: Any, options: BuildOptions) -> dict[str, Any]:
    """Keyword arguments of every forward call: training and one-pass inference keep no cache."""
    has_cache = getattr(config, "use_cache", None) is not None
    return {"use_cache": False} if has_cache and options.task != "embedding" else {}
