"""Trace the bundled models at the usual keys and write ``src/rigsize/trace/profiles/``.

    python validation/build_profiles.py [--jobs 2] [--models GLOB ...] [--keys GLOB ...]
                                        [--max-minutes N] [--force]

One file a config, `<digest>.profiles` (`rigsize.trace.store.write_pack`); models that share a
config share it. A key has two profiles, of its births and deaths and of its work; one trace makes
both, and of a key that has the first only the second is written. Resumable: a key that has both is
skipped. The list is in order of importance, so
an interrupted build is useful. Every profile is traced in a forked process: an architecture that
aborts the interpreter costs its own profile alone. What cannot be traced is listed at the end.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rigsize.models import BundledModel, bundled_models, digest, max_positions, tasks_of
from rigsize.spec import Strategy
from rigsize.spec.quantization import text_of
from rigsize.trace.child import run_under_hash_seed
from rigsize.trace.profile import TraceKey
from rigsize.trace.store import PACKAGED, WORK, pack_file, read_pack, write_pack

KEY_LIMIT_S = 300.0
"""A key that takes longer is given up; nothing of the bundled models comes near but Mamba."""

FIRST = """
FacebookAI/xlm-roberta-base FacebookAI/xlm-roberta-large
facebook/xlm-roberta-xl facebook/xlm-roberta-xxl
google-bert/bert-base-uncased FacebookAI/roberta-base meta-llama/Llama-3.1-8B Qwen/Qwen3-0.6B
google-bert/bert-large-uncased FacebookAI/roberta-large Qwen/Qwen2.5-7B meta-llama/Llama-3.2-1B
google-t5/t5-base microsoft/deberta-v3-base answerdotai/ModernBERT-base openai-community/gpt2
BAAI/bge-m3 distilbert/distilbert-base-uncased sentence-transformers/all-MiniLM-L6-v2
microsoft/deberta-v3-large answerdotai/ModernBERT-large sentence-transformers/all-mpnet-base-v2
Qwen/Qwen3-8B mistralai/Mistral-7B-v0.3 mistralai/Mistral-7B-v0.1 google/gemma-3-4b-pt
meta-llama/Llama-3.2-3B meta-llama/Llama-3.1-70B Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B
google/flan-t5-base google/flan-t5-xl google/flan-t5-xxl facebook/bart-large facebook/bart-base
Qwen/Qwen3-30B-A3B openai/gpt-oss-20b mistralai/Mixtral-8x7B-v0.1 deepseek-ai/DeepSeek-V2-Lite
Qwen/Qwen3-1.7B Qwen/Qwen3-4B Qwen/Qwen3-14B Qwen/Qwen3-32B google/gemma-3-1b-pt
google/gemma-2-2b google/gemma-2-9b microsoft/phi-4 microsoft/Phi-3-mini-4k-instruct
HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-1.7B HuggingFaceTB/SmolLM3-3B
openai-community/gpt2-xl EleutherAI/pythia-160m EleutherAI/pythia-1.4b EleutherAI/pythia-6.9b
google-t5/t5-small google-t5/t5-large google/mt5-base facebook/nllb-200-distilled-600M
meta-llama/Llama-2-7b-hf meta-llama/Llama-2-13b-hf meta-llama/Llama-2-70b-hf
meta-llama/Llama-3.1-405B Qwen/Qwen2.5-3B Qwen/Qwen2.5-14B Qwen/Qwen2.5-32B Qwen/Qwen2.5-72B
google-bert/bert-base-cased google-bert/bert-base-multilingual-cased google/gemma-3-12b-pt
google/gemma-3-27b-pt google/electra-base-discriminator albert/albert-base-v2
microsoft/mdeberta-v3-base distilbert/distilroberta-base EuroBERT/EuroBERT-210m
google/gemma-2b google/gemma-7b google/gemma-2-27b tiiuae/falcon-7b allenai/OLMo-2-1124-7B
microsoft/phi-2 microsoft/Phi-4-mini-instruct mistralai/Mistral-Small-24B-Base-2501
bigscience/bloom-560m bigscience/bloom-7b1 mosaicml/mpt-7b EleutherAI/gpt-j-6b
deepseek-ai/DeepSeek-V3 Qwen/Qwen3-235B-A22B google/flan-t5-large facebook/mbart-large-50
google/pegasus-large
""".split()
"""The rest of the bundled models follows in the order of their table."""
LENGTH_MATTERS = ("mamba",)
"""Their reference code loops over positions: a profile would hold for a single length."""
COMPUTES = ("fp32", "amp", "half")
SAVED = ("fp32", "amp")
"""Of `--offload activations`."""
FREED = ("fp32", "half")
"""Of loops that keep the loss alone: what the article may have run (`rigsize.seed_settings`)."""
LEAN = (("amp", "flash"), ("half", "flash"), ("amp", "grid"), ("half", "grid"), ("fp32", "grid"))
"""Compute and attention of unpadded rows: fp32 has no flash kernel."""
CLASSIFYING_DECODERS = (
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen2.5-0.5B",
    "mistralai/Mistral-7B-v0.3",
    "openai-community/gpt2",
)
EMBEDDING = (
    "FacebookAI/xlm-roberta-base",
    "FacebookAI/xlm-roberta-large",
    "BAAI/bge-m3",
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-mpnet-base-v2",
    "intfloat/multilingual-e5-small",
    "google-bert/bert-base-uncased",
    "answerdotai/ModernBERT-base",
)
TOKENS = ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large")
SEED = (*TOKENS, "facebook/xlm-roberta-xl", "facebook/xlm-roberta-xxl")


@dataclass(frozen=True, slots=True)
class Job:
    """The keys of one model in one wave."""

    model: BundledModel
    keys: tuple[TraceKey, ...]
    force: bool = False
    """Profiles of births and deaths that are there are traced again, too."""


Answer = dict[str, bytes] | str
"""Packed profiles by their names in a shipped file, or why there are none."""


@dataclass(slots=True)
class Totals:
    """What the build came to."""

    built: int = 0
    num_bytes: int = 0
    failed: list[str] = field(default_factory=list)


def keys_of(model: BundledModel) -> tuple[list[TraceKey], list[TraceKey]]:
    """(the first wave, the second wave) of one model's keys."""
    tasks = tasks_of(str(model.config["model_type"]))
    if model.config["model_type"] in LENGTH_MATTERS:
        return [], []
    if "seq2seq-lm" in tasks:
        return _task(model, "seq2seq-lm"), _recomputed(model, "seq2seq-lm", COMPUTES)
    if "masked-lm" in tasks:
        return _encoder(model)
    first = _task(model, "causal-lm")
    first.append(_key(model, "causal-lm", "half", recompute="block"))
    first.append(_key(model, "causal-lm", "half", padded=False))
    second = _recomputed(model, "causal-lm", ("amp", "fp32"))
    if model.id in CLASSIFYING_DECODERS:
        second += _task(model, "sequence-classification")
    return first, second


