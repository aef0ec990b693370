"""Every flag of every verb, once: the command line, the keys of a spec file and their tests.

All values arrive as text and are parsed behind `cli_settings`: each mistake is one line of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from keyword import iskeyword

__all__ = ["ARGUMENTS", "MODEL", "VERBS", "VERBS_LATER", "Flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option."""

    name: str
    """Without its dashes; the key of a spec file is the same with underscores."""
    help: str = ""
    values: str = "TEXT"
    """What to write behind it, for the help."""
    switch: bool = False
    """Takes no value."""
    negatable: bool = False
    """A switch that also exists as `--no-NAME`."""
    later: bool = False
    """Of the contract, refused by name until it is answered."""

    @property
    def key(self) -> str:
        """The name in a spec file and as a Python parameter, `from_` where Python owns the word."""
        name = self.name.replace("-", "_")
        return f"{name}_" if iskeyword(name) else name

    @property
    def options(self) -> tuple[str, ...]:
        """As typed: `--json`, `--padding-in-batch` and `--no-padding-in-batch`."""
        return (f"--{self.name}", *([f"--no-{self.name}"] if self.negatable else []))


MODEL = Flag(name="model", help="Bundled name, folder, config.json or hub id.", values="MODEL")


def _flag(name: str, values: str, help_: str) -> Flag:
    return Flag(name=name, help=help_, values=values)


def _switch(name: str, help_: str, *, negatable: bool = False) -> Flag:
    return Flag(name=name, help=help_, switch=True, negatable=negatable)


