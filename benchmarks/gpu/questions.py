"""Ten questions to a CUDA GPU that no trace can answer: measured beside what our rules expect.

    PYTHONPATH=src python benchmarks/gpu/questions.py [--only 1,2] [--out FILE]

Each question runs in a child of its own, forked before CUDA starts, and prints one JSON line of
rows {what, measured_bytes, expected_bytes, difference_bytes}. A rule that has no figure to offer
has null for expected. Nothing is imported from torch until a child runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rigsize.errors import SizingError
from rigsize.hardware.names import find_accelerator
from rigsize.memory.kernel_scratch import (
    column_sum_scratch_bytes,
    cublas_workspace_bytes,
    embedding_backward_scratch,
    foreach_norm_scratch_bytes,
)
from rigsize.program.attention import AttentionNode, BufferEvent, Kernel, lower_attention

MIB = 1 << 20
Row = dict[str, Any]
Question = Callable[["Card"], list[Row]]

QUESTIONS: dict[int, Question] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The GPU at hand."""

    torch: Any
    capability: tuple[int, int]
    torch_version: tuple[int, int]
    sm_count: int
    max_threads_per_sm: int
    name: str


def question(number: int) -> Callable[[Question], Question]:
    """Enters a function as the answer to a question of the list."""

    def enter(function: Question) -> Question:
        QUESTIONS[number] = function
        return function

    return enter


def row(what: str, measured: int, expected: int | None) -> Row:
    """One figure beside its rule."""
    difference = None if expected is None else measured - expected
    return {
        "what": what,
        "measured_bytes": measured,
        "expected_bytes": expected,
        "difference_bytes": difference,
    }


