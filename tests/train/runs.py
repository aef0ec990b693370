"""Whole training runs of tiny models, on one rank here or on several forks of a warm process."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tests.train.launch import _TIMEOUT_S

CONFIG = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_data(folder: Path, rows: int = 60) -> None:
    """`texts.jsonl` and `tokenizer` of the generated corpus."""
    from rigsize.texts.generated import generated_corpus, generated_tokenizer

    generated_corpus(folder / "texts.jsonl", rows, seed=0)
    generated_tokenizer(folder / "tokenizer")


def make_job(folder: Path, out: str, config: dict[str, Any] | None = None, **given: Any) -> Any:
    """The TrainJob of what `make_data` wrote; fields of all its records by their names."""
    from rigsize.models import resolve_model
    from rigsize.spec import Strategy, Workload
    from rigsize.texts.source import DataSource
    from rigsize.train.settings import TrainJob, TrainSettings

    model = folder / f"{out.partition('/')[0]}.json"
    values = {"model_type": "xlm-roberta"} | CONFIG | NO_DROPOUT | (config or {})
    if not model.exists():
        partial = model.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(values))
        partial.replace(model)
    workload: dict[str, Any] = {"task": "sequence-classification", "max_length": 32} | _of(
        Workload, given
    )
    strategy: dict[str, Any] = {"micro_batch": 8, "optimizer": "adamw-fused"} | _of(Strategy, given)
    settings: dict[str, Any] = {
        "init": "random",
        "max_steps": 5,
        "learning_rate": 1e-3,
        "warmup_share": 0.0,
        "log_every": 1,
        "progress": "quiet",
        "export": False,
        "checkpoint": False,
        "eval_share": 0.2,
    } | _of(TrainSettings, given)
    unknown = given.keys() - workload.keys() - strategy.keys() - settings.keys()
    assert not unknown, unknown
    return TrainJob(
        source=resolve_model(str(model)),
        workload=Workload(model=str(model), **workload),
        strategy=Strategy(**strategy),
        settings=TrainSettings(out=folder / out, **settings),
        data=DataSource(path=str(folder / "texts.jsonl")),
        tokenizer=str(folder / "tokenizer"),
    )


def _of(record: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in record.__dataclass_fields__ if name in given}


def run_ranks(size: int, folder: Path, out: str, **given: Any) -> dict[str, Any]:
    """What rank 0 of a run on `size` ranks came to: losses, metrics, step, sharded."""
    exits = start_ranks(size, folder, out, **given)
    assert exits == [0] * size, exits
    answer: dict[str, Any] = json.loads((folder / out / "answer.json").read_text())
    return answer


def start_ranks(size: int, folder: Path, out: str, **given: Any) -> list[int]:
    """Exit codes of the ranks; -9 for a killed one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.rank"])
    with tempfile.TemporaryDirectory() as shared:
        arguments = (size, str(Path(shared) / "store"), folder, out, given)
        ranks = [context.Process(target=run_rank, args=(r, *arguments)) for r in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
    return [process.exitcode or 0 for process in ranks]


def run_rank(
    rank: int, size: int, store: str, folder: Path, out: str, given: dict[str, Any]
) -> None:
    """The whole life of one rank."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from rigsize.train.loop import train

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given = dict(given)
    os.environ |= given.pop("environment", {})
    if given.get("parallel", "single") != "single":
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=30),
        )
    outcome, record = train(make_job(folder, out, **given))
    if record is not None:
        answer = {
            "losses": outcome.losses,
            "metrics": outcome.state.metrics,
            "step": outcome.state.step,
            "resumed_step": outcome.resumed_step,
            "peaks": [peak.allocated_peak_bytes for peak in record.world.ranks],  # type: ignore[union-attr]
        }
        (folder / out / "answer.json").write_text(json.dumps(answer))