_WHAT = (
    _flag(
        "task",
        "TASK",
        "sequence-classification, token-classification, masked-lm, causal-lm, seq2seq-lm or"
        " embedding; by default what the architecture is mostly used for.",
    ),
    _flag("num-labels", "N", "Classes of a classification head; 3 by default."),
    _flag("use", "USE", "inference, fine-tuning (the default) or pre-training."),
    _flag(
        "max-length",
        "S|auto",
        "Tokens a text; by default 512 (decoders 1024), never more than the model's positions."
        " auto: the longest that fits.",
    ),
    _flag("max-target-length", "T", "Target tokens a text, seq2seq-lm only; --max-length else."),
    _flag(
        "padding",
        "HOW",
        "fixed (the default), dynamic, or unpadded: texts one after another in one row.",
    ),
    _switch(
        "padding-in-batch",
        "Whether batches hold padded positions (yes by default): it decides the mask and with it"
        " the attention kernel.",
        negatable=True,
    ),
    _flag("mask-share", "X", "Of a text's tokens that masked-lm predicts; 0.15 by default."),
    _flag(
        "prompt-length",
        "P|auto",
        "Tokens that a decoder, or an encoder before it, reads (inference with a cache)."
        " auto: the longest that fits.",
    ),
    _flag("max-new-tokens", "N", "Tokens to write behind the prompt; 20 where one is given."),
    _flag("examples", "N", "Texts an epoch, for hours; memory does not depend on it."),
    _flag("epochs", "N", "Epochs, 1 by default; memory does not depend on it."),
)
_HOW = (
    _flag(
        "method",
        "METHOD",
        "full (the default), or by peft: lora, dora, ia3, adalora, prefix, prompt, and on quantised"
        " weights qlora and int8-lora.",
    ),
    _flag("lora-rank", "R", "Rank of the LoRA methods; 8 by default."),
    _flag("lora-dropout", "X", "Before the adapter's first product; 0 by default."),
    _switch("rslora", "Scale LoRA by the root of its rank."),
    _flag("lora-targets", "NAMES", "Modules to adapt, comma separated; peft's choice by default."),
    _flag("adapter-dtype", "DTYPE", "fp32 (the default, as peft has it) or same as the weights."),
    _flag("virtual-tokens", "N", "Of prefix and prompt tuning; 20 by default."),
    _flag(
        "quantization",
        "KIND",
        "How base weights are stored: nf4, nf4-double, int8 (bitsandbytes), int8-torchao,"
        " int4-torchao or fp8; by default what method and precision say.",
    ),
    _flag(
        "precision",
        "POLICY",
        "fp32 (the default), tf32, amp-bf16, amp-fp16, bf16, fp16-master; for inference also fp16,"
        " int8, int4 and fp8.",
    ),
    _flag(
        "optim",
        "OPTIMIZER",
        "adamw (= adamw-foreach, torch's default on CUDA), adamw-fused, adamw-loop, sgd,"
        " sgd-momentum, rmsprop, adafactor, adafactor-foreach or muon; by bitsandbytes adamw-8bit,"
        " paged-adamw, paged-adamw-8bit, lion or lion-8bit; by torchao adamw-8bit-torchao,"
        " adamw-4bit, adamw-fp8 or adamw-sr; by transformers adafactor-hf.",
    ),
    _flag("batch-size", "B|auto", "Texts a GPU at a time; 8 by default. auto: the largest."),
    _flag("global-batch", "N", "Texts an optimizer step; sets the accumulation."),
    _flag("grad-accum", "N|auto", "Micro-batches an optimizer step; auto needs --global-batch."),
    _flag("attention", "KIND", "sdpa (the default), eager or flash."),
    _flag(
        "recompute",
        "WHAT",
        "none (the default); block: a block's activations are computed again; selective: all but"
        " its products and attention; every-2, every-3, ...: the first block of every so many.",
    ),
    _flag(
        "loss",
        "WHERE",
        "The LM head runs over all positions (the default), the masked ones that are predicted, or"
        " these chunked, their logits computed again in the backward pass.",
    ),
    _flag(
        "tokens-per-batch",
        "N",
        "Token budget of an unpadded micro-batch, instead of a number of texts.",
    ),
    _flag("max-grad-norm", "X", "Norm that gradients are clipped to, 0 for none; 1 by default."),
    _switch(
        "hold-output",
        "Whether the loop keeps the model's output through the backward pass (yes by default).",
        negatable=True,
    ),
    _flag("parallel", "HOW", "single (the default), ddp, fsdp, hsdp, zero1, zero2 or zero3."),
    _flag("shard-size", "N", "Ranks that share one copy of the states with hsdp; a node's else."),
    _switch(
        "reshard",
        "Whether FSDP frees a block's parameters after its forward pass (yes by default).",
        negatable=True,
    ),
    _switch("bucket-view", "DDP's gradient_as_bucket_view: no second copy of the gradients."),
    _flag(
        "offload",
        "WHAT",
        "none (the default), cpu, cpu-params, optimizer or activations: what goes to the host.",
    ),
    _switch("optim-in-backward", "Step on each parameter as soon as its gradient is there."),
    _switch("compile", "torch.compile the model."),
    _flag(
        "recipe",
        "NAME",
        "Flags by name, where none are given: seed (what the article did), lean (the same"
        " mathematics on less), lean-8bit and lean-bf16 (which change rounding).",
    ),
)
_FROM = (
    _flag("spec", "FILE", "TOML file of these flags, as keys; the command line wins over it."),
    _switch("trust-remote-code", "Allow a model's own code, which runs on this machine."),
    _switch("offline", "Never ask the hub."),
)
_JSON = _switch("json", "One JSON document on stdout, errors too.")
_DATA = (
    _flag("data", "FILE", "JSONL, CSV, TSV, Parquet, text, a saved folder or a hub id."),
    _flag("text-column", "NAME", "Guessed by its usual names, and said, where not given."),
    _flag("label-column", "NAME", "Class or one tag a token."),
    _flag("target-column", "NAME", "Target of seq2seq-lm, positive of embedding."),
    _flag("tokenizer", "NAME", "Folder or hub id; the model's own by default."),
)
_HISTOGRAM = _flag("histogram", "FILE", "Texts of these lengths: [[tokens, texts], ...], as JSON.")
_MEASURE = (
    _HISTOGRAM,
    _flag("world", "N", "One rank's share of FSDP over N, in a fake process group."),
    _flag("cap", "SIZE", "Prove that it fits a card of this size: 40GiB. CUDA only."),
    _flag("snapshot", "FILE", "Write what was alive at the peak; .pickle for torch's viewer."),
    _switch("attribution", "Bytes at the peak by what they are: weights, gradients, states."),
)
_EVAL_SHARE = _flag("eval-share", "X", "Of the data that is held out to evaluate on; 0 by default.")
_SAVE_MINUTES = _flag("save-minutes", "X", "Minutes between checkpoints; 30 by default.")
_OFFERS = _flag("offers", "FILE", "Own machines and prices, a CSV file in the same columns.")
_ACCELERATORS = _flag(
    "accelerators", "FILE", "Own cards, a CSV file in the columns of the packaged table."
)
_NETWORK = _flag("network", "GBIT", "Gbit/s that each node sends to the others; 100 assumed.")
_TIME = (
    _switch(
        "time",
        "Hours and price too, traced once where they are not stored; --no-time leaves them out.",
        negatable=True,
    ),
    _EVAL_SHARE,
    _SAVE_MINUTES,
    _flag("offer", "NAME", "Price of this machine, an instance of `rigsize offers`; the cheapest."),
    _flag("provider", "NAME", "Price of the cheapest machine of this provider."),
    _flag("region", "NAME", "Price in this region of the provider."),
    _switch("spot", "The spot price."),
    _OFFERS,
    _flag("own-price", "USD", "Of machines bought instead: hours until they are cheaper."),
    _flag("power-price", "USD", "A kilowatt-hour, beside --own-price; 0.15 by default."),
    _flag(
        "calibration",
        "FILE|none",
        "Record of `calibrate` to take; by default the newest of this card on this machine.",
    ),
)
_TRAIN = (
    _flag("eval-data", "FILE", "Texts to evaluate on, in the format of --data."),
    _EVAL_SHARE,
    _flag("out", "FOLDER", "Log, checkpoints, Record and model; by default runs/MODEL-TASK."),
    _flag("learning-rate", "X", "At its peak; 5e-5 by default."),
    _flag("weight-decay", "X", "0.01 by default, torch's for AdamW."),
    _flag("schedule", "KIND", "linear (the default), cosine or constant, behind the warm-up."),
    _flag("warmup-share", "X", "Of the steps; 0.1 by default."),
    _flag("max-steps", "N", "Optimizer steps in all, instead of epochs."),
    _flag("eval-every", "N", "Steps; once an epoch by default."),
    _flag("save-every", "N", "Steps between checkpoints; by default --save-minutes."),
    _SAVE_MINUTES,
    _flag("keep", "N", "Checkpoints that are kept; 2 by default."),
    _switch("checkpoint", "Whether checkpoints are written (yes by default).", negatable=True),
    _flag("patience", "N", "Evaluations without improvement before it stops; never by default."),
    _flag("log-every", "N", "Steps between the losses that are read; 10 by default."),
    _flag("init", "HOW", "pretrained (the default) or random weights."),
    _switch("resume", "Go on from the newest whole checkpoint of --out."),
    _switch("group-by-length", "Texts of like lengths share a step: less padding, other batches."),
    _flag("progress", "KIND", "auto, rich, plain, json or quiet; on stderr."),
    _switch("tensorboard", "Write TensorBoard files too."),
    _switch("export", "Whether the model is saved at the end (yes by default).", negatable=True),
    _switch("predict", "Whether the prediction is made (yes by default).", negatable=True),
    _flag("ranks", "N", "Start N ranks on this machine through torchrun, for ddp and fsdp."),
    _flag("max-restarts", "N", "With --ranks: restarts after a rank died; 3 by default."),
)
_EMITTED = (
    *("eval-data", "eval-share", "learning-rate", "weight-decay", "schedule", "warmup-share"),
    *("max-steps", "init"),
)