def block(num_bytes: int) -> int:
    """What a request occupies if its block is split: whole 512 bytes."""
    return -(-num_bytes // 512) * 512


@contextmanager
def watched(card: Card) -> Iterator[SimpleNamespace]:
    """Peak and rest above what was allocated before, known when the context ends."""
    cuda = card.torch.cuda
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    found = SimpleNamespace(peak=0, left=0)
    yield found
    cuda.synchronize()
    found.peak = cuda.max_memory_allocated() - before
    found.left = cuda.memory_allocated() - before


def warm_up(card: Card) -> None:
    """Makes both cuBLAS workspaces, so that no later row counts them."""
    x = card.torch.randn(64, 64, device="cuda", requires_grad=True)
    (x @ x).sum().backward()
    card.torch.cuda.synchronize()


def clear(card: Card) -> None:
    """Gives cached segments back, so that no odd block of an earlier row is handed out whole."""
    card.torch.cuda.synchronize()
    card.torch.cuda.empty_cache()


@question(1)
def cublas_workspaces(card: Card) -> list[Row]:
    """Allocated after one forward and one backward of a Linear: two workspaces, one a thread."""
    torch, expected = card.torch, cublas_workspace_bytes(card.capability, card.torch_version)
    linear = torch.nn.Linear(1024, 1024, bias=False, device="cuda")
    x = torch.randn(64, 1024, device="cuda")
    with watched(card) as forward:
        y = linear(x)
    with watched(card) as backward:
        y.sum().backward()
    out_bytes, gradient_bytes = block(64 * 1024 * 4), block(1024 * 1024 * 4)
    return [
        row("workspace of the main thread", forward.left - out_bytes, expected),
        row("workspace of the autograd thread", backward.left - gradient_bytes, expected),
    ]


@question(2)
def column_sums(card: Card) -> list[Row]:
    """Staging of x.sum(0): 48 and 64 MiB above the output for 2,048 rows on an A100."""
    rows = []
    for R, N in ((2048, 3072), (2048, 4096), (1024, 768), (512, 3072), (6656, 3072)):
        clear(card)
        x = card.torch.randn(R, N, device="cuda")
        with watched(card) as seen:
            y = x.sum(0)
        scratch = column_sum_scratch_bytes(R, N, card.sm_count, card.max_threads_per_sm)
        expected = sum(block(size) for size in scratch)
        rows.append(row(f"sum(0) of [{R}, {N}]", seen.peak - block(N * 4), expected))
        del x, y
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One shape of question 3 and 4."""

    B: int
    S: int
    H: int
    K: int
    D: int
    dtype: str
    causal: bool = False
    mask: bool = False

    @property
    def element_bytes(self) -> int:
        """Of queries, keys and values."""
        return 4 if self.dtype == "float32" else 2

    def node(self) -> AttentionNode:
        """The same call as the lowering knows it."""
        return AttentionNode(
            batch=self.B,
            heads=self.H,
            kv_heads=self.K,
            query_length=self.S,
            key_length=self.S,
            head_dim=self.D,
            value_head_dim=self.D,
            element_bytes=self.element_bytes,
            dtype=self.dtype,  # type: ignore[arg-type]
            mask="bool" if self.mask else "none",
            mask_elements=self.B * self.S * self.S if self.mask else 0,
            causal=self.causal,
            needs_grad=True,
            enable_gqa=self.H != self.K,
        )

    def __str__(self) -> str:
        words = f"b{self.B} s{self.S} h{self.H}/{self.K} d{self.D} {self.dtype}"
        return words + (" causal" if self.causal else "") + (" masked" if self.mask else "")


BERT_LIKE = {"B": 16, "S": 128, "H": 12, "K": 12, "D": 64}
LLAMA_LIKE = {"B": 1, "S": 2048, "H": 32, "K": 8, "D": 128}


@question(3)
def attention_peaks(card: Card) -> list[Row]:
    """Forward and backward peaks of flash, memory-efficient and math attention."""
    warm_up(card)
    half = Attention(**BERT_LIKE, dtype="bfloat16")
    cases: list[tuple[Kernel, Attention]] = [
        ("efficient", Attention(**BERT_LIKE, dtype="float32")),
        ("efficient", Attention(**BERT_LIKE, dtype="float32", mask=True)),
        ("efficient", Attention(**BERT_LIKE, dtype="bfloat16", mask=True)),
        ("efficient", Attention(**(LLAMA_LIKE | {"K": 32}), dtype="bfloat16", mask=True)),
        ("flash", half),
        ("flash", Attention(**LLAMA_LIKE, dtype="bfloat16", causal=True)),
        ("math", half),
    ]
    return [figure for kernel, shape in cases for figure in attention_rows(card, kernel, shape)]


@question(4)
def cudnn_workspaces(card: Card) -> list[Row]:
    """The workspace of cuDNN attention's plan, which no rule gives."""
    shapes = [
        Attention(**BERT_LIKE, dtype="bfloat16"),
        Attention(**BERT_LIKE, dtype="bfloat16", mask=True),
        Attention(**LLAMA_LIKE, dtype="bfloat16", causal=True),
        Attention(**(LLAMA_LIKE | {"S": 8192}), dtype="bfloat16", causal=True),
    ]
    return [figure for shape in shapes for figure in attention_rows(card, "cudnn", shape)]


def attention_rows(card: Card, kernel: Kernel, shape: Attention) -> list[Row]:
    """Peak and rest of forward, peak of backward; a kernel that refuses the shape says so."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch = card.torch
    clear(card)
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    dtype = getattr(torch, shape.dtype)
    q, k, v = (token_major(torch, shape, heads, dtype) for heads in (shape.H, shape.K, shape.K))
    mask = None
    if shape.mask:
        mask = torch.ones(shape.B, 1, shape.S, shape.S, dtype=torch.bool, device="cuda")
        mask[0, :, :, -1] = False
    attention = torch.nn.functional.scaled_dot_product_attention
    try:
        with sdpa_kernel([backends[kernel]]), watched(card) as forward:
            out = attention(q, k, v, mask, is_causal=shape.causal, enable_gqa=shape.H != shape.K)
    except RuntimeError as error:
        return [row(f"{kernel} {shape}: refused ({error})", 0, None)]
    # Token-major, as the gradient of the model's transpose is: no kernel has to copy it.
    gradient = token_major(torch, shape, shape.H, dtype).detach()
    with watched(card) as backward:
        gradients = torch.autograd.grad(out, (q, k, v), gradient)
    del gradients
    return [
        row(f"{kernel} {shape}: {name}", measured, expected)
        for name, measured, expected in zip(
            ("forward peak", "kept by forward", "backward peak"),
            (forward.peak, forward.left, backward.peak),
            attention_expected(card, kernel, shape),
            strict=True,
        )
    ]


def token_major(torch: Any, shape: Attention, heads: int, dtype: Any) -> Any:
    """[B, H, S, D] as a model hands it over: a transposed [B, S, H, D]."""
    size = (shape.B, shape.S, heads, shape.D)
    leaf = torch.randn(size, dtype=dtype, device="cuda").transpose(1, 2)
    return leaf.detach().requires_grad_()


def attention_expected(card: Card, kernel: Kernel, shape: Attention) -> tuple[int, int, int]:
    """The lowering's events, each block rounded to 512 bytes."""
    lowering = lower_attention(
        shape.node(), kernel, compute_capability=card.capability, sm_count=card.sm_count
    )
    forward_peak, kept = running(lowering.forward, {})
    _, backward_peak = sum(kept.values()), running(lowering.backward, kept)[0]
    return forward_peak, sum(kept.values()), backward_peak - sum(kept.values())


def running(events: Sequence[BufferEvent], live: dict[str, int]) -> tuple[int, dict[str, int]]:
    """Peak of the live bytes over the events, and what is alive after them."""
    now = dict(live)
    peak = sum(now.values())
    for event in events:
        if event.action == "alloc":
            now[event.name] = block(event.num_bytes)
        else:
            now.pop(event.name, None)
        peak = max(peak, sum(now.values()))
    return peak, now


@question(5)
def embedding_backward(card: Card) -> list[Row]:
    """Nothing beside the gradient up to 3,072 indices, sort and fp32 segments above."""
    torch, (V, h) = card.torch, (250_002, 768)
    rows = []
    for n in (2048, 3072, 3073, 8192):
        clear(card)
        table = torch.nn.Embedding(V, h, device="cuda")
        ids = torch.randint(0, V, (n,), device="cuda")
        out = table(ids)
        gradient = torch.randn_like(out)
        with watched(card) as seen:
            out.backward(gradient)
        expected = sum(block(size) for _, size in embedding_backward_scratch(n, V, h))
        rows.append(row(f"embedding backward, {n} indices", seen.peak - seen.left, expected))
        del table, out, gradient
    return rows


@question(6)
def gradient_clipping(card: Card) -> list[Row]:
    """The buffers of clip_grad_norm_ over the tensors of XLM-R base."""
    torch = card.torch
    layer = [(768, 768)] * 4 + [(3072, 768), (768, 3072)] + [(768,)] * 9 + [(3072,)]
    shapes: list[tuple[int, ...]] = [(250_002, 768), (514, 768), *layer * 12]
    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.empty(shape, device="cuda"))
        parameter.grad = torch.randn(shape, device="cuda")
        parameters.append(parameter)
    with watched(card) as seen:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    numels = [parameter.numel() for parameter in parameters]
    return [row("clip_grad_norm_", seen.peak, foreach_norm_scratch_bytes(numels))]