def _encoder(model: BundledModel) -> tuple[list[TraceKey], list[TraceKey]]:
    tasks = ("sequence-classification", "masked-lm")
    first = [key for task in tasks for key in _task(model, task)]
    second = [key for task in tasks for key in _recomputed(model, task, COMPUTES)]
    more = [(TOKENS, "token-classification"), (EMBEDDING, "embedding")]
    for task in (task for models, task in more if model.id in models):
        first += _task(model, task)
        second += _recomputed(model, task, COMPUTES)
    if model.id in SEED:
        unpadded = [_key(model, t, c, padded=False) for t in tasks for c in ("fp32", "amp")]
        saved = [replace(_key(model, t, c), saves_on_host=True) for t in tasks for c in SAVED]
        freed = [replace(_key(model, t, c), hold_output=False) for t in tasks for c in FREED]
        once = unpadded + _lean(model) + saved + freed + _quantised(model)
        # What `rigsize plan` searches of a model with `offload=activations`, too.
        sent = [
            replace(key, saves_on_host=True)
            for task in ("masked-lm", "sequence-classification")
            for key in _planned(model, task)
        ]
        return first + once + second + [key for key in sent if key not in once], []
    return first, second


def _lean(model: BundledModel) -> list[TraceKey]:
    """Heads on the rows that predict something, texts one after another in one row."""
    keys = [replace(_key(model, "masked-lm", c), loss="masked") for c in ("fp32", "amp")]
    for compute, attention in (("fp32", "grid"), ("amp", "flash"), ("half", "flash")):
        masked = replace(_key(model, "masked-lm", compute, padded=False), loss="masked")
        classified = _key(model, "sequence-classification", compute, padded=False)
        keys += [replace(key, unpadded=attention) for key in (masked, classified)]
    return keys + [
        key for task in ("masked-lm", "sequence-classification") for key in _freed(model, task)
    ]


def _freed(model: BundledModel, task: str) -> Iterator[TraceKey]:
    """The recipe lean as `rigsize plan` searches it, on cards with flash attention and without."""
    for recompute in ("none", "block"):
        for compute, attention in LEAN:
            key = _key(model, task, compute, padded=False, recompute=recompute)
            loss = "masked" if task == "masked-lm" else "all"
            yield replace(key, unpadded=attention, loss=loss, hold_output=False)


def _planned(model: BundledModel, task: str) -> list[TraceKey]:
    """The recipes seed and lean in all precisions, with recomputation and without."""
    kept = [_key(model, task, compute) for compute in COMPUTES]
    return [*kept, *_recomputed(model, task, COMPUTES), *_freed(model, task)]


