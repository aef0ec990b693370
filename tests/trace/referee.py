"""The referee: allocator events of a real CPU step, as torch.profiler saw them, beside our trace.

The profiler's allocator events come from c10's own reporter, not from a dispatch mode, so nothing
of the recorder's machinery can make the two agree. Each event is given to the outermost operator
that the trace knows by name (composites such as `aten::linear` never reach a dispatch mode); what
is left after the named exceptions must be the same births in the same order, the same deaths
between them, and the same live bytes.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from rigsize.run.step import StepRecipe, inference_step, micro_step
from rigsize.trace.capture import Traced
from rigsize.trace.model import BuildOptions, build, forward_arguments, load_config, make_batch
from rigsize.trace.recorder import ALLOC, FREE, RawTrace

SIZES = {"B": 2, "S": 40, "T": 24}
SCALAR_BYTES = 8
RANDOM_STATE_BYTES = torch.get_rng_state().numel()
FP32_GAMMA_AND_BETA = (2 * 4 * 96, 2 * 4 * 56)
"""For the widths of norms in `CONFIGS`."""
ALIASES = {"aten::new_zeros": "aten::zeros"}
"""`value_selecting_reduction_backward` asks for zeros in other words under a dispatch mode."""
ALWAYS_KNOWN = frozenset({"aten::copy", "aten::add", "aten::scatter_add", "aten::sum"})
"""Operators with scratch that may be in the trace only as in-place forms, or only as a scalar."""

_ENCODER = {
    "vocab_size": 5003,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 208,
    "max_position_embeddings": 131,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
}
_DECODER = {
    "vocab_size": 5003,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 208,
    "max_position_embeddings": 131,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_BART = {
    "vocab_size": 5003,
    "d_model": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 208,
    "decoder_ffn_dim": 176,
    "max_position_embeddings": 131,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
_T5 = {
    "vocab_size": 5003,
    "d_model": 96,
    "d_ff": 208,
    "d_kv": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "xlm-roberta": _ENCODER | {"model_type": "xlm-roberta"},
    "xlm-roberta-xl": _ENCODER | {"model_type": "xlm-roberta-xl"},
    "bert": _ENCODER | {"model_type": "bert", "type_vocab_size": 2},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 5003,
        "dim": 96,
        "hidden_dim": 208,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 131,
    },
    "albert": _ENCODER
    | {
        "model_type": "albert",
        "embedding_size": 56,
        "num_hidden_layers": 4,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 2,
    },
    "electra": _ENCODER | {"model_type": "electra", "embedding_size": 56, "type_vocab_size": 2},
    "mpnet": _ENCODER | {"model_type": "mpnet"},
    "deberta-v2": _ENCODER
    | {
        "model_type": "deberta-v2",
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "pooler_hidden_size": 96,
    },
    "modernbert": {
        "model_type": "modernbert",
        "vocab_size": 5003,
        "hidden_size": 96,
        "intermediate_size": 104,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 131,
        "global_attn_every_n_layers": 3,
        "local_attention": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 5003,
        "n_positions": 131,
        "n_embd": 96,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": _DECODER
    | {"model_type": "gpt_neox", "rotary_pct": 0.25, "use_parallel_residual": True},
    "llama": _DECODER | {"model_type": "llama"},
    "qwen2": _DECODER | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _DECODER | {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": _DECODER
    | {
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
    },
    "gemma3_text": _DECODER
    | {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window_pattern": 2,
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": 5003,
        "hidden_size": 96,
        "n_layer": 2,
        "n_head": 4,
        "pad_token_id": 3,
    },
    "falcon": {
        "model_type": "falcon",
        "vocab_size": 5003,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "max_position_embeddings": 131,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "mixtral": _DECODER
    | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {
        "model_type": "mamba",
        "vocab_size": 5003,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "state_size": 8,
        "conv_kernel": 4,
        "expand": 2,
        "time_step_rank": 6,
        "pad_token_id": 0,
    },
    "t5": _T5 | {"model_type": "t5", "feed_forward_proj": "relu"},
    "mt5": _T5
    | {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": _BART | {"model_type": "bart"},
    "m2m_100": _BART | {"model_type": "m2m_100", "activation_function": "relu"},
}
"""Every family at sizes that no two kinds of tensors share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One step to be refereed."""

    family: str
    task: str
    compute: str = "fp32"
    attention: str = "sdpa"
    recompute: bool = False
    training: bool = True
    padded: bool = True
    hold_output: bool = True

    def __str__(self) -> str:
        words = [self.family, self.task, self.compute, self.attention]
        words += ["recompute"] * self.recompute
        words += ["train" if self.training else "infer"]
        words += ["padded" if self.padded else "unpadded"]
        words += ["released"] * (not self.hold_output)
        return "-".join(words)

    def options(self) -> BuildOptions:
        return BuildOptions(
            task=self.task,
            compute=self.compute,
            attention=self.attention,
            recompute=self.recompute,
            training=self.training,
        )


@dataclass(slots=True)
class Event:
    """A birth, or (with `born` set) the death of an earlier one."""

    op: str
    num_bytes: int
    born: Event | None = None
    path: tuple[str, ...] = ()
    """Profiler only: the operators inside the call of `op`, down to the allocator."""
    scratch: bool = False
    """Profiler only: freed inside the same call of `op`."""


def traced(case: Case) -> RawTrace:
    """Our trace of the case, dispatched as on a CPU."""
    options = case.options()
    model = Traced(load_config(CONFIGS[case.family], options), options, "cpu")
    return model.record(SIZES, padded=case.padded, hold_output=case.hold_output)


def trace_events(trace: RawTrace) -> list[Event]:
    """Births and deaths of the trace; operators without their overload, as the profiler has it."""
    births: dict[int, Event] = {}
    events = []
    for event in trace.events:
        if event.kind == ALLOC:
            name = event.op.partition(".")[0]
            births[event.storage] = Event(ALIASES.get(name, name), event.num_bytes)
            events.append(births[event.storage])
        elif event.kind == FREE and event.storage in births:
            born = births[event.storage]
            events.append(Event(born.op, born.num_bytes, born))
    return events


def real_batch(case: Case) -> dict[str, Any]:
    """The trace's own batch with values that a real step accepts."""
    options = case.options()
    batch: dict[str, Any] = make_batch(options, SIZES, "cpu", padded=case.padded)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in batch.items():
        few = name == "labels" and case.task in ("sequence-classification", "token-classification")
        high = SIZES["B"] if case.task == "embedding" and name == "labels" else 3 if few else 1000
        tensor.random_(0 if high < 1000 else 4, high, generator=generator)
    if case.padded:
        batch["attention_mask"].fill_(1)[0, -3:] = 0
    return batch


