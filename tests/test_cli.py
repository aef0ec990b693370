"""The command line as a contract: options, exit codes, streams, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rigsize
from rigsize.cli import run
from rigsize.cli_flags import VERBS, VERBS_LATER
from tests.report import hand_made

JOB = set(
    "--task --num-labels --use --max-length --max-target-length --padding --padding-in-batch"
    " --no-padding-in-batch --mask-share --examples --epochs --method --lora-rank --lora-targets"
    " --adapter-dtype --virtual-tokens --lora-dropout --rslora --quantization --shard-size"
    " --reshard --no-reshard --bucket-view --optim-in-backward --compile"
    " --precision --optim --batch-size --global-batch --grad-accum"
    " --attention --recompute --loss --tokens-per-batch --max-grad-norm --hold-output"
    " --no-hold-output --parallel --offload --recipe --spec --trust-remote-code --offline --json"
    " --prompt-length --max-new-tokens".split()
)
DATA = {"--data", "--text-column", "--label-column", "--target-column", "--tokenizer"}
MEASURE = set(
    "--device --steps --seed --histogram --world --cap --snapshot --attribution --suite"
    " --max-minutes --out".split()
)
TRAIN = set(
    "--eval-data --eval-share --out --learning-rate --weight-decay --schedule --warmup-share"
    " --max-steps --eval-every --save-every --save-minutes --keep --checkpoint --no-checkpoint"
    " --patience --log-every --init --resume --group-by-length --progress --tensorboard --export"
    " --no-export --predict --no-predict --ranks --max-restarts --device --seed".split()
)
TIME = set(
    "--time --no-time --eval-share --save-minutes --offer --offers --provider --region --spot"
    " --own-price --power-price --calibration".split()
)
OPTIONS = {
    "compare": JOB | {"--gpus", "--accelerators", "--record"},
    "estimate": JOB
    | DATA
    | TIME
    | set(
        "--histogram --gpus --accelerators --headroom --host-memory --network --fail-over"
        " --explain".split()
    ),
    "table": {"--use", "--json"},
    "measure": JOB | DATA | MEASURE,
    "train": JOB | DATA | TRAIN,
    "data": DATA - {"--data"} | {"--task", "--max-length", "--batch-size", "--out", "--json"},
    "validate": {"--cases", "--records", "--page", "--json"},
    "gpus": {"--here", "--accelerators", "--json"},
    "offers": set(
        "--gpu --provider --count --max-price --spot --region --fractional --offers --from"
        " --accelerators"
        " --limit --json".split()
    ),
    "records": {"--out", "--json"},
    "calibrate": {"--device", "--quick", "--out", "--json"},
    "plan": JOB
    | DATA
    | {"--histogram"}
    | set(
        "--max-price --max-hours --max-gpus --gpu --provider --region --spot --offers --own"
        " --accelerators --host-memory --network --power-price --headroom --allow"
        " --scaling".split()
    ),
    "emit": JOB
    | DATA
    | set(
        "--gpus --accelerators --host-memory --network --plan --pick --out --force --seed"
        " --eval-data --eval-share"
        " --learning-rate --weight-decay --schedule --warmup-share --max-steps --init".split()
    ),
}
BASE = ("estimate", "xlm-roberta-base", "--offline")
WRITE = ("estimate", "openai-community/gpt2", "--use", "inference")

Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    """(exit code, stdout, stderr) of a command that traces nothing."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, ran: Ran) -> Ran:
    """The same with every model answered from the hand-made profile."""
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)
    return ran


