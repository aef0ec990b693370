"""One process: exact resuming, and everything that is not a whole checkpoint of this run."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.rank import tiny_xlm_roberta
from torch import nn

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.run.optimizers import MasterWeights, make_torch_optimizer
from rigsize.spec.optimizers import OPTIMIZERS, PACKAGES
from rigsize.spec.strategy import Strategy
from rigsize.train.checkpoint import PHASES, RANDOM_STATE_RESTORED, Checkpoints, needed_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16-master": torch.float16}


def toy(seed: int) -> nn.Module:
    """Dropout uses random state, BatchNorm has persistent buffers, one of them an integer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 300), nn.Dropout(0.2), nn.BatchNorm1d(300), nn.Linear(300, 1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """Losses over random inputs, drawn from torch's generator."""
    losses = []
    dtype = next(model.parameters()).dtype
    for _ in range(count):
        loss = model(torch.rand(8, 6).to(dtype)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def of(folder: Path, **options: Any) -> Checkpoints:
    return Checkpoints(folder, identity={"model": {"hidden_size": 300}}, **options)


def steps_in(folder: Path) -> list[str]:
    """All that is there but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def saved(folder: Path, last: int = 2) -> Checkpoints:
    """Checkpoints of every step to ``last``, all kept."""
    checkpoints = of(folder, keep=last)
    model = toy(0)
    optimizer = adamw(model)
    for step in range(1, last + 1):
        steps(model, optimizer, 1)
        checkpoints.save(step, model, optimizer, {"step": step})
    return checkpoints


@pytest.mark.filterwarnings(  # bitsandbytes' own; paging is tested apart
    "ignore:Paged optimizers are not supported on CPU:UserWarning",
    # Inductor's own, at its first import.
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp32") for name in OPTIMIZERS if PACKAGES.get(name) != "torchao"),
        # Each compiles a graph a shape.
        pytest.param("adamw-4bit", "fp32", marks=pytest.mark.slow),
        pytest.param("adamw-sr", "bf16", marks=pytest.mark.slow),
        ("adamw-fused", "bf16"),
        ("adamw-fused", "fp16-master"),
        ("sgd", "fp16-master"),
        ("adamw-8bit", "fp16-master"),
    ],
)
def test_resumes_with_the_same_losses(name: str, precision: str, tmp_path: Path) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])

    def fresh(seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = toy(seed).to(DTYPES[precision])
        strategy = Strategy(optimizer=name, precision=precision)
        return model, make_torch_optimizer(model.named_parameters(), strategy, lr=lr)

    model, optimizer = fresh(0, 1e-2)
    assert isinstance(optimizer, MasterWeights) == (precision == "fp16-master")
    steps(model, optimizer, 2)
    of(tmp_path).save(2, model, optimizer, {"best": float("inf"), "at": [1, 2]})
    expected = steps(model, optimizer, 5)

    model, optimizer = fresh(1, 0.5)
    checkpoints = of(tmp_path)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    state = checkpoints.load(found, model, optimizer)
    assert state == {"best": float("inf"), "at": [1, 2], RANDOM_STATE_RESTORED: True}
    assert steps(model, optimizer, 5) == expected


@pytest.mark.parametrize("name", ["adamw-fused", "adamw-8bit", "adafactor"])
def test_an_optimizer_in_backward_resumes_with_the_same_losses(name: str, tmp_path: Path) -> None:
    def fresh(seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = toy(seed)
        strategy = Strategy(optimizer=name, optimizer_in_backward=True, max_grad_norm=None)
        return model, make_torch_optimizer(model.named_parameters(), strategy, lr=lr)

    model, optimizer = fresh(0, 1e-2)
    steps(model, optimizer, 2)
    of(tmp_path).save(2, model, optimizer, {})
    expected = steps(model, optimizer, 3)
    model, optimizer = fresh(1, 0.5)
    checkpoints = of(tmp_path)
    found = checkpoints.newest()
    assert found is not None
    checkpoints.load(found, model, optimizer)
    assert steps(model, optimizer, 3) == expected


@pytest.mark.slow
def test_resumes_a_tiny_xlm_roberta(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> float:
        ids, labels = torch.randint(3, 50, (4, 7)), torch.randint(0, 3, (4,))
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return float(loss.item())

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(seed)
        model = tiny_xlm_roberta(dropout=0.2)
        optimizer = adamw(model)
        return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)

    model, optimizer, scheduler = fresh(0)
    for _ in range(3):
        step(model, optimizer, scheduler)
    of(tmp_path).save(3, model, optimizer, {"scheduler": scheduler.state_dict()})
    expected = [step(model, optimizer, scheduler) for _ in range(5)]

    model, optimizer, scheduler = fresh(1)
    found = of(tmp_path).newest()
    assert found is not None
    state = of(tmp_path).load(found, model, optimizer)
    scheduler.load_state_dict(state["scheduler"])
    assert [step(model, optimizer, scheduler) for _ in range(5)] == expected


def test_saving_before_the_first_step_changes_nothing(tmp_path: Path) -> None:
    """torch would initialise AdamW by a step of its own, and the bias correction would differ."""
    model = toy(0)
    optimizer = adamw(model)
    of(tmp_path).save(0, model, optimizer, {})
    assert not optimizer.state
    expected = steps(model, optimizer, 3)
    model = toy(1)
    optimizer = adamw(model)
    found = of(tmp_path).newest()
    assert found is not None
    of(tmp_path).load(found, model, optimizer)
    assert steps(model, optimizer, 3) == expected


def test_a_parameter_that_got_no_gradient_has_no_state(tmp_path: Path) -> None:
    model = toy(0)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    optimizer = adamw(model)
    steps(model, optimizer, 2)
    of(tmp_path).save(2, model, optimizer, {})
    expected = steps(model, optimizer, 2)
    model = toy(1)
    model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    optimizer = adamw(model)
    found = of(tmp_path).newest()
    assert found is not None
    of(tmp_path).load(found, model, optimizer)
    assert steps(model, optimizer, 2) == expected
    unused = model.get_parameter("unused")
    assert unused.tolist() == [1.0, 1.0, 1.0]
    assert unused not in optimizer.state


def test_phases_in_order_and_older_ones_removed(tmp_path: Path) -> None:
    phases: list[str] = []
    checkpoints = of(tmp_path, keep=1, phase=phases.append)
    model = toy(0)
    optimizer = adamw(model)
    assert checkpoints.newest() is None
    for step in (1, 2):
        path = checkpoints.save(step, model, optimizer, {})
    assert phases == [*PHASES, *PHASES]
    assert steps_in(tmp_path) == [path.name] == ["step-2"]


def test_no_pickle_is_written(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    names = sorted(
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("step*/**/*") if p.is_file()
    )
    assert names == [
        "step-1/manifest.json",
        "step-1/random-00000.json",
        "step-1/shards/shard-00001-model-00001-of-00001.safetensors",
        "step-1/state.json",
    ]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _change_a_byte, Path.unlink])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "random-00000.json", "shards"])
def test_a_damaged_one_is_never_taken(name: str, damage: Any, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    path = tmp_path / "step-2" / name
    damage(next(path.iterdir()) if path.is_dir() else path)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert found.skipped[0].startswith("step 2: ")

    # The step is saved again under another name, which is newer; the damaged one stays.
    model = toy(0)
    assert checkpoints.save(2, model, adamw(model), {}).name == "step-2-1"
    found = checkpoints.newest()
    assert found is not None
    assert found.path.name == "step-2-1"
    assert (tmp_path / "step-2").exists()


def test_none_whole_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "step-1" / "manifest.json").write_text("{")
    with pytest.raises(SpecError, match=r"no checkpoint in it is whole \(step 1: .*anew"):
        checkpoints.newest()


def test_a_shard_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    shards = tmp_path / "step-2" / "shards"
    shutil.copy(next(shards.iterdir()), shards / "shard-00002-model-00001-of-00001.safetensors")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1


def test_leftovers_are_no_checkpoints_and_are_cleaned(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    shutil.copytree(tmp_path / "step-2", tmp_path / "step-3.tmp")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-0.old.tmp")
    (tmp_path / "notes.tmp").write_text("not ours")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    checkpoints.clean()
    assert steps_in(tmp_path) == ["notes.tmp", "step-1", "step-2"]


def test_what_was_just_saved_is_never_removed(tmp_path: Path) -> None:
    """Nor is the last whole one for the sake of a damaged one that is newer."""
    saved(tmp_path, 3)
    _change_a_byte(next((tmp_path / "step-3" / "shards").iterdir()))
    checkpoints = of(tmp_path, keep=1)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    model = toy(0)
    checkpoints.save(1, model, adamw(model), {})
    assert steps_in(tmp_path) == ["step-1-1", "step-2", "step-3"]
    checkpoints.save(3, model, adamw(model), {})
    assert steps_in(tmp_path) == ["step-3", "step-3-1"]


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (2, 2), (5, 4), (9, 4)])
def test_keeps_as_many_as_asked(keep: int, left: int, tmp_path: Path) -> None:
    """Four saves; a larger number than there are removes none."""
    checkpoints, model = of(tmp_path, keep=keep), nn.Linear(1, 1)
    for step in range(1, 5):
        checkpoints.save(step, model, adamw(model), {})
    assert steps_in(tmp_path) == [f"step-{step}" for step in range(5 - left, 5)]


def test_the_name_of_a_skipped_one_may_come_back(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    (tmp_path / "step-2" / "state.json").unlink()
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    shutil.rmtree(tmp_path / "step-2")  # by the user, while the run goes on
    model = toy(0)
    checkpoints.save(2, model, adamw(model), {})
    assert steps_in(tmp_path) == ["step-1", "step-2"]


def test_a_new_start_among_old_checkpoints_is_refused(tmp_path: Path) -> None:
    of(tmp_path).check_empty()
    with pytest.raises(SpecError, match="has 2 checkpoints of an earlier run"):
        saved(tmp_path).check_empty()


def test_two_runs_never_write_into_one_folder(tmp_path: Path) -> None:
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); print(1, flush=1)"
    other = subprocess.Popen(
        [sys.executable, "-c", program + "; sys.stdin.read()", str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        model = toy(0)
        for attempt in (
            lambda: of(tmp_path).save(1, model, adamw(model), {}),
            lambda: of(tmp_path).clean(),
        ):
            with pytest.raises(SpecError, match="another run is writing into it"):
                attempt()
        other.kill()
    assert saved(tmp_path, 1).newest() is not None


def test_another_run_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    other = Checkpoints(tmp_path, identity={"model": {"hidden_size": 768}, "task": "masked-lm"})
    expected = r"model.hidden_size: 300 saved, 768 now; task: None saved, 'masked-lm' now"
    with pytest.raises(SpecError, match=expected):
        other.newest()


def test_another_model_under_the_same_identity_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    found = checkpoints.newest()
    assert found is not None
    model = nn.Sequential(nn.Linear(6, 200), nn.Dropout(0.2), nn.BatchNorm1d(200))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(SpecError, match=r"model/0.bias: .*has float32\[300\], got 'float32\[200"):
        checkpoints.load(found, model, adamw(model))
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
    same = toy(1)
    with pytest.raises(SpecError, match=r"optimizer/0.bias/exp_avg: .*got 'nothing'"):
        checkpoints.load(found, same, torch.optim.SGD(same.parameters()))


def test_no_space_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)
    model = toy(0)
    usage = shutil.disk_usage(tmp_path)._replace(free=1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for attempt in (
        lambda: checkpoints.save(2, model, adamw(model), {}),
        lambda: checkpoints.check_space(model, adamw(model)),
    ):
        with pytest.raises(MeasurementFailed, match=r"no space left.*needed, 1.0 MiB free"):
            attempt()
    assert steps_in(tmp_path) == ["step-1"]


@contextmanager
def _files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A real failing write, as on a full disk; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_while_writing_loses_nothing(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    model = toy(0)
    with _files_of_at_most(5000), pytest.raises(MeasurementFailed, match="no space left"):
        checkpoints.save(2, model, adamw(model), {})
    assert steps_in(tmp_path) == ["step-1"]
    assert checkpoints.newest() is not None


def test_no_space_at_fsync_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems find out only then; here at each fsync of a save in turn."""
    checkpoints = saved(tmp_path, 1)
    model = toy(0)
    real, calls, failing_call = os.fsync, 0, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(1, 8):  # shard, state, random, two folders, manifest, folder
        calls, failing_call = 0, number
        with pytest.raises(MeasurementFailed, match="no space left"):
            checkpoints.save(2, model, adamw(model), {})
        assert steps_in(tmp_path) == ["step-1"]
    calls, failing_call = 0, 0
    checkpoints.save(2, model, adamw(model), {})
    assert calls == 8  # the seven, and the parent after the rename


def test_values_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    model = toy(0)
    with pytest.raises(SpecError, match="keep: too few"):
        of(tmp_path, keep=0)
    with pytest.raises(SpecError, match="identity: holds what JSON cannot"):
        Checkpoints(tmp_path, identity={"x": object()})
    with pytest.raises(SpecError, match="state: holds what JSON cannot"):
        of(tmp_path).save(1, model, adamw(model), {"x": torch.ones(1)})
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="checkpoint folder: "):
        of(tmp_path / "file" / "below")
    assert steps_in(tmp_path) == ["file"]


def test_needed_bytes() -> None:
    """4 x 6 weights and 4 biases in fp32 are 112 bytes; AdamW keeps two such copies and 2 steps."""
    model = nn.Linear(6, 4)
    optimizer = adamw(model)
    assert needed_bytes(model, optimizer) == 3 * 112
    steps(model, optimizer, 1)
    assert needed_bytes(model, optimizer) == 3 * 112 + 2 * 4
    assert needed_bytes(model, torch.optim.SGD(model.parameters())) == 112
    half = nn.Linear(6, 4).to(torch.float16)
    masters = make_torch_optimizer(
        half.named_parameters(), Strategy(optimizer="adamw-fused", precision="fp16-master")
    )
    assert needed_bytes(half, masters) == 56 + 3 * 112


def test_what_is_on_disk_is_what_was_estimated(tmp_path: Path) -> None:
    model = toy(0)
    optimizer = adamw(model)
    steps(model, optimizer, 1)
    path = of(tmp_path).save(1, model, optimizer, {})
    shards_bytes = sum(p.stat().st_size for p in (path / "shards").iterdir())
    assert 0 < shards_bytes - needed_bytes(model, optimizer) < 4096  # the header
    assert json.loads((path / "state.json").read_text())["groups"][0]["lr"] == 1e-2