def profiled(case: Case) -> Any:
    """The profiler's tree of one real step on the CPU, the second of two."""
    options = case.options()
    torch.manual_seed(0)
    config = load_config(CONFIGS[case.family], options)
    model = build(config, options, "cpu")
    batch = real_batch(case) | forward_arguments(config, options)
    recipe = StepRecipe(
        task=case.task,
        autocast_dtype=torch.bfloat16 if case.compute == "amp" else None,
        device_type="cpu",
        hold_output=case.hold_output,
    )
    # A look at the first and last tokens, to warn of padding: no part of the step, not traced.
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
    held: list[Any] = []

    def step() -> None:
        if case.training:
            micro_step(model, batch, recipe)
        else:
            held.append(inference_step(model, batch, recipe))

    step()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    return prof.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]


def _allocations(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        if node.typed[0] == _EventType.Allocation:
            yield node
        yield from _allocations(node.children)


def _chain(node: Any) -> list[Any]:
    """The operators around a node, outermost first."""
    chain = []
    while (node := node.parent) is not None:
        chain.append(node)
    return chain[::-1]


def _only_wraps(node: Any, inside: list[Any]) -> bool:
    """A frame of autocast or autograd, with another operator below it that dispatch sees first.

    Autocast casts the arguments of an operator and calls it again; autograd clones what an in-place
    operator is about to overwrite and its backward still wants.
    """
    within = inside[0].name if inside else ""
    if within == "aten::to" and node.name != "aten::sum":  # which sums again itself, in float
        return any(child.name == node.name for child in node.children)
    return within == "aten::clone" and bool(node.name.endswith("_"))


def _birth(num_bytes: int, born: list[Any], died: list[Any], known: frozenset[str]) -> Event:
    """Gives a birth to the outermost known operator around it.

    In-place operators never give birth in the trace: what dies inside them is their scratch.
    """
    for index, node in enumerate(born):
        if _only_wraps(node, born[index + 1 :]):
            continue
        name = ALIASES.get(node.name, node.name)
        scratch = any(node is other for other in died)
        if name in known or (scratch and name.removesuffix("_") in known | ALWAYS_KNOWN):
            path = tuple(inner.name for inner in born[index + 1 :])
            return Event(name, num_bytes, path=path, scratch=scratch)
    return Event("", num_bytes, path=tuple(node.name for node in born))


def profiler_events(tree: Any, known: frozenset[str]) -> list[Event]:
    """Births and deaths as the CPU allocator reported them; what lived before is left out."""
    nodes = sorted(_allocations(tree), key=lambda node: node.start_time_ns)
    born_at: dict[int, int] = {}
    death_of: dict[int, int] = {}
    for index, node in enumerate(nodes):
        found = node.typed[1]
        if found.alloc_size > 0:
            born_at[found.ptr] = index
        elif found.ptr in born_at:
            death_of[born_at.pop(found.ptr)] = index
    events: list[Event | None] = [None] * len(nodes)
    for index, node in enumerate(nodes):
        if node.typed[1].alloc_size <= 0:
            continue
        death = death_of.get(index)
        died = [] if death is None else _chain(nodes[death])
        birth = _birth(node.typed[1].alloc_size, _chain(node), died, known)
        events[index] = birth
        if death is not None:
            events[death] = Event(birth.op, birth.num_bytes, birth)
    return [event for event in events if event is not None]


@dataclass(frozen=True, slots=True)
class Exemption:
    """What the profiler sees and a dispatch mode cannot; never a tensor that outlives its call."""

    name: str
    reason: str
    applies: Callable[[Event], bool]
    outlives: bool = False
    """The one kind that need not be freed in its call: it has an exact size and no operator."""


def _any_of(*rules: Callable[[Event], bool]) -> Callable[[Event], bool]:
    return lambda event: any(rule(event) for rule in rules)


def _in(*operators: str) -> Callable[[Event], bool]:
    return lambda event: event.op in operators


def _under(*operators: str) -> Callable[[Event], bool]:
    """An allocation below one of the operators, inside the call."""
    return lambda event: any(name in operators for name in event.path)


def _both(*rules: Callable[[Event], bool]) -> Callable[[Event], bool]:
    return lambda event: all(rule(event) for rule in rules)


EXEMPTIONS: tuple[Exemption, ...] = (
    Exemption(
        "scalar",
        "a Python number that C++ wraps as a tensor of one element, below dispatch"
        " (`scalar_to_tensor` of c10/core/ScalarOps.h, `wrapped_scalar_tensor`)",
        lambda event: event.num_bytes <= SCALAR_BYTES,
    ),
    Exemption(
        "conversion",
        "a CPU kernel converts operands of another dtype itself, the one it writes included"
        " (`TensorIteratorBase::compute_types` of ATen/TensorIterator.cpp, ATen/native/ReduceOps)",
        _any_of(_under("aten::_to_copy"), _both(_in("aten::add_"), _under("aten::empty_like"))),
    ),
    Exemption(
        "sums of bf16 in fp32",
        "gather, scatter_add and some sums work in a float copy of what they write"
        " (`create_acc_buffer` of ATen/native/cpu/ScatterGatherKernel.cpp,"
        " `should_use_acc_buffer` of ATen/native/ReduceOps.cpp)",
        _both(
            _in("aten::gather", "aten::scatter_add_", "aten::sum"),
            lambda event: event.path == ("aten::empty",),
        ),
    ),
    Exemption(
        "contiguous argument",
        "a kernel copies an argument that is not laid out as it wants it"
        " (`indices.reshape`, `grad.contiguous()` of ATen/native/Embedding.cpp; BLAS operands)",
        _under("aten::contiguous", "aten::reshape", "aten::clone"),
    ),
    Exemption(
        "packed matrices",
        "MKL and oneDNN repack operands of a product (mkldnn_bf16_gemm of"
        " ATen/native/mkldnn/Matmul.cpp, scratchpads of oneDNN)",
        _in("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
    ),
    Exemption(
        "attention on CPU",
        "tiles and row sums of the CPU's flash kernel"
        " (`cpu_flash_attention` of ATen/native/cpu/FlashAttentionKernel.cpp)",
        _in(
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        ),
    ),
    Exemption(
        "rows that are all masked",
        "`_safe_softmax` looks for rows of minus infinity (ATen/native/SoftMax.cpp)",
        _both(_in("aten::_safe_softmax"), _under("aten::isneginf", "aten::eq", "aten::all")),
    ),
    Exemption(
        "inside composite kernels",
        "`repeat` and `histc` work out positions and bins by other operators"
        " (ATen/native/TensorShape.cpp, ATen/native/cpu/HistogramKernel.cpp), `sort` an index",
        _in("aten::repeat", "aten::histc", "aten::sort"),
    ),
    Exemption(
        "convolution on CPU",
        "oneDNN reorders weights and inputs (ATen/native/mkldnn/Conv.cpp)",
        _in("aten::convolution", "aten::convolution_backward"),
    ),
    Exemption(
        "partial sums of a norm",
        "one row of gamma and beta gradients for each thread, and gamma and beta in fp32 for bf16"
        " inputs (`LayerNormBackwardKernelImplInternal`, `LayerNormKernelImplInternal` of"
        " ATen/native/cpu/layer_norm_kernel.cpp)",
        _any_of(
            _both(_in("aten::native_layer_norm_backward"), _under("aten::resize_")),
            _both(_in("aten::native_layer_norm"), lambda e: e.num_bytes in FP32_GAMMA_AND_BETA),
        ),
    ),
    Exemption(
        "random state",
        "checkpoint keeps the CPU generator's state, on a GPU too (`get_rng_state` of"
        " torch/utils/checkpoint.py): host memory that no operator makes",
        lambda event: not event.op and event.num_bytes == RANDOM_STATE_BYTES,
        outlives=True,
    ),
)
"""Each is also held to `exemption_of`: freed inside the call that made it, or one number."""


def exemption_of(birth: Event) -> str | None:
    """The name of the rule that lets a profiler event be absent from the trace."""
    may_go = birth.scratch or birth.num_bytes <= SCALAR_BYTES
    for rule in EXEMPTIONS:
        if rule.applies(birth) and (may_go or rule.outlives):
            return rule.name
    return None


def without_exempted(events: Sequence[Event]) -> tuple[list[Event], collections.Counter[str]]:
    """The events that count, and how often each rule was used."""
    used: collections.Counter[str] = collections.Counter()
    kept = []
    for event in events:
        rule = exemption_of(event.born or event)
        if rule is None:
            kept.append(event)
        elif event.born is None:
            used[rule] += 1
    return kept, used


def without_scalars(events: Sequence[Event]) -> list[Event]:
    """The trace's side of the one exemption that is not scratch."""
    return [event for event in events if event.num_bytes > SCALAR_BYTES]


def live_bytes(events: Iterable[Event]) -> tuple[int, int]:
    """Peak and end."""
    peak = live = 0
    for event in events:
        live += event.num_bytes if event.born is None else -event.num_bytes
        peak = max(peak, live)
    return peak, live


def births_by_operator(events: Iterable[Event]) -> dict[str, collections.Counter[int]]:
    """The multiset of sizes of each operator."""
    found: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for event in events:
        if event.born is None:
            found[event.op][event.num_bytes] += 1
    return found


def in_order(events: Sequence[Event]) -> list[Event]:
    """Births of one operator that follow each other without a death, sorted by size.

    In which order one kernel makes its outputs is its own business.
    """
    ordered: list[Event] = []
    for key, run in itertools.groupby(events, key=lambda e: (e.born is None, e.op)):
        births = key[0]
        ordered += sorted(run, key=lambda e: e.num_bytes) if births else list(run)
    return ordered


def signature(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """The whole sequence: births as (operator, bytes), the deaths between two births as a set."""
    ordered = in_order(events)
    births = [event for event in ordered if event.born is None]
    number = {id(event): index for index, event in enumerate(births)}
    lines: list[tuple[Any, ...]] = []
    for is_birth, run in itertools.groupby(ordered, key=lambda e: e.born is None):
        if is_birth:
            lines += [("born", number[id(e)], e.op, e.num_bytes) for e in run]
        else:
            dead = sorted((number[id(e.born)], e.op, e.num_bytes) for e in run)
            lines.append(("dead", *dead))
    return lines


@dataclass(slots=True)
class Verdict:
    """Everything in which the two sides differ; all empty when they agree."""

    peaks: list[str]
    operators: list[str]
    births: list[str]
    deaths: list[str]
    used: collections.Counter[str]

    def __str__(self) -> str:
        parts = {
            "peak and end": self.peaks,
            "per operator": self.operators,
            "order of births": self.births,
            "order of deaths": self.deaths,
        }
        return "\n".join(f"{name}: {line}" for name, lines in parts.items() for line in lines)


def compare(trace: RawTrace, tree: Any) -> Verdict:
    """Referees one trace against the profiler's tree of the same step."""
    ours = without_scalars(trace_events(trace))
    theirs, used = without_exempted(profiler_events(tree, known_operators(trace_events(trace))))
    peaks = []
    if live_bytes(ours) != live_bytes(theirs):
        peaks.append(f"trace {live_bytes(ours)}, profiler {live_bytes(theirs)}")
    a, b = signature(ours), signature(theirs)
    births_a, births_b = ([x[2:] for x in s if x[0] == "born"] for s in (a, b))
    births = _first_difference(births_a, births_b)
    deaths = [] if births else _first_difference(a, b)
    return Verdict(peaks, _operator_differences(ours, theirs), births, deaths, used)


def known_operators(events: Iterable[Event]) -> frozenset[str]:
    """Operators that the dispatch mode saw giving birth."""
    return frozenset(event.op for event in events)


def _operator_differences(ours: Sequence[Event], theirs: Sequence[Event]) -> list[str]:
    a, b = births_by_operator(ours), births_by_operator(theirs)
    lines = []
    for op in sorted(a.keys() | b.keys()):
        if a[op] != b[op]:
            lines.append(
                f"{op or 'no operator'}: only trace {dict(a[op] - b[op])},"
                f" only profiler {dict(b[op] - a[op])}"
            )
    return lines


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> list[str]:
    for index, (x, y) in enumerate(itertools.zip_longest(a, b)):
        if x != y:
            before = a[max(0, index - 3) : index]
            return [f"at {index} of {len(a)}: trace {x}, profiler {y}; before: {before}"]
    return []