VERBS: dict[str, tuple[Flag, ...]] = {
    "estimate": (
        *_WHAT,
        *_HOW,
        _flag(
            "gpus",
            "NAME[:N[xM]]",
            "The card, N a node, M nodes: A100-80GB, H100:8x2, L4, cpu; `rigsize gpus` lists them.",
        ),
        _flag("host-memory", "SIZE", "Memory of each node, to be checked too: 256GiB."),
        _NETWORK,
        _ACCELERATORS,
        _flag("headroom", "SIZE|%", "Memory of the card to leave free: 2GiB or 10%."),
        _flag("fail-over", "SIZE", "Exit with 3 when the peak is above this: 24GiB."),
        *_TIME,
        *_FROM,
        _switch("explain", "Who holds the bytes at the peak, and how memory moves in a step."),
        _JSON,
        *_DATA,
        _HISTOGRAM,
    ),
    "compare": (
        *_WHAT,
        *_HOW,
        _flag("gpus", "NAME[:N[xM]]", "The card, N a node, M nodes, as of estimate."),
        _ACCELERATORS,
        _flag("record", "ID|FILE", "A Record: its run is compared, and what it measured shown."),
        *_FROM,
        _JSON,
    ),
    "plan": (
        *_WHAT,
        *_HOW,
        _flag("max-price", "USD", "At most so much for the whole run."),
        _flag("max-hours", "H", "At most so many hours for the whole run, p50."),
        _flag("max-gpus", "N", "At most so many devices; 1024 by default."),
        _flag("gpu", "NAME", "Only this card: A100 covers all of them."),
        _ACCELERATORS,
        _flag("provider", "NAME", "Only this provider: aws, azure, gcp, lambda, runpod, ..."),
        _flag("region", "NAME", "Only this region of the provider."),
        _switch("spot", "Spot prices, and only offers that have one."),
        _flag("offers", "FILE", "Own machines and prices, a CSV file as of `rigsize offers`."),
        _flag("own", "NAME:N[xM]", "Machines one has: H100:8x2; no offers then."),
        _flag("network", "GBIT", "Gbit/s that each of one's own machines sends; 100 assumed."),
        _flag("power-price", "USD", "Of a kilowatt-hour: own machines cost their cards' energy."),
        _flag("host-memory", "SIZE", "Memory of each of one's own machines: 512GiB."),
        _flag("headroom", "SIZE|%", "Memory of each card to leave free: 2GiB or 10%."),
        _flag(
            "allow",
            "WHAT",
            "What changes the mathematics or rounding, comma separated: lower-precision (8-bit"
            " states, bf16 weights), adapters (LoRA).",
        ),
        _switch("scaling", "How hours and price grow with the number of nodes."),
        *_DATA,
        _HISTOGRAM,
        *_FROM,
        _JSON,
    ),
    "table": (
        _flag(
            "use", "USE", "fine-tuning or pre-training alone; inference: the table it announces."
        ),
        _JSON,
    ),
    "measure": (
        *_WHAT,
        *_HOW,
        _flag("device", "DEVICE", "cpu or cuda; by default cuda where torch sees one."),
        _flag("steps", "N", "Optimizer steps, 3 or more (the default); times need 7."),
        _flag("seed", "N", "Of the random weights and tokens; 0 by default."),
        *_DATA,
        *_MEASURE,
        _flag("suite", "FILE", "Run a file of jobs instead of one model: TOML or JSON lines."),
        _flag("max-minutes", "N", "With --suite: no job is started after, a running one ends."),
        _flag(
            "out",
            "PATH",
            "Where Records go: a folder (one model; by default under the user's data folder), or"
            " with --suite a file that is appended to and taken up again.",
        ),
        *_FROM,
        _JSON,
    ),
    "train": (
        *_WHAT,
        *_HOW,
        *_DATA,
        *_TRAIN,
        _flag("device", "DEVICE", "cpu or cuda; by default cuda where torch sees one."),
        _flag("seed", "N", "Of weights, order, masks and dropout; 0 by default."),
        *_FROM,
        _JSON,
    ),
    "data": (
        _flag("task", "TASK", "What the texts are for; sequence-classification by default."),
        *(flag for flag in _DATA if flag.name != "data"),
        _flag("max-length", "S", "The limit that texts are cut at; 512 by default."),
        _flag("batch-size", "B", "Of the padding shares; 8 by default."),
        _flag("out", "FILE", "Where the length histogram goes, as JSON."),
        _JSON,
    ),
    "validate": (
        _flag("cases", "FILE", "Published cases; validation/cases.toml by default."),
        _flag("records", "FOLDER", "Records; validation/records by default."),
        _flag("page", "FILE", "The page to write; docs/validation.md by default."),
        _JSON,
    ),
    "gpus": (
        _switch("here", "The devices of this machine, as their drivers report them."),
        _ACCELERATORS,
        _JSON,
    ),
    "offers": (
        _flag("gpu", "NAME[:N]", "Only this card: A100 covers all of them, A100-80GB:8 eight."),
        _flag("provider", "NAME", "Only this provider: aws, azure, gcp, lambda, runpod, ..."),
        _flag("count", "N", "Only machines with exactly N GPUs."),
        _flag("max-price", "USD", "At most so much an hour, for the whole machine."),
        _switch("spot", "Spot prices, and only offers that have one."),
        _flag("region", "NAME", "Only this region of the provider."),
        _switch("fractional", "Slices of a GPU too; no training is planned on one."),
        _OFFERS,
        _ACCELERATORS,
        _flag("from", "DIR|URL", "Of refresh: a folder of gpuhunt's files, or a mirror."),
        _flag("limit", "N", "How many to show, 40 by default; --json has all."),
        _JSON,
    ),
    "records": (_flag("out", "FILE", "Of export: a .csv or .jsonl file."), _JSON),
    "calibrate": (
        _flag("device", "DEVICE", "cpu or cuda; by default cuda where torch sees one."),
        _switch("quick", "Fewer sizes: a quarter of a minute instead of two."),
        _flag("out", "FOLDER", "Where the Record goes; by default where it is looked for."),
        _JSON,
    ),
    "emit": (
        *_WHAT,
        *_HOW,
        _flag("gpus", "NAME[:N[xM]]", "The card, N a node, M nodes, as of estimate."),
        _ACCELERATORS,
        _flag("host-memory", "SIZE", "Memory of each node, kept in the spec file."),
        _flag("network", "GBIT", "Gbit/s that each node sends, kept in the spec file."),
        _flag("plan", "FILE", "What `rigsize plan --json` printed, instead of all of these."),
        _flag("pick", "WHICH", "Of the plan's: cheapest (the default), fastest, smallest or N."),
        _flag("out", "FOLDER", "Where the files go."),
        _switch("force", "Write over files that are there."),
        *_DATA,
        *(flag for flag in _TRAIN if flag.name in _EMITTED),
        _flag("seed", "N", "Of weights, order, masks and dropout, for `rigsize train`."),
        *_FROM,
        _JSON,
    ),
}
"""The flags of each verb."""

ARGUMENTS: dict[str, tuple[Flag, ...]] = {
    "estimate": (MODEL,),
    "compare": (MODEL,),
    "measure": (MODEL,),
    "train": (MODEL,),
    "emit": (MODEL,),
    "plan": (MODEL,),
    "data": (
        _flag("action", "stats|demo", "stats FILE, or demo: obtain the demonstration's data."),
        _flag("file", "FILE", "JSONL, CSV, TSV, Parquet, text, a saved folder or a hub id."),
    ),
    "gpus": (_flag("gpu", "NAME", "One card with every figure and its source."),),
    "offers": (_flag("action", "refresh", "refresh: read today's prices first."),),
    "records": (
        _flag("action", "ls|show|export", "ls [FOLDER], show ID|FILE [FOLDER], export FOLDER."),
        _flag("what", "WHAT", "A Record's id or file for show; else the folder."),
        _flag("folder", "FOLDER", "Of show; by default where `measure` writes."),
    ),
}
"""What a verb takes before its flags."""

VERBS_LATER = (
    "fit",
    "serve",
)
"""Verbs of the contract that a later release answers."""