def one_line(stderr: str) -> str:
    assert stderr.startswith("rigsize: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    return stderr


# -- the contract -------------------------------------------------------------------------------


def test_options_are_frozen() -> None:
    found = {verb: {o for flag in flags for o in flag.options} for verb, flags in VERBS.items()}
    assert found == OPTIONS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_shows_every_option_that_is_answered(verb: str, ran: Ran) -> None:
    code, out, err = ran(verb, "--help")
    assert (code, err) == (0, "")
    for flag in VERBS[verb]:
        assert (f"--{flag.name}" in out) is not flag.later
        assert flag.later or flag.help


def test_help_without_a_verb(ran: Ran) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        code, out, err = ran(*arguments)
        assert (code, err) == (0, "")
        assert all(verb in out for verb in VERBS)
        assert "Exit codes" in out


def test_version(ran: Ran) -> None:
    assert ran("--version") == (0, f"rigsize {rigsize.__version__}\n", "")


@pytest.mark.parametrize(
    "code",
    [
        "import rigsize",
        "from rigsize.cli import run; run(['--help'])",
        "from rigsize.cli import run; run(['estimate', '--help'])",
        "from rigsize.cli import run; run(['gpus', '--json'])",
        "from rigsize.cli import run; run(['estimate', 'xlm-roberta-base', '--task', 'x'])",
        "import rigsize.estimate, rigsize.search, rigsize.seed_table, rigsize.report.text",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    probe = (
        "import sys; print([m for m in ('torch', 'transformers', 'numpy', 'rich', 'pandas',"
        " 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{probe}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(rigsize.__file__).parents[1])},
    )
    loaded = done.stdout.splitlines()[-1]
    assert loaded in ("[]", "['rich']" if "report.text" in code else "[]")


def test_python_m_rigsize() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rigsize", "estimate", "xlm-roberta-base", "--task", "x"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(rigsize.__file__).parents[1])},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    one_line(done.stderr)


# -- bad input ----------------------------------------------------------------------------------

BAD = {
    "unknown model": (
        ("estimate", "xlm-roberta-bse", "--offline"),
        "did you mean xlm-roberta-base",
    ),
    "empty model": (("estimate", ""), "model: empty"),
    "no model": (("estimate",), "model: missing"),
    "no head": ((*BASE, "--task", "seq2seq-lm"), "xlm-roberta has no head for it"),
    "unknown task": ((*BASE, "--task", "maskedlm"), "did you mean masked-lm"),
    "beyond positions": ((*BASE, "--max-length", "513"), "1 to 512"),
    "batch 0": ((*BASE, "--batch-size", "0"), "a whole number from 1"),
    "batch -5": ((*BASE, "--batch-size", "-5"), "a whole number from 1"),
    "batch of words": ((*BASE, "--batch-size", "ten"), "batch-size: not a whole number"),
    "batch absurd": ((*BASE, "--batch-size", "9" * 5000), "batch-size: not a whole number"),
    "batch too large": ((*BASE, "--batch-size", "1000001"), "1,000,000"),
    "length 0": ((*BASE, "--max-length", "0"), "max-length"),
    "labels 0": ((*BASE, "--num-labels", "0"), "num-labels"),
    "accumulation 0": ((*BASE, "--grad-accum", "0"), "grad-accum"),
    "global batch 0": ((*BASE, "--global-batch", "0"), "global-batch"),
    "epochs 0": ((*BASE, "--epochs", "0"), "epochs"),
    "norm": ((*BASE, "--max-grad-norm", "nan"), "max-grad-norm"),
    "unknown gpu": ((*BASE, "--gpus", "A1000"), "did you mean A100"),
    "gpu count 0": ((*BASE, "--gpus", "H100:0"), "an impossible count"),
    "gpu of another stack": ((*BASE, "--gpus", "Gaudi3"), "only CUDA and ROCm devices and cpu"),
    "gpu without ROCm": ((*BASE, "--gpus", "V520"), "not in the list of cards that ROCm supports"),
    "headroom all": ((*BASE, "--headroom", "100%"), "leaves nothing"),
    "headroom beyond": ((*BASE, "--headroom", "200%"), "percentages below 100"),
    "headroom words": ((*BASE, "--headroom", "some"), "not a size with a unit"),
    "fail-over bare": ((*BASE, "--fail-over", "24"), "not a size with a unit"),
    "auto accumulation": ((*BASE, "--grad-accum", "auto"), "needs --global-batch"),
    "both": ((*BASE, "--global-batch", "64", "--grad-accum", "4"), "give one of the two"),
    "fp16 training": ((*BASE, "--precision", "fp16"), "did you mean fp16-master"),
    "unknown precision": ((*BASE, "--precision", "amp-bf61"), "did you mean amp-bf16"),
    "no such option": ((*BASE, "--bach-size", "3"), "did you mean --batch-size"),
    "no value": ((*BASE, "--gpus"), "requires an argument"),
    "two models": (("estimate", "a", "b"), "unexpected extra argument"),
    "no such verb": (("estimat", "a"), "did you mean estimate"),
    "no such file": ((*BASE, "--spec", "/no/such.toml"), "spec: no such file"),
    "device": (("measure", "xlm-roberta-base", "--device", "tpu"), "allowed: cpu, cuda"),
    "steps": (("measure", "xlm-roberta-base", "--device", "cpu", "--steps", "1"), "steps"),
    "measured auto": (("measure", "xlm-roberta-base", "--batch-size", "auto"), "needs a number"),
    "no suite": (("measure", "--suite", "/no/such.toml", "--max-minutes", "1"), "no such file"),
    "time alone": (("measure", "xlm-roberta-base", "--max-minutes", "1"), "only a suite"),
    "suite and more": (("measure", "--suite", "x.toml", "--task", "masked-lm"), "not with --suite"),
    "world of one": (
        ("measure", "xlm-roberta-base", "--world", "4"),
        "parallel single is one rank",
    ),
    "cap on a CPU": (
        ("measure", "xlm-roberta-base", "--cap", "40GiB", "--device", "cpu"),
        "no caching allocator",
    ),
    "LLM.int8 served by a CPU": (
        ("measure", "xlm-roberta-base", "--use", "inference", "--precision", "int8"),
        "instruction set",
    ),
    "fp8 before Ada": (
        (*BASE, "--use", "inference", "--precision", "fp8", "--gpus", "A100-40GB:1"),
        "needs compute capability 8.9",
    ),
    "quantised in full": ((*BASE, "--quantization", "nf4"), "--method qlora"),
    "no histogram": (("measure", "xlm-roberta-base", "--histogram", "/no/such.json"), "histogram"),
    "offload alone": ((*BASE, "--offload", "cpu"), "needs sharded parameters"),
    "half offload": (
        (*BASE, "--parallel", "fsdp", "--offload", "optimizer"),
        "to the host together or not at all",
    ),
    "scaled and offloaded": (
        (*BASE, "--precision", "amp-fp16", "--offload", "optimizer"),
        "no gradient scaler works on gradients that left the device",
    ),
    "zero by autocast": (
        (*BASE, "--parallel", "zero2", "--precision", "amp-bf16"),
        "did you mean bf16?",
    ),
    "zero factored": (
        (*BASE, "--parallel", "zero3", "--optim", "adafactor"),
        "gives the optimizer flat vectors",
    ),
    "zero answers": ((*BASE, "--parallel", "zero3", "--use", "inference"), "did you mean fsdp?"),
    "zero2 offloads weights": (
        (*BASE, "--parallel", "zero2", "--precision", "bf16", "--offload", "cpu"),
        "zero3 can offload them",
    ),
    "training writes nothing": (
        ("estimate", "gpt2", "--prompt-length", "8"),
        "fine-tuning writes no tokens",
    ),
    "an encoder writes nothing": (
        (*BASE, "--use", "inference", "--max-new-tokens", "8"),
        "only causal-lm and seq2seq-lm write tokens",
    ),
    "written past its positions": (
        (*WRITE, "--prompt-length", "1000", "--max-new-tokens", "100"),
        "has positions for 1,024 tokens",
    ),
    "written behind virtual tokens": (
        (*WRITE, "--max-new-tokens", "8", "--method", "prefix"),
        "did you mean lora",
    ),
    "written unpadded": (
        (*WRITE, "--max-new-tokens", "8", "--padding", "unpadded"),
        "pads prompts on their left",
    ),
    "batch and length auto": (
        (*WRITE, "--prompt-length", "auto", "--batch-size", "auto"),
        "the batch is auto already",
    ),
    "measured at any length": (
        ("measure", *WRITE[1:], "--prompt-length", "auto"),
        "a measured run needs a number",
    ),
    "over machines": (
        (*WRITE, "--gpus", "A100-40GB:2x2"),
        "the devices of one machine",
    ),
    "no host": ((*BASE, "--host-memory", "0GiB"), "no memory at all"),
    "no network": ((*BASE, "--gpus", "L4:1x2", "--network", "0"), "network: not a network's rate"),
    "network with a unit": ((*BASE, "--network", "100GbE"), "network: not a number"),
    "host of what": ((*BASE, "--host-memory", "256"), "not a size with a unit"),
    "no cases": (("validate", "--cases", "/no/such.toml"), "cannot be read"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_and_exit_2(case: str, ran: Ran) -> None:
    arguments, expected = BAD[case]
    code, out, err = ran(*arguments)
    assert (code, out) == (2, "")
    assert expected in one_line(err)


CONTRADICTIONS = [
    (("--method", "qlora", "--quantization", "none"), "qlora says otherwise"),
    (
        ("--use", "inference", "--precision", "int8", "--quantization", "nf4"),
        "int8 says otherwise",
    ),
    (("--use", "inference", "--precision", "fp16-master"), "did you mean fp16"),
]


@pytest.mark.parametrize(("flags", "words"), CONTRADICTIONS)
def test_flags_that_contradict_one_another_are_refused(
    flags: tuple[str, ...], words: str, ran: Ran
) -> None:
    code, out, err = ran(*BASE, *flags)
    assert (code, out) == (2, "")
    assert words in one_line(err)


NOT_YET = [
    *(("--parallel", v) for v in ("tensor", "pipeline", "context", "expert")),
]


@pytest.mark.parametrize(("flag", "value"), NOT_YET)
def test_what_a_later_release_answers_is_refused_by_name(flag: str, value: str, ran: Ran) -> None:
    code, out, err = ran(*BASE, flag, value)
    assert (code, out) == (2, "")
    assert "not answered yet" in one_line(err)
    assert value in err


@pytest.mark.parametrize("what", ["optimizer", "activations"])
def test_inference_has_nothing_to_offload(what: str, answering: Ran) -> None:
    code, _, err = answering(*BASE, "--use", "inference", "--offload", what)
    assert code == 0
    assert f"--offload {what} has no effect on inference" in err


@pytest.mark.parametrize("size", ["64GiB", "1GiB"])
def test_the_host_is_checked_too(size: str, answering: Ran) -> None:
    code, out, _ = answering(*BASE, "--host-memory", size, "--max-length", "128", "--json")
    document = json.loads(out)
    fits = size == "64GiB"
    assert code == (0 if fits else 3)
    assert document["fit"]["host_verdict"] == ("fits" if fits else "does_not_fit")
    assert document["fit"]["verdict"] == document["fit"]["host_verdict"]
    assert sum(row["bytes"] for row in document["host"]["ledger"]) == document["host"]["peak_bytes"]


IMPOSSIBLE = {
    "in backward, accumulated": (("--optim-in-backward", "--grad-accum", "2"), "--grad-accum 1"),
    "in backward, clipped": (("--optim-in-backward", "--max-grad-norm", "1"), "--max-grad-norm 0"),
    "in backward, scaled": (("--optim-in-backward", "--precision", "amp-fp16"), "amp-bf16"),
    "in backward, ranks": (("--optim-in-backward", "--gpus", "L4:2"), "one GPU"),
    "rounding in fp32": (("--optim", "adamw-sr"), "--precision bf16"),
    "muon sharded": (("--optim", "muon", "--parallel", "fsdp", "--gpus", "L4:2"), "ddp"),
    "muon on prompts": (
        ("--optim", "muon", "--method", "prompt", "--max-length", "128"),
        "adamw-fused",
    ),
    "every first block": (("--recompute", "every-1"), "block"),
    "lengths twice": (
        ("--padding", "dynamic", "--histogram", "h", "--data", "d"),
        "one of the two",
    ),
    "no histogram": (("--padding", "dynamic", "--histogram", "nowhere.json"), "histogram"),
}


@pytest.mark.parametrize("name", sorted(set(IMPOSSIBLE) - {"muon on prompts"}))
def test_impossible_combinations_name_what_works(name: str, ran: Ran) -> None:
    arguments, works = IMPOSSIBLE[name]
    code, out, err = ran(*BASE, *arguments)
    assert (code, out) == (2, "")
    assert works in one_line(err)


@pytest.mark.slow  # an adapter is traced
def test_muon_needs_a_matrix(ran: Ran) -> None:
    arguments, works = IMPOSSIBLE["muon on prompts"]
    code, _, err = ran(*BASE, *arguments)
    assert code == 2
    assert works in err


def test_an_optimizer_in_backward_does_not_clip_and_says_so(answering: Ran) -> None:
    code, out, err = answering(*BASE, "--optim-in-backward", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["strategy"]["max_grad_norm"] is None
    assert any("cannot clip" in line for line in document["assumptions"])
    assert "--optim-in-backward" in document["command"]


def test_known_lengths_are_answered_by_their_worst_batch(tmp_path: Path, answering: Ran) -> None:
    file = tmp_path / "lengths.json"
    file.write_text("[[8, 90], [64, 9], [200, 1]]")
    lengths = ("--histogram", str(file), "--max-length", "256", "--batch-size", "8")
    code, out, err = answering(*BASE, "--padding", "dynamic", *lengths, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["workload"]["max_length"] == 200
    peaks = {peak["moment"]: peak["device_peak_bytes"] for peak in document["peaks"]}
    assert peaks["usual batch"] < peaks["later steps"] == document["memory"]["device_peak_bytes"]
    code, out, err = answering(*BASE, *lengths, "--json")
    assert any(line.startswith("examples ") for line in json.loads(out)["assumptions"])
    assert json.loads(out)["workload"]["max_length"] == 256


@pytest.mark.parametrize("verb", VERBS_LATER)
def test_later_verbs(verb: str, ran: Ran) -> None:
    code, out, err = ran(verb)
    assert (code, out) == (2, "")
    assert "not answered yet" in one_line(err)


CONFIGS = {
    "truncated": '{"model_type": "bert", ',
    "not an object": "[1, 2]",
    "wrong type": '{"model_type": "bert", "hidden_size": "x"}',
    "absurd": '{"model_type": "bert", "num_hidden_layers": 1000000000000}',
    "deep": '{"a":' * 100_000,
    "remote code": '{"model_type": "weird", "auto_map": {"AutoModel": "m.M"}}',
    "binary": "\x00\x01",
    "nan": '{"model_type": "bert", "hidden_size": NaN}',
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("how", ["folder", "file"])
def test_a_bad_config_is_one_line(name: str, how: str, tmp_path: Path, ran: Ran) -> None:
    file = tmp_path / "config.json"
    file.write_text(CONFIGS[name])
    code, out, err = ran("estimate", str(tmp_path if how == "folder" else file))
    assert (code, out) == (2, "")
    one_line(err)


def test_remote_code_says_which_flag_runs_it(tmp_path: Path, ran: Ran) -> None:
    (tmp_path / "config.json").write_text(CONFIGS["remote code"])
    assert "--trust-remote-code" in ran("estimate", str(tmp_path))[2]


def test_an_error_as_json(ran: Ran) -> None:
    code, out, err = ran(*BASE, "--gpus", "A1000", "--json")
    assert (code, err) == (2, "")
    document = json.loads(out)
    assert set(document) == {"schema_version", "error"}
    assert set(document["error"]) == {"kind", "field", "value", "allowed", "nearest", "message"}
    assert document["error"]["kind"] == "unknown_device"
    assert document["error"]["nearest"] == "A100"


@pytest.mark.parametrize("arguments", [("estimat",), (*BASE, "--bach-size", "3"), ("plan",)])
def test_usage_errors_as_json(arguments: tuple[str, ...], ran: Ran) -> None:
    code, out, err = ran(*arguments, "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"]["field"]


# -- our own mistakes ---------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a mistake\nof two lines")

    monkeypatch.setattr("rigsize.estimate.find_profile", fail)


@pytest.mark.usefixtures("broken")
def test_an_internal_error_is_one_line_and_exit_1(ran: Ran) -> None:
    code, out, err = ran(*BASE)
    assert (code, out) == (1, "")
    assert "internal error (KeyError" in one_line(err)
    assert "RIGSIZE_DEBUG=1 rigsize estimate xlm-roberta-base --offline" in err


@pytest.mark.usefixtures("broken")
def test_an_internal_error_as_json(ran: Ran) -> None:
    code, out, err = ran(*BASE, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["error"]["kind"] == "internal"


@pytest.mark.usefixtures("broken")
def test_the_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGSIZE_DEBUG", "1")
    with pytest.raises(KeyError):
        run(BASE)


def test_an_interrupt_says_what_it_ended(monkeypatch: pytest.MonkeyPatch, ran: Ran) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rigsize.estimate.find_profile", interrupt)
    code, out, err = ran(*BASE)
    assert (code, out) == (130, "")
    assert "interrupted: estimate xlm-roberta-base" in one_line(err)


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m rigsize gpus --json | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(rigsize.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == ""
    assert done.stdout.endswith("0\n")


# -- answers ------------------------------------------------------------------------------------


def answer(ran: Ran, *arguments: str) -> dict[str, Any]:
    code, out, err = ran(*BASE, *arguments, "--json")
    assert code in (0, 3), err
    document: dict[str, Any] = json.loads(out)
    return document


def test_the_answer_is_on_stdout_alone(answering: Ran) -> None:
    code, out, err = answering(*BASE)
    assert (code, err) == (0, "")
    assert out.startswith("fits: FacebookAI/xlm-roberta-base")
    assert "\x1b" not in out


def test_explain(answering: Ran) -> None:
    out = answering(*BASE, "--explain")[1]
    assert "Alive at the peak, by module" in out
    assert "256·B·S" in out
    assert "^ peak" in out
    assert set(answer(answering, "--explain")["explain"]) >= {"modules", "largest"}


def test_what_is_assumed_is_said(answering: Ran) -> None:
    document = answer(answering)
    said = " ".join(document["assumptions"])
    for name in ("gpus A100-40GB", "batch-size 8", "max-length 512", "precision fp32", "task"):
        assert name in said
    given = ("--gpus", "L4", "--batch-size", "2", "--max-length", "64", "--precision", "fp32")
    said = " ".join(answer(answering, *given)["assumptions"])
    assert "batch-size" not in said
    assert "max-length" not in said


def test_the_command_asks_the_same_question(answering: Ran) -> None:
    import shlex

    first = answer(answering, "--batch-size", "4", "--headroom", "10%", "--optim", "sgd")
    again = shlex.split(first["command"])[1:]
    code, out, _ = answering(*again, "--json")
    second = json.loads(out)
    assert code == 0
    for key in ("memory", "fit", "plan", "workload", "strategy", "command"):
        assert first[key] == second[key], key


@pytest.mark.parametrize(
    ("use", "task"), [("fine-tuning", "sequence-classification"), ("pre-training", "masked-lm")]
)
def test_the_usual_task(use: str, task: str, answering: Ran) -> None:
    assert answer(answering, "--use", use)["workload"]["task"] == task


@pytest.mark.parametrize(
    ("model", "length"), [("xlm-roberta-base", 512), ("openai-community/gpt2", 1024)]
)
def test_the_usual_length(model: str, length: int, answering: Ran) -> None:
    out = answering("estimate", model, "--offline", "--json")[1]
    assert json.loads(out)["workload"]["max_length"] == length


def test_a_global_batch_sets_the_accumulation(answering: Ran) -> None:
    # ceil(8192 / 26) = 316, as the article has it; 316 x 26 = 8,216.
    document = answer(answering, "--global-batch", "8192", "--batch-size", "26")
    assert document["plan"] == plan_of(26, 316, 8216)
    assert any("8,216, not 8,192" in note for note in document["notes"])


def plan_of(micro: int, accumulation: int, total: int, ranks: int = 1) -> dict[str, int]:
    return {
        "micro_batch": micro,
        "accumulation": accumulation,
        "ranks": ranks,
        "global_batch": total,
    }


def test_a_global_batch_is_spread_over_the_ranks(answering: Ran) -> None:
    # ceil(8192 / (26 x 4)) = 79; 79 x 26 x 4 = 8,216.
    ranks = ["--gpus", "A100-40GB:4", "--parallel", "fsdp"]
    document = answer(answering, "--global-batch", "8192", "--batch-size", "26", *ranks)
    assert document["plan"] == plan_of(26, 79, 8216, ranks=4)
    assert any("8,216, not 8,192" in note for note in document["notes"])


def test_inference_has_no_accumulation(answering: Ran) -> None:
    code, out, err = answering(*BASE, "--use", "inference", "--grad-accum", "4", "--json")
    assert code == 0
    assert json.loads(out)["plan"]["accumulation"] == 1
    assert "warning: --grad-accum has no effect on inference" in err


@pytest.mark.parametrize("flag", ["--bucket-view", "--reshard"])
def test_what_another_parallel_has_warns(answering: Ran, flag: str) -> None:
    code, _, err = answering(*BASE, flag, "--json")
    assert code == 0
    assert f"warning: {flag} has no effect on parallel single" in err


def test_the_largest_batch(answering: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigsize.search.largest_batch", lambda *_: 48)
    assert answer(answering, "--batch-size", "auto")["plan"]["micro_batch"] == 48
    plan = answer(answering, "--batch-size", "auto", "--global-batch", "100")["plan"]
    assert plan == plan_of(48, 3, 144)
    plan = answer(answering, "--batch-size", "auto", "--global-batch", "20")["plan"]
    assert plan == plan_of(20, 1, 20)
    ranks = ["--gpus", "A100-40GB:8", "--parallel", "fsdp"]
    plan = answer(answering, "--batch-size", "auto", "--global-batch", "100", *ranks)["plan"]
    assert plan == plan_of(13, 1, 104, ranks=8)  # ceil(100 / 8) = 13 is less than what fits


def test_not_even_one_text_fits(answering: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigsize.search.largest_batch", lambda *_: 0)
    document = answer(answering, "--batch-size", "auto")
    assert document["plan"]["micro_batch"] == 1
    assert "not even a batch of 1 fits" in document["notes"]


def test_fail_over(answering: Ran) -> None:
    assert answering(*BASE, "--fail-over", "24GiB")[0] == 0
    code, out, _ = answering(*BASE, "--fail-over", "100MiB")
    assert code == 3
    assert out.startswith("above the limit of 100.0 MiB (--fail-over); by itself: fits: ")


def test_what_does_not_fit_is_an_answer(answering: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigsize.search.cheapest_edits", lambda *_: [])
    flags = ("--batch-size", "1000000", "--max-length", "512")
    began = time.monotonic()
    code, out, err = answering(*BASE, *flags)
    assert time.monotonic() - began < 5
    assert (code, err) == (3, "")
    assert out.startswith("does not fit: ")
    assert "over by" in out
    document = answer(answering, *flags)
    assert document["fit"]["verdict"] == "does_not_fit"
    assert document["fit"]["headroom_bytes"] < 0
    assert document["edits"] == []


def test_headroom_is_kept_free(answering: Ran) -> None:
    plain = answer(answering)["fit"]
    # The context alone takes 0.35 GiB or more: 39.49 - 39.3 is too little for it.
    kept = answer(answering, "--headroom", "39.3GiB")["fit"]
    assert plain["verdict"] == "fits"
    assert kept["verdict"] == "does_not_fit"
    assert kept["capacity_bytes"] == plain["capacity_bytes"]
    assert kept["headroom_bytes"] == plain["headroom_bytes"]


def test_cpu(answering: Ran) -> None:
    document = answer(answering, "--gpus", "cpu")
    assert document["memory"]["device_peak_bytes"] is None
    assert document["memory"]["device_peak_bytes_unknown_reason"] == "not on CPU"


def test_underscores_are_understood(answering: Ran) -> None:
    assert answer(answering, "--batch_size", "3")["plan"]["micro_batch"] == 3


# -- spec files ---------------------------------------------------------------------------------


def spec(tmp_path: Path, text: str) -> tuple[str, str]:
    file = tmp_path / "job.toml"
    file.write_text(text)
    return "--spec", str(file)


def test_a_spec_file_of_windows(tmp_path: Path, answering: Ran) -> None:
    text = '\ufeffmodel = "xlm-roberta-base"\r\nbatch_size = 4\r\ngpus = "L4"\r\n'
    code, out, _ = answering("estimate", *spec(tmp_path, text), "--json")
    assert (code, json.loads(out)["plan"]["micro_batch"]) == (0, 4)


def test_a_spec_file(tmp_path: Path, answering: Ran) -> None:
    text = 'model = "xlm-roberta-base"\nbatch-size = 4\npadding_in_batch = false\ngpus = "L4"\n'
    code, out, _ = answering("estimate", *spec(tmp_path, text), "--batch-size", "5", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["plan"]["micro_batch"] == 5, "the command line wins"
    assert document["workload"]["padding_in_batch"] is False
    assert document["cluster"]["accelerator"] == "L4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bach_size = 4", "did you mean batch_size"),
        ("batch_size = true", "not a text or a number"),
        ("batch_size = [4]", "not a text or a number"),
        ("padding_in_batch = 1", "not a switch"),
        ("batch_size = 99999999999999999999", "absurdly large"),
        ("batch_size = 2.5", "not a whole number"),
        ("batch_size = ", "cannot be read as TOML"),
        ("a = " + "[" * 10_000, "cannot be read as TOML"),
    ],
)
def test_a_bad_spec_file(text: str, expected: str, tmp_path: Path, ran: Ran) -> None:
    code, out, err = ran(*BASE, *spec(tmp_path, text))
    assert (code, out) == (2, "")
    assert expected in one_line(err)


# -- the other verbs ----------------------------------------------------------------------------


def test_gpus(ran: Ran) -> None:
    code, out, err = ran("gpus")
    assert (code, err) == (0, "")
    assert "A100-40GB-SXM" in out
    rows = json.loads(ran("gpus", "--json")[1])["accelerators"]
    by_id = {row["id"]: row for row in rows}
    assert by_id["A100-40GB-SXM"]["answered"] is True
    assert by_id["MI300X"]["answered"] is True
    assert by_id["Radeon-Pro-V520"]["answered"] is False
    assert all("capacity_bytes_unknown_reason" in r for r in rows if r["capacity_bytes"] is None)


def test_table(answering: Ran) -> None:
    code, out, _ = answering("table")
    assert code == 0
    assert "not answered yet" not in out
    rows = json.loads(answering("table", "--json")[1])["rows"]
    assert len(rows) == 13
    tuned = json.loads(answering("table", "--json", "--use", "fine-tuning")[1])["rows"]
    assert tuned == rows[:4]


def test_a_refused_measurement_leaves_nothing(ran: Ran, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    assert ran("measure", "xlm-roberta-base", "--device", "cpu", "--seed", "-1", *out)[0] == 2
    assert list(tmp_path.iterdir()) == []


# -- for real -----------------------------------------------------------------------------------

TINY = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
SIZES = ("--batch-size", "2", "--max-length", "16", "--task", "masked-lm")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def rigsize_process(tiny: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, with caches beside the model."""
    pytest.importorskip("transformers")
    env = {
        "PYTHONPATH": str(Path(rigsize.__file__).parents[1]),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tiny),
        "XDG_CACHE_HOME": str(tiny / "cache"),
        "XDG_DATA_HOME": str(tiny / "data"),
    }
    command = [sys.executable, "-m", "rigsize", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.slow
def test_a_folder_is_traced_once_and_said_on_stderr(tiny: Path) -> None:
    first = rigsize_process(tiny, "estimate", str(tiny), *SIZES, "--json")
    assert first.returncode == 0, first.stderr
    assert "tracing" in one_line(first.stderr)
    again = rigsize_process(tiny, "estimate", str(tiny), *SIZES, "--json")
    assert again.stderr == ""
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_measured_beside_predicted(tiny: Path) -> None:
    done = rigsize_process(tiny, "measure", str(tiny), *SIZES, "--device", "cpu", "--json")
    assert done.returncode in (0, 4), done.stderr
    document = json.loads(done.stdout)
    assert set(document) >= {"schema_version", "record", "prediction", "rows", "inside_band"}
    assert document["record"]["outcome"] == "ok"
    (record,) = (tiny / "data" / "rigsize" / "records").glob("*.json")
    assert json.loads(record.read_text())["record_id"] == document["record"]["record_id"]
    assert f"Record written to {record}" in done.stderr


@pytest.mark.slow
def test_a_suite_is_resumed(tiny: Path) -> None:
    out = tiny / "out.jsonl"
    suite = tiny / "suite.toml"
    suite.write_text(
        f'[[spec]]\nid = "one"\nmodel = "{tiny}"\ntask = "masked-lm"\nmax_length = 16\n'
    )
    flags = ("--suite", str(suite), "--max-minutes", "3", "--out", str(out), "--device", "cpu")
    first = rigsize_process(tiny, "measure", *flags, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["outcomes"] == {"ok": 1}
    again = rigsize_process(tiny, "measure", *flags)
    assert "0 are left" in again.stdout
    assert "1 were done before" in again.stdout