@question(7)
def tied_weights(card: Card) -> list[Row]:
    """A weight used twice: decoder gradient, embedding gradient and their sum at once."""
    torch, (V, h, T) = card.torch, (250_002, 768, 64)
    warm_up(card)
    weight = torch.nn.Parameter(torch.randn(V, h, device="cuda"))
    ids = torch.randint(0, V, (T,), device="cuda")
    rows = []
    for what in ("first backward", "with a gradient there"):
        logits = torch.nn.functional.embedding(ids, weight) @ weight.T
        gradient = torch.randn_like(logits)
        with watched(card) as seen:
            logits.backward(gradient)
        rows.append(row(f"tied weight, {what}", seen.peak, 3 * block(V * h * 4)))
        del logits, gradient
    return rows


@question(8)
def context(card: Card) -> list[Row]:
    """Used minus reserved: after the first tensor, a product, attention, an optimizer step."""
    torch = card.torch
    expected = known_context(card.name)
    rows = []

    def note(what: str) -> None:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        rows.append(row(what, total - free - torch.cuda.memory_reserved(), expected))

    x = torch.randn(256, 256, device="cuda", requires_grad=True)
    note("after one tensor")
    (x @ x).sum().backward()
    note("after a product and its backward")
    q = torch.randn(2, 8, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    note("after attention in bf16")
    torch.optim.AdamW([x]).step()
    note("after an optimizer step")
    return rows


def known_context(name: str) -> int | None:
    """The middle of the table's band; None for a card it does not have."""
    try:
        return find_accelerator(name).context_bytes.value.mid
    except SizingError:
        return None


@question(9)
def nccl(card: Card) -> list[Row]:
    """Driver memory of the first all-reduce over all cards of this machine."""
    torch = card.torch
    count = torch.cuda.device_count()
    if count < 2:
        return [row("skipped: one GPU", 0, None)]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(nccl_rank, args=(count, folder), nprocs=count)
        found = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    return [row(f"rank {rank}: first all-reduce of {count}", used, None) for rank, used in found]


def nccl_rank(rank: int, count: int, folder: str) -> None:
    """One rank of question 9."""
    import torch
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    torch.cuda.set_device(rank)
    x = torch.ones(1024, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    dist.init_process_group("nccl", rank=rank, world_size=count)
    dist.all_reduce(x)
    torch.cuda.synchronize()
    used = before - torch.cuda.mem_get_info()[0]
    (Path(folder) / f"{rank}.json").write_text(json.dumps([rank, used]))
    dist.destroy_process_group()


@question(10)
def allocator_rules(card: Card) -> list[Row]:
    """F1 to F3: XLM-R's logits are handed a whole segment, dW is cut out of one of them."""
    torch = card.torch
    logits_bytes, gradient_bytes = 2_048_016_384, 768_006_144
    clear(card)

    def take(num_bytes: int) -> Any:
        return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")

    def note(step: str, allocated: int, reserved_mib: int) -> list[Row]:
        cuda = torch.cuda
        return [
            row(f"{step} allocated", cuda.memory_allocated(), allocated),
            row(f"{step} reserved", cuda.memory_reserved(), reserved_mib * MIB),
        ]

    held = [take(logits_bytes)]
    rows = note("F1", 2_048_917_504, 1954)
    held += [take(logits_bytes) for _ in range(3)]
    rows += note("F2", 8_195_670_016, 7816)
    del held[1:]
    held.append(take(gradient_bytes))
    return rows + note("F3", 2_816_923_648, 7816)


def find_card() -> Card:
    """The first CUDA device; starts CUDA."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("questions.py needs a CUDA GPU: torch sees none")
    torch.cuda.init()
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.__version__.split(".")[:2]
    return Card(
        torch=torch,
        capability=(properties.major, properties.minor),
        torch_version=(int(major), int(minor)),
        sm_count=properties.multi_processor_count,
        max_threads_per_sm=properties.max_threads_per_multi_processor,
        name=properties.name,
    )


def answer(number: int) -> str:
    """The JSON line of one question; an error is an answer too."""
    function = QUESTIONS[number]
    card = find_card()
    line: dict[str, Any] = {
        "question": number,
        "name": function.__name__,
        "gpu": card.name,
        "torch": card.torch.__version__,
        "cuda": card.torch.version.cuda,
        "cudnn": card.torch.backends.cudnn.version(),
    }
    try:
        line |= {"rows": function(card), "error": None}
    except Exception as error:  # one question must not end the others
        line |= {"rows": [], "error": f"{type(error).__name__}: {error}"}
    return json.dumps(line)


def in_child(number: int) -> str:
    """Forks before CUDA starts, so that no question sees what another left behind."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                pipe.write(answer(number))
            code = 0
        except SystemExit as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if text:
        return text
    code = os.waitstatus_to_exitcode(status)
    return json.dumps({"question": number, "rows": [], "error": f"the child ended with {code}"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks the chosen questions in their order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="numbers, as in 1,2,10")
    parser.add_argument("--out", type=Path, help="also append the lines to this file")
    options = parser.parse_args(arguments)
    try:
        chosen = [int(n) for n in options.only.split(",")] if options.only else list(QUESTIONS)
    except ValueError:
        parser.error(f"--only: numbers from 1 to {len(QUESTIONS)}, got {options.only!r}")
    if unknown := [number for number in chosen if number not in QUESTIONS]:
        parser.error(f"--only: no question {unknown[0]}, there are 1 to {len(QUESTIONS)}")
    failed = False
    for number in chosen:
        line = in_child(number)
        failed |= json.loads(line)["error"] is not None
        print(line, flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return 5 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