def _quantised(model: BundledModel) -> list[TraceKey]:
    """Weights of one byte and of half a byte, as the inference table has them."""
    base = _key(model, "sequence-classification", "half", use="inference")
    words = [text_of(Strategy(precision=name)) for name in ("int8", "int4")]
    return [replace(base, quantization=word) for word in words]


def _task(model: BundledModel, task: str) -> list[TraceKey]:
    training = [_key(model, task, compute) for compute in COMPUTES]
    return training + [_key(model, task, c, use="inference") for c in ("half", "fp32")]


def _recomputed(model: BundledModel, task: str, computes: Iterable[str]) -> list[TraceKey]:
    return [_key(model, task, compute, recompute="block") for compute in computes]


def _key(
    model: BundledModel,
    task: str,
    compute: str,
    *,
    use: str = "training",
    padded: bool = True,
    recompute: str = "none",
) -> TraceKey:
    return TraceKey(
        config_digest=digest(model.config),
        task=task,
        use=use,
        compute=compute,
        attention="sdpa",
        padded=padded,
        recompute=recompute,
        device="accelerator",
        num_labels=3,
        hold_output=True,
    )


def jobs(patterns: Sequence[str]) -> Iterator[Job]:
    """First waves of the important models, their second waves, then the rest."""
    chosen = [m for m in _ordered() if _matches(m, patterns)]
    important = [m for m in chosen if m.id in FIRST]
    rest = [m for m in chosen if m.id not in FIRST]
    for models in (important, rest):
        for wave in (0, 1):
            yield from (Job(m, tuple(keys_of(m)[wave])) for m in models)


def _ordered() -> list[BundledModel]:
    """The bundled models, one a config, the important ones first."""
    by_id = {model.id: model for model in bundled_models()}
    assert set(FIRST) <= set(by_id), set(FIRST) - set(by_id)
    found: dict[str, BundledModel] = {}
    for name in (*FIRST, *by_id):
        found.setdefault(digest(by_id[name].config), by_id[name])
    return list(found.values())


def _matches(model: BundledModel, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(model.id.lower(), p.lower()) for p in patterns)


# -- workers ------------------------------------------------------------------------------------


def _trace(job: Job, pipe: Connection) -> None:
    """The child: sends (packed profiles or reason, seconds, domains) for each key in turn."""
    import torch

    from rigsize.trace.domains import all_labels
    from rigsize.trace.profile import pack
    from rigsize.trace.session import Session

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for key in job.keys:
        start = time.monotonic()
        answer: Answer
        num_domains = 0
        try:
            session = Session(job.model.config, key, max_positions(job.model.config))
            labels = all_labels(session.limits)
            there = key.text() in read_pack(pack_file(key.config_digest)) and not job.force
            answer = {} if there else {key.text(): pack(session.profile(labels))}
            work = session.work(labels)
            answer[key.text() + WORK] = pack(work)
            num_domains = len(work.domains)
        except Exception as error:  # the reason is the result
            answer = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        pipe.send((answer, time.monotonic() - start, num_domains))
    pipe.close()


@dataclass(slots=True)
class Worker:
    """A forked process at work on one job."""

    job: Job
    process: BaseProcess
    pipe: Connection
    done: int = 0
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, job: Job) -> Worker:
        """Forks: torch and transformers are imported already."""
        context: Any = multiprocessing.get_context("fork")
        mine, its = context.Pipe(duplex=False)
        process = context.Process(target=_trace, args=(job, its), daemon=True)
        process.start()
        its.close()
        return cls(job, process, mine)

    def rest(self) -> Job:
        """The keys after the one that is being traced."""
        return replace(self.job, keys=self.job.keys[self.done + 1 :])

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Build:
    """Runs the jobs on a few workers and writes what they send."""

    def __init__(self, num_jobs: int, deadline: float) -> None:
        self.num_jobs, self.deadline = num_jobs, deadline
        self.totals = Totals()
        self.workers: list[Worker] = []

    def run(self, queue: list[Job]) -> None:
        """Until the queue is empty or the time is up."""
        try:
            while self.workers or (queue and time.monotonic() < self.deadline):
                while queue and len(self.workers) < self.num_jobs and not self._late():
                    self.workers.append(Worker.start(queue.pop(0)))
                ready = wait([w.pipe for w in self.workers], timeout=5)
                for worker in list(self.workers):
                    self._attend(worker, worker.pipe in ready, queue)
        finally:
            for worker in self.workers:
                worker.stop()

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _attend(self, worker: Worker, ready: bool, queue: list[Job]) -> None:
        if ready:
            try:
                answer, seconds, num_domains = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                self._retire(worker, queue, f"died (exit {worker.process.exitcode})")
                return
            self._keep(worker, answer, seconds, num_domains)
        elif time.monotonic() - worker.since > KEY_LIMIT_S:
            self._retire(worker, queue, f"took longer than {KEY_LIMIT_S:.0f} s")
        if worker.done == len(worker.job.keys) or self._late():
            self._retire(worker, queue, "")

    def _keep(self, worker: Worker, answer: Answer, seconds: float, num_domains: int) -> None:
        key = worker.job.keys[worker.done]
        worker.done, worker.since = worker.done + 1, time.monotonic()
        name = f"{worker.job.model.id} {describe(key)}"
        if isinstance(answer, str):
            self.totals.failed.append(f"{name}: {answer}")
            print(f"{name}: {seconds:.1f} s, FAILED: {answer}", flush=True)
            return
        path = pack_file(key.config_digest)
        write_pack(path, read_pack(path) | answer)
        size = sum(map(len, answer.values()))
        self.totals.built += len(answer)
        self.totals.num_bytes += size
        print(f"{name}: {seconds:.1f} s, {size:,} bytes, {num_domains} domains", flush=True)

    def _retire(self, worker: Worker, queue: list[Job], reason: str) -> None:
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        worker.stop()
        if reason and worker.done < len(worker.job.keys):
            name = f"{worker.job.model.id} {describe(worker.job.keys[worker.done])}"
            self.totals.failed.append(f"{name}: {reason}")
            print(f"{name}: FAILED: {reason}", flush=True)
            if worker.rest().keys:
                queue.insert(0, worker.rest())


