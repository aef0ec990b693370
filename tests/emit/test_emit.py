"""Each file is read by the parser that will read it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rigsize.cli import run
from rigsize.emit import Emission, Launch, emit
from rigsize.emit.files import write_files
from rigsize.errors import SpecError
from rigsize.hardware import parse_gpus
from rigsize.spec import Cluster, Strategy, Workload

WORKLOAD = Workload(model="xlm-roberta-base", task="masked-lm", max_length=128)
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"micro_batch": 4, "accumulation": 3},
    "ddp": {"parallel": "ddp", "precision": "amp-bf16", "bucket_view": True},
    "fsdp": {"parallel": "fsdp", "precision": "amp-bf16", "offload": "cpu", "recompute": "block"},
    "hsdp": {"parallel": "hsdp", "precision": "bf16", "reshard_after_forward": False},
    "zero1": {"parallel": "zero1", "precision": "fp16-master", "optimizer": "sgd-momentum"},
    "zero2": {"parallel": "zero2", "precision": "bf16", "offload": "optimizer"},
    "zero3": {"parallel": "zero3", "precision": "bf16", "offload": "cpu", "max_grad_norm": None},
    "zero3 own": {"parallel": "zero3", "optimizer": "lion", "offload": "cpu-params"},
    "compiled": {"compile": True, "precision": "amp-fp16"},
}


def launch(name: str, nodes: int = 1, **more: Any) -> Launch:
    fields = STRATEGIES[name]
    alone = fields.get("parallel", "single") == "single"
    cluster = Cluster(
        accelerator=parse_gpus("H100").accelerator,
        per_node=1 if alone else 8,
        nodes=1 if alone else nodes,
    )
    strategy = Strategy(**({"optimizer": "adamw-fused"} | fields))
    return Launch(workload=WORKLOAD, strategy=strategy, cluster=cluster, **more)


def written(found: Emission) -> Mapping[str, str]:
    return {file.name: file.text for file in found.files}


@pytest.fixture(params=[(name, nodes) for name in STRATEGIES for nodes in (1, 2)], ids=str)
def launched(request: pytest.FixtureRequest) -> Launch:
    name, nodes = request.param
    return launch(name, nodes)


# -- accelerate ---------------------------------------------------------------------------------

KINDS = {
    "single": "NO",
    "ddp": "MULTI_GPU",
    "fsdp": "FSDP",
    "hsdp": "FSDP",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}


def loaded(found: Launch, folder: Path) -> Any:
    from accelerate.commands.config.config_args import load_config_from_file

    write_files(emit(found), folder)
    return load_config_from_file(str(folder / "accelerate.yaml"))


def test_accelerate_reads_it(launched: Launch, tmp_path: Path) -> None:
    strategy = launched.strategy
    config = loaded(launched, tmp_path)
    assert config.distributed_type.value == KINDS[strategy.parallel]
    assert config.num_processes == launched.cluster.devices
    assert config.num_machines == launched.cluster.nodes
    if strategy.parallel.startswith("zero"):
        assert config.deepspeed_config["deepspeed_config_file"] == "deepspeed.json"
        assert (tmp_path / "deepspeed.json").exists()
        assert config.deepspeed_config["zero3_init_flag"] is (strategy.parallel == "zero3")
        assert config.mixed_precision is None
    else:
        expected = {"amp-bf16": "bf16", "amp-fp16": "fp16"}.get(strategy.precision, "no")
        assert config.mixed_precision == expected
    assert bool(config.dynamo_config) is strategy.compile


def test_accelerate_launch_takes_every_key_of_its_tables(launched: Launch, tmp_path: Path) -> None:
    """What its launcher has no argument for it would ignore without a word."""
    from accelerate.commands.launch import launch_command_parser

    config = loaded(launched, tmp_path)
    known = {action.dest for action in launch_command_parser()._actions}
    for table in (config.deepspeed_config, config.fsdp_config, config.parallelism_config):
        assert set(table) <= known
    assert {f"dynamo_{k.removeprefix('dynamo_')}" for k in config.dynamo_config} <= known


def test_fsdp_settings(tmp_path: Path) -> None:
    config = loaded(launch("fsdp"), tmp_path)
    found = config.fsdp_config
    assert found["fsdp_version"] == 2
    assert found["fsdp_offload_params"] is True
    assert found["fsdp_activation_checkpointing"] is True
    assert found["fsdp_reshard_after_forward"] is True


def test_hsdp_is_copies_times_shards(tmp_path: Path) -> None:
    config = loaded(launch("hsdp", nodes=4), tmp_path)
    assert config.fsdp_config["fsdp_reshard_after_forward"] is False
    # 32 ranks: a node's 8 hold one copy, 4 copies.
    assert config.parallelism_config["parallelism_config_dp_replicate_size"] == 4
    assert config.parallelism_config["parallelism_config_dp_shard_size"] == 8


def environment(found: Launch, folder: Path) -> Mapping[str, str]:
    """What accelerate's own launcher hands to the ranks of that file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    write_files(emit(found), folder)
    words = ["--config_file", str(folder / "accelerate.yaml"), "--main_process_ip", "a", "s.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment: Mapping[str, str] = prepare_multi_gpu_env(arguments)
    return environment


def test_the_launcher_hands_on_what_the_plan_says(tmp_path: Path) -> None:
    told = environment(launch("hsdp", nodes=4), tmp_path / "hsdp")
    assert told["FSDP_VERSION"] == "2"
    assert told["FSDP_RESHARD_AFTER_FORWARD"] == "false"
    assert told["FSDP_ACTIVATION_CHECKPOINTING"] == "false"
    assert told["ACCELERATE_MIXED_PRECISION"] == "no"
    assert told["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == "4"
    assert told["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "8"
    told = environment(launch("fsdp", nodes=2), tmp_path / "fsdp")
    assert told["FSDP_OFFLOAD_PARAMS"] == told["FSDP_ACTIVATION_CHECKPOINTING"] == "true"
    assert told["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_what_accelerate_cannot_say_is_said() -> None:
    plain = {file.name: file for file in emit(launch("single")).files}["accelerate.yaml"]
    notes = " ".join(plain.notes)
    assert "micro-batch 4 (per_device_train_batch_size), accumulation 3" in notes
    assert all(f"# {note}" in plain.text for note in plain.notes)
    strategy = Strategy(
        recompute="every-4",
        loss="masked",
        precision="tf32",
        method="lora",
        quantization="none",
        offload="activations",
        hold_output=False,
    )
    found = emit(Launch(workload=WORKLOAD, strategy=strategy, cluster=launch("single").cluster))
    said = " ".join(found.notes)
    for word in ("every-4", "masked", "TF32", "lora", "activations", "given up"):
        assert word in said


# -- DeepSpeed ----------------------------------------------------------------------------------


def zero_documents() -> Iterator[tuple[Launch, dict[str, Any]]]:
    for name in STRATEGIES:
        if name.startswith("zero"):
            found = launch(name, nodes=2)
            yield found, json.loads(written(emit(found))["deepspeed.json"])


def test_deepspeed_says_the_plan() -> None:
    for found, document in zero_documents():
        strategy = found.strategy
        assert document["train_micro_batch_size_per_gpu"] == strategy.micro_batch
        assert document["gradient_accumulation_steps"] == strategy.accumulation
        # DeepSpeed refuses a batch that is not micro x accumulation x ranks: 16 of them.
        assert document["train_batch_size"] == strategy.micro_batch * strategy.accumulation * 16
        zero = document["zero_optimization"]
        assert zero["stage"] == int(strategy.parallel[-1])
        assert ("offload_param" in zero) is (strategy.offload in ("cpu", "cpu-params"))
        assert ("offload_optimizer" in zero) is (strategy.offload in ("cpu", "optimizer"))
        assert document["bf16"]["enabled"] is (strategy.precision == "bf16")
        assert document["fp16"]["enabled"] is (strategy.precision == "fp16-master")
        assert document["gradient_clipping"] == (strategy.max_grad_norm or 0.0)


def test_transformers_reads_it() -> None:
    """Its own reader of DeepSpeed files, which needs no DeepSpeed."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    for found, document in zero_documents():
        try:
            config = HfTrainerDeepSpeedConfig(document)
        except (ImportError, AttributeError, ValueError) as error:
            pytest.skip(f"it wants DeepSpeed itself here: {error}")
        assert config.is_zero3() is (found.strategy.parallel == "zero3")
        assert config.is_offload() is (found.strategy.offload != "none")


# In a process of its own: importing DeepSpeed patches torch, and it wants its ranks first.
READ_BY_DEEPSPEED = """
import json, os, sys
os.environ.update(RANK="0", WORLD_SIZE="16", LOCAL_RANK="0", DS_ACCELERATOR="cpu")
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=0, world_size=16, store=FakeStore())
import deepspeed.comm
deepspeed.comm.init_distributed("gloo", dist_init_required=False)
from deepspeed.runtime.config import DeepSpeedConfig
for file in sys.argv[1:]:
    c = DeepSpeedConfig(file)
    z = c.zero_config
    print("READ", json.dumps([
        c.train_batch_size, c.train_micro_batch_size_per_gpu, c.gradient_accumulation_steps,
        c.gradient_clipping, int(z.stage), z.offload_optimizer is not None,
        z.offload_param is not None, c.bfloat16_config.enabled, c.float16_config.enabled,
        c.optimizer_name, z.reduce_bucket_size]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_deepspeed_reads_it(tmp_path: Path) -> None:
    files, expected = [], []
    for number, (found, document) in enumerate(zero_documents()):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(document))
        strategy, zero = found.strategy, document["zero_optimization"]
        expected.append(
            [
                *(found.global_batch, strategy.micro_batch, strategy.accumulation),
                strategy.max_grad_norm or 0.0,
                int(strategy.parallel[-1]),
                *("offload_optimizer" in zero, "offload_param" in zero),
                *(strategy.precision == "bf16", strategy.precision == "fp16-master"),
                {"adamw-fused": "adamw", "sgd-momentum": "SGD", "lion": None}[strategy.optimizer],
                500_000_000,
            ]
        )
    ran = subprocess.run(
        [sys.executable, "-c", READ_BY_DEEPSPEED, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [line.removeprefix("READ ") for line in ran.stdout.splitlines() if "READ" in line]
    assert [json.loads(line) for line in lines] == expected


def test_no_deepspeed_file_for_other_strategies() -> None:
    found = emit(launch("fsdp"))
    assert "deepspeed.json" not in written(found)
    assert found.left_out == (("deepspeed.json", "parallel fsdp is not DeepSpeed's"),)


# -- scripts ------------------------------------------------------------------------------------


def test_bash_reads_the_scripts(launched: Launch, tmp_path: Path) -> None:
    write_files(emit(launched), tmp_path)
    for name in ("run.sh", "job.sbatch"):
        subprocess.run(["bash", "-n", str(tmp_path / name)], check=True)
    assert os.access(tmp_path / "run.sh", os.X_OK)


def started(found: Launch, folder: Path, **environment: str) -> list[str]:
    """The words that run.sh starts, told by a stand-in for each program."""
    write_files(emit(found), folder, force=True)
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("torchrun", "python", "accelerate"):
        (programs / name).write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@"\n')
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(folder / "run.sh"), "--max-steps", "3"],
        env={"PATH": f"{programs}:/usr/bin:/bin", **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_run_starts_one_device(tmp_path: Path) -> None:
    words = started(launch("single", run_flags={"learning-rate": "1e-4"}), tmp_path, DATA="a b")
    assert words == [
        *("python", "-m", "rigsize", "train", "--spec", f"{tmp_path}/rigsize.toml"),
        *("--data", "a b", "--out", "runs/xlm-roberta-base-masked-lm"),
        *("--learning-rate", "1e-4", "--max-steps", "3"),
    ]


def test_run_hands_on_a_value_as_it_is(tmp_path: Path) -> None:
    value = "a" + 6 * " " + "b"
    words = started(launch("single", run_flags={"wandb-project": value}), tmp_path, DATA="x")
    assert words[-4:] == ["--wandb-project", value, "--max-steps", "3"]


def test_run_starts_many_nodes(tmp_path: Path) -> None:
    words = started(launch("fsdp", 4, data="it's.jsonl"), tmp_path, HEAD="node-1")
    assert words[:9] == [
        *("torchrun", "--nnodes", "4", "--nproc-per-node", "8", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d"),
    ]
    assert words[words.index("--rdzv-endpoint") + 1] == "node-1:29500"
    assert words[words.index("--data") + 1] == "it's.jsonl"


def test_run_starts_a_script_where_we_run_no_such(tmp_path: Path) -> None:
    found = launch("zero2", 2)
    assert any("rigsize train does not run it" in note for note in emit(found).notes)
    words = started(found, tmp_path, HEAD="node-1", NODE="1", SCRIPT="train.py")
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("--machine_rank") + 1] == "1"
    assert words[-3].endswith("/train.py")


def test_run_wants_its_data(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        started(launch("single"), tmp_path)
    assert "DATA" in failed.value.stderr


def test_torchrun_itself_reads_its_line(tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    words = started(launch("ddp", 2), tmp_path, HEAD="node-1", DATA="x")
    parsed = get_args_parser().parse_args(words[1:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.training_script) == ("2", "8", "rigsize")


def test_sbatch_asks_for_whole_nodes(launched: Launch) -> None:
    found = launched
    text = written(emit(found))["job.sbatch"]
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert asked["nodes"] == str(found.cluster.nodes)
    assert asked["gpus-per-node"] == str(found.cluster.per_node)
    assert asked["ntasks-per-node"] == "1"
    # SLURM stops reading at the first command.
    body = text.partition("set -euo")[0].splitlines()[1:]
    assert all(line.startswith("#") for line in body)
    assert "time" not in asked
    assert re.fullmatch(r"[\w.-]+", asked["job-name"])


def test_sbatch_time_is_rounded_up() -> None:
    # 20 h x 1.25 = 25 h.
    text = written(emit(launch("ddp", most_hours=20.0)))["job.sbatch"]
    assert "#SBATCH --time=1-01:00:00" in text


# -- the verb -----------------------------------------------------------------------------------

BASE = ["emit", "xlm-roberta-base", "--task", "masked-lm", "--offline", "--max-length", "64"]


def test_verb_writes_and_never_writes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "new" / "plan")
    words = [*BASE, "--gpus", "A100-40GB", "--out", out, "--json"]
    assert run(words) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [file["name"] for file in document["files"]] == [
        *("rigsize.toml", "run.sh", "accelerate.yaml", "job.sbatch")
    ]
    assert "deepspeed.json is not written" in captured.err
    assert document["spec"]["batch_size"] == 8
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().out
    assert run([*words, "--parallel", "zero2", "--gpus", "A100-40GB:2", "--force"]) == 0
    assert (Path(out) / "deepspeed.json").exists()
    assert run([*words, "--force"]) == 0
    assert not (Path(out) / "deepspeed.json").exists()


def test_out_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (BASE, [*BASE, "--out", ""]):
        assert run(words) == 2
        assert "--out FOLDER" in capsys.readouterr().err


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("")
    assert run([*BASE, "--out", str(tmp_path / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_inference_has_no_launcher_but_ours(tmp_path: Path) -> None:
    assert run([*BASE, "--use", "inference", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rigsize.toml", "run.sh"]
    assert "rigsize measure" in (tmp_path / "run.sh").read_text()


def plan_file(tmp_path: Path, **changed: Any) -> Path:
    command = shlex.join(
        [
            *("rigsize", "estimate", "xlm-roberta-base", "--task", "masked-lm", "--use"),
            *("pre-training", "--max-length", "64", "--batch-size", "32", "--grad-accum", "4"),
            *("--parallel", "fsdp", "--gpus", "L4:4", "--no-hold-output", "--headroom", "1GiB"),
        ]
    )
    plans: list[dict[str, Any]] = [
        {"labels": ["cheapest"], "command": command, "time": {"hours": {"p90": 2.0}}},
        {"labels": ["fastest"], "command": command.replace("L4:4", "H100:8")},
    ]
    plans[0] |= changed
    (tmp_path / "plan.json").write_text(json.dumps({"plans": plans}))
    return tmp_path / "plan.json"


def test_a_plan_is_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["emit", "--plan", str(plan_file(tmp_path)), "--offline", "--json"]
    assert run([*words, "--out", str(tmp_path / "a")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gpus"] == "L4:4"
    assert document["spec"]["hold_output"] is False
    assert document["global_batch"] == 32 * 4 * 4
    assert "--time=0-02:30:00" in (tmp_path / "a" / "job.sbatch").read_text()
    assert run([*words, "--pick", "fastest", "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == "H100-80GB-SXM:8"
    assert run([*words, "--pick", "2", "--optim", "sgd", "--out", str(tmp_path / "c")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["spec"]["optim"] == "sgd"


@pytest.mark.parametrize("hours", [1e308, -1.0, None, "2", True, float("nan")])
def test_hours_that_are_no_limit(hours: object, tmp_path: Path) -> None:
    file = plan_file(tmp_path, time={"hours": {"p90": hours}})
    assert run(["emit", "--plan", str(file), "--offline", "--out", str(tmp_path / "a")]) == 0
    assert "--time=" not in (tmp_path / "a" / "job.sbatch").read_text()


def test_a_plan_file_of_windows(tmp_path: Path) -> None:
    file = plan_file(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert run(["emit", "--plan", str(file), "--offline", "--out", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize(
    ("flag", "value"), [("--max-steps", "0"), ("--learning-rate", "-1"), ("--schedule", "never")]
)
def test_what_train_would_refuse(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*BASE, "--out", str(tmp_path / "a"), flag, value]) == 2
    assert capsys.readouterr().err.startswith(f"rigsize: {flag[2:]}: ")
    assert not (tmp_path / "a").exists()


def test_without_a_cheapest_the_fastest_is_picked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one's own machines, which have no price."""
    file = plan_file(tmp_path, labels=["smallest"])
    assert run(["emit", "--plan", str(file), "--offline", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == "H100-80GB-SXM:8"


def test_what_misses_the_limits_is_picked_by_number_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plan_file(tmp_path)
    document = json.loads(file.read_text())
    document["plans"] = [document["plans"][0] | {"labels": ["nearest"]}]
    file.write_text(json.dumps(document))
    words = ["emit", "--plan", str(file), "--offline", "--json", "--out", str(tmp_path / "a")]
    assert run(words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["field"], error["allowed"]) == ("pick", ["1 to 1"])
    assert run([*words, "--pick", "1"]) == 0


@pytest.mark.parametrize("pick", ["slowest", "3", "0"])
def test_no_such_plan(pick: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["emit", "--plan", str(plan_file(tmp_path)), "--pick", pick, "--out", str(tmp_path)]
    assert run(words) == 2
    assert "pick" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *("rm -rf /", "rigsize estimate a b", "rigsize estimate 'a", "rigsize x", 3, None),
        "rigsize plan xlm-roberta-base --own L4",
    ],
)
def test_a_plan_that_is_none(
    command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["emit", "--plan", str(plan_file(tmp_path, command=command)), "--out"]
    assert run([*words, str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.startswith("rigsize: ")


@pytest.mark.parametrize("text", ["", "[]", '{"plans": []}', '{"plans": [1]}', "{" * 10_000])
def test_a_file_without_plans(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    assert run(["emit", "--plan", str(tmp_path / "p.json"), "--out", str(tmp_path)]) == 2


def test_written_over_only_when_asked(tmp_path: Path) -> None:
    found = emit(launch("single"))
    write_files(found, tmp_path)
    with pytest.raises(SpecError, match="exists already"):
        write_files(found, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_does_not_fit_is_written_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*BASE, "--gpus", "L4", "--out", str(tmp_path), "--force"]
    assert run([*words, "--batch-size", "8"]) == 0
    assert "does not fit" not in capsys.readouterr().err
    assert run([*words, "--batch-size", "4096"]) == 0
    assert capsys.readouterr().err.count("warning: it does not fit L4") == 1
