"""The command that runs the plan on a machine, and the job that a SLURM cluster is given."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator

from rigsize.emit.launch import ACCELERATE, RUN, SBATCH, SPEC, File, Launch, comment

__all__ = ["run_file", "sbatch_file"]

_HERE = 'HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)'
PORT = 29500
_MOST_HOURS_MARGIN = 1.25
"""Of a time limit over the slow end of the prediction: a job that is cut off has run for nothing
since its last checkpoint."""


def run_file(launch: Launch) -> File:
    """`run.sh`: rigsize's own run, or the user's script under accelerate where we run no such."""
    notes: tuple[str, ...] = ()
    head = ["#!/usr/bin/env bash"]
    if not launch.workload.training:
        head.append(comment("measures the passes of rigsize.toml on this machine"))
        body = _measure()
    elif launch.why_not_run:
        notes = (
            f"rigsize train does not run it ({launch.why_not_run}): {RUN} starts your own script"
            " through accelerate",
        )
        head += [comment(note) for note in notes]
        head.append(comment(f"SCRIPT=train.py {_first(launch)}bash {RUN} [ARGUMENTS]"))
        body = _accelerate(launch)
    else:
        data = "" if launch.data is not None else "DATA=texts.jsonl "
        head.append(comment(f"{_first(launch)}{data}bash {RUN} [MORE FLAGS OF rigsize train]"))
        if launch.cluster.nodes > 1:
            head.append(comment("the same on every node; OUT on a disk that all of them share"))
        body = _train(launch)
    lines = [*head, "set -euo pipefail", _HERE, *body]
    return File(name=RUN, text="\n".join(lines) + "\n", notes=notes)


def _first(launch: Launch) -> str:
    return "HEAD=FIRST_NODE " if launch.cluster.nodes > 1 else ""


def _head(launch: Launch) -> Iterator[str]:
    if launch.cluster.nodes > 1:
        yield "HEAD=${HEAD:?the name of the first node}"


def _train(launch: Launch) -> Iterator[str]:
    yield from _head(launch)
    if launch.data is None:
        yield "DATA=${DATA:?a file of texts}"
    else:
        yield f"DATA=${{DATA:-{shlex.quote(launch.data)}}}"
    yield f"OUT=${{OUT:-runs/{_name(launch)}}}"
    yield f"{_starter(launch)} -m rigsize train \\"
    yield f'    --spec "$HERE/{SPEC}" --data "$DATA" --out "$OUT" \\'
    words = map(shlex.quote, _run_words(launch))
    yield "    " + " ".join((*words, '"$@"'))


def _run_words(launch: Launch) -> Iterator[str]:
    for name, value in launch.run_flags.items():
        if value is True:
            yield f"--{name}"
        elif value is False:
            yield f"--no-{name}"
        else:
            yield from (f"--{name}", value)


def _starter(launch: Launch) -> str:
    """torchrun, or python alone where there is one rank without a process group."""
    if launch.strategy.parallel == "single":
        return "python"
    per_node, nodes = launch.cluster.per_node, launch.cluster.nodes
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {per_node}"
    return (
        # Ranks that are started again otherwise find the keys of those before them.
        "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1\n"
        f"torchrun --nnodes {nodes} --nproc-per-node {per_node} --max-restarts 3 \\\n"
        f'    --rdzv-backend c10d --rdzv-endpoint "$HEAD:{PORT}" --rdzv-id {_name(launch)} \\\n'
        "   "
    )


def _accelerate(launch: Launch) -> Iterator[str]:
    yield from _head(launch)
    yield 'SCRIPT=$(realpath "${SCRIPT:?your training script}")'
    yield 'cd "$HERE"'
    node = ""
    if launch.cluster.nodes > 1:
        yield "RANK=${SLURM_NODEID:-${NODE:?the number of this node, from 0}}"
        node = ' --machine_rank "$RANK" --main_process_ip "$HEAD"'
    yield f'accelerate launch --config_file {ACCELERATE}{node} "$SCRIPT" "$@"'


def _measure() -> Iterator[str]:
    yield f'python -m rigsize measure --spec "$HERE/{SPEC}" "$@"'


def sbatch_file(launch: Launch) -> File:
    """`job.sbatch`: whole nodes, one task on each, which starts the ranks of its node."""
    cluster = launch.cluster
    options = [
        f"--job-name={_name(launch)}",
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",
    ]
    if not cluster.accelerator.is_cpu:
        options.append(f"--gpus-per-node={cluster.per_node}")
    options += ["--exclusive", "--mem=0", "--output=%x-%j.log"]
    notes: tuple[str, ...] = ()
    if launch.most_hours is not None and math.isfinite(launch.most_hours):
        options.append(f"--time={_time(launch.most_hours * _MOST_HOURS_MARGIN)}")
    else:
        notes = ("no time limit: the slow end of its hours is not known here, add #SBATCH --time",)
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        comment(f"each node is meant to have {cluster.per_node} x {cluster.accelerator.id}; the"),
        comment("cluster's own --partition, --account and --constraint are yours to add"),
        comment("sbatch it in this folder, with the variables of run.sh exported"),
        *(comment(note) for note in notes),
        "set -euo pipefail",
        'export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f'srun bash "$SLURM_SUBMIT_DIR/{RUN}" "$@"',
    ]
    return File(name=SBATCH, text="\n".join(lines) + "\n", notes=notes)


def _time(hours: float) -> str:
    """`D-HH:MM:00`, as SLURM writes it, rounded up."""
    minutes = max(1, math.ceil(hours * 60))
    days, minutes = divmod(minutes, 24 * 60)
    return f"{days}-{minutes // 60:02}:{minutes % 60:02}:00"


def _name(launch: Launch) -> str:
    model = launch.workload.model.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}-{launch.workload.task}").strip("-.")
    return name[:80] or "rigsize"