def describe(key: TraceKey) -> str:
    """`masked-lm training amp recompute`."""
    words = [key.task, key.use, key.compute]
    words += ["recompute"] if key.recompute == "block" else []
    words += [] if key.loss == "all" else [key.loss]
    words += [f"one row, {key.unpadded}"] if key.unpadded else []
    words += [] if key.padded or key.unpadded else ["unpadded"]
    words += ["saved on host"] if key.saves_on_host else []
    words += [] if key.hold_output or key.use == "inference" else ["freed"]
    return " ".join(words)


def missing(all_jobs: Iterable[Job], patterns: Sequence[str], *, force: bool) -> list[Job]:
    """The jobs of the keys that are asked for, with what is there already left out."""
    left = []
    for job in all_jobs:
        there = {} if force else read_pack(pack_file(digest(job.model.config)))
        asked = (k for k in job.keys if not patterns or _described_by(k, patterns))
        keys = tuple(k for k in asked if not {k.text(), k.text() + WORK} <= set(there))
        left += [Job(job.model, keys, force)] if keys else []
    return left


def _described_by(key: TraceKey, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(describe(key), pattern) for pattern in patterns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds and tells what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--models", nargs="*", default=[], help="ids, wildcards allowed")
    parser.add_argument("--keys", nargs="*", default=[], help="'embedding training *', as printed")
    parser.add_argument("--max-minutes", type=float, default=1e6)
    parser.add_argument("--force", action="store_true", help="trace again what is there")
    parser.add_argument("--list", action="store_true", help="print what is missing and stop")
    options = parser.parse_args(arguments)
    queue = missing(jobs(options.models), options.keys, force=options.force)
    if options.list:
        print("\n".join(f"{j.model.id} {describe(k)}" for j in queue for k in j.keys))
        return 0
    import torch  # here, once, so that the forked workers need not
    import transformers

    import rigsize.trace.session  # noqa: F401  (the same, and one version of it for all)

    torch.set_num_threads(1)
    # Loading the lazy modules here spares every worker the same second.
    for name in ("AutoModel", "AutoModelForCausalLM", "PreTrainedModel"):
        getattr(transformers, name)
    start = time.monotonic()
    number = sum(len(job.keys) for job in queue)
    print(f"{number} profiles to trace, {options.jobs} at a time, into {PACKAGED}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a kill ends the workers too
    build = Build(options.jobs, start + 60 * options.max_minutes)
    build.run(queue)
    return _report(build.totals, (time.monotonic() - start) / 60)


def _report(totals: Totals, minutes: float) -> int:
    files = list(PACKAGED.glob("*.profiles"))
    size = sum(file.stat().st_size for file in files)
    print(
        f"{totals.built} profiles in {minutes:.1f} minutes"
        f" ({totals.built / max(minutes, 1e-9):.1f} a minute), {totals.num_bytes:,} bytes;"
        f" {len(files)} files, {size / 1e6:.2f} MB in all; {len(totals.failed)} failed"
    )
    without = [m.id for m in bundled_models() if m.config["model_type"] in LENGTH_MATTERS]
    print(f"no profile holds for more than one length: {', '.join(without)}")
    for line in totals.failed:
        print(f"  {line}")
    return 0


if __name__ == "__main__":
    run_under_hash_seed()
    sys.exit(main())
