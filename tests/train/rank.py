"""One rank of a tiny training run, for the tests of checkpoints; see `tests.train.launch`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

# Preloaded, since torch and the optimizers import it at first use, in every rank anew.
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from rigsize.errors import SizingError
from rigsize.train.checkpoint import Checkpoints
from rigsize.train.export import export

if TYPE_CHECKING:
    from tests.train.launch import Job

ROWS = 4
VOCABULARY = 50


def run_rank(rank: int, store: str, job: Job) -> None:
    """The whole life of one rank; its losses go to `<log>.<rank>`, a line a step."""
    warnings.simplefilter("error")
    # torch's own, on every backward of DDP without CUDA; and gloo's about a host name.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    with _process_group(rank, store, job):
        try:
            train(rank, job)
        except SizingError as error:
            sys.exit(error.exit_code)


@contextlib.contextmanager
def _process_group(rank: int, store: str, job: Job) -> Any:
    if job.parallel == "single":
        yield
        return
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=job.size,
        timeout=timedelta(seconds=30),
    )
    yield
    dist.destroy_process_group()


def train(rank: int, job: Job) -> None:
    torch.manual_seed(job.seed)
    model = wrap(build(job.model), job.parallel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    torch.manual_seed(job.seed + 1000 * (rank + 1))  # another dropout on each rank
    step, reached = 0, Counter[str]()

    def phase(name: str) -> None:
        reached[name] += 1
        if job.kill_at == (name, reached[name], rank):
            os.kill(os.getpid(), signal.SIGKILL)

    folder = job.folders[rank] if job.folders else job.folder
    checkpoints = Checkpoints(folder, identity={"model": job.model}, phase=phase)
    checkpoints.clean()
    if found := checkpoints.newest():
        step = checkpoints.load(found, model, optimizer)["step"]
    with job.log.with_suffix(f".{rank}").open("a", buffering=1) as log:
        log.write(json.dumps({"resumed": step}) + "\n")
        while step < job.until:
            loss = one_step(model, optimizer, batch_of(job, step, rank))
            step += 1
            log.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if job.full_from == (step, rank):
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
            if step in job.save_at:
                checkpoints.save(step, model, optimizer, {"step": step})
    if job.export_to:
        export(model, None, job.export_to)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    """The loss before the step, averaged over the ranks: equal on any number without dropout."""
    output = model(batch)
    loss = (output if isinstance(output, Tensor) else output.logits).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    value = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value.item())


def batch_of(job: Job, step: int, rank: int) -> Tensor:
    """This rank's rows of the step's global batch, which does not depend on the ranks."""
    generator = torch.Generator().manual_seed(step)
    if job.model == "xlm-r":
        rows = torch.randint(3, VOCABULARY, (ROWS, 7), generator=generator)
    else:
        rows = torch.randn(ROWS, 6, generator=generator)
    return rows.chunk(job.size)[rank]


def build(name: str) -> nn.Module:
    """plain: with dropout and a bias of one element; even: the same without dropout; xlm-r."""
    if name == "xlm-r":
        return tiny_xlm_roberta()
    dropout = 0.3 if name == "plain" else 0.0
    return nn.Sequential(
        nn.Linear(6, 5), nn.Dropout(dropout), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1)
    )


def tiny_xlm_roberta(dropout: float = 0.0) -> nn.Module:
    """Two layers, hidden 16, vocabulary 50, three classes."""
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model: nn.Module = XLMRobertaForSequenceClassification(config)
    return model.train()


def wrap(model: nn.Module, parallel: str) -> nn.Module:
    """As the trainer wraps it."""
    if parallel == "ddp":
        return DistributedDataParallel(model)
    if parallel in ("fsdp", "fsdp-offload"):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        shard: Callable[[nn.Module], Any] = lambda module: (  # noqa: E731
            fully_shard(module, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
            if parallel == "fsdp-offload"
            else fully_shard(module, mesh=mesh)
        )
        for module in model.modules():
            if type(module).__name__ == "XLMRobertaLayer":
                shard(module)
        shard(model)
    return model
