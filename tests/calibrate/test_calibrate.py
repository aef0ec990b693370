"""The machine at hand, for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rigsize.cli import run
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.run.calibration_records import (
    calibration_asked,
    calibration_of,
    find_calibration,
    predicted_s,
)
from rigsize.run.record_store import read_folder
from rigsize.steptime.gemm import is_misaligned


@pytest.mark.slow
def test_the_host_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run(["calibrate", "--quick", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["record"]["kind"] == "calibration"
    unmeasured = document["record"]["calibration"]["unmeasured"]
    assert "needs a GPU" in unmeasured["launches"]
    calibration = find_calibration("cpu").calibration
    assert calibration is not None
    assert calibration.record == document["record"]["record_id"]
    assert calibration.launch_s is None
    # Between a dispatcher without Python and a starved machine.
    assert calibration.dispatch_s is not None
    assert 2e-7 < calibration.dispatch_s < 1e-3
    # 28 bytes a parameter, from a terabyte a second to a hundredth of a modern host.
    for seconds in (calibration.cpu_adam_s_per_param, calibration.cpu_adam_fused_s_per_param):
        assert seconds is not None
        assert 28 / 1e12 < seconds < 28 / 0.05e9
    folder = tmp_path / "rigsize" / "records"
    (entry,) = read_folder(folder).entries
    record = entry.record
    assert record.calibration is not None
    kinds = {sample.kind for sample in record.calibration.samples}
    assert {"dispatch", "cpu_adam", "gemm"} <= kinds
    assert calibration_asked(document["path"], "cpu").calibration == calibration_of(record)
    assert run(["records", "ls"]) == 0
    assert run(["records", "show", record.record_id[:8]]) == 0
    shown = capsys.readouterr().out
    assert "AdamW on the host, fused" in shown
    assert "not measured: pinned copies: needs a GPU" in shown


@pytest.mark.slow
def test_operators_are_counted_with_their_views() -> None:
    import torch

    from rigsize.calibrate.host import _operators

    weight = torch.nn.Parameter(torch.ones(2, 2))

    def step() -> None:
        # Forward: t (a view), mm, sum: 3. Backward: ones_like of the loss; expand; t, mm of the
        # weight's gradient, its t back; detach as the gradient is kept.
        (torch.ones(2, 2) @ weight.t()).sum().backward()
        weight.grad = None

    counted = _operators(step)
    assert 8 <= counted <= 14


@pytest.mark.slow
def test_the_tiny_model_has_the_operators_of_the_real_one() -> None:
    """What is timed is what is counted: on a CPU, and from the packaged work of a GPU."""
    from rigsize.calibrate.host import _operators, _step, launch_task, tiny_config

    source = resolve_model("xlm-roberta-base", allow_network=False)
    step = _step(tiny_config(source.config), "cpu")
    # 12 layers of products, norms, dropouts and their derivatives.
    assert 150 < _operators(step) / 12 < 220
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rigsize.calibrate.host._step", lambda config, device: step)
        task = launch_task(source, find_accelerator("H100"))
    operators, kernels = task.sizes
    # Fewer than on the CPU, whose attention and norms are taken apart; a third of them launch.
    assert 0.6 < operators / _operators(step) < 1.0
    assert 0.25 < kernels / operators < 0.5


@pytest.mark.slow
def test_products_compute_what_their_layout_says() -> None:
    import torch

    from rigsize.calibrate.kernels import products

    for task in products("cpu", "fp32", quick=True):
        call = task.make()
        left, right, out = (
            cell.cell_contents
            for name in ("left", "right", "out")
            for at, cell in zip(call.__code__.co_freevars, call.__closure__ or (), strict=True)
            if at == name
        )
        call()
        assert torch.allclose(out, left @ right, atol=1e-4)
        m, n, k = task.sizes
        assert (left.shape, right.shape) == ((m, k), (k, n))
        assert left.is_contiguous() is (task.detail != "tn")
        assert right.is_contiguous() is (task.detail != "nt")


def test_no_gpu_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run(["calibrate", "--device", "cuda", "--out", str(tmp_path)]) == 5
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--device", "tpu"], ["--out", __file__]])
def test_bad_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", *words]) == 2
    assert capsys.readouterr().err.startswith("rigsize: ")


def test_every_task_of_a_gpu_has_a_prediction() -> None:
    """What is measured there is what the packaged model says something of."""
    from rigsize.calibrate.kernels import attentions, misaligned_products, products
    from rigsize.calibrate.links import collectives
    from rigsize.calibrate.traffic import traffic

    h100 = find_accelerator("H100")
    tasks = [
        *(
            task
            for dtype in ("bf16", "tf32", "fp32")
            for task in products("cuda", dtype, quick=False)
        ),
        *misaligned_products("bf16"),
        *traffic("cuda", quick=False),
        *attentions("cuda", "bf16", quick=False),
        *collectives(8, quick=False),
    ]
    predicted = [predicted_s(task.sample((1.0,)), h100) for task in tasks]
    assert all(predicted)
    # Long enough that the host keeps ahead of the queue, short enough for two minutes.
    assert 1e-6 < min(filter(None, predicted)) < max(filter(None, predicted)) < 0.1
    assert sum(filter(None, predicted)) < 1.0
    words = [task for task in tasks if task.kind in ("misaligned", "aligned")]
    rows = [is_misaligned(*t.sizes, dtype="bf16", layout=t.detail) for t in words]  # type: ignore[arg-type]
    assert rows == [task.kind == "misaligned" for task in words]


@pytest.mark.gpu
@pytest.mark.slow
def test_the_gpu_is_measured(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert run(["calibrate", "--quick", "--device", "cuda", "--out", str(tmp_path)]) == 0
    (entry,) = read_folder(tmp_path).entries
    calibration = calibration_of(entry.record)
    assert calibration.launch_s is not None
    assert calibration.to_device_bytes_per_s is not None
    assert calibration.misaligned is not None


def test_a_folder_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr("rigsize.calibrate.session.calibrate", measured)
    (tmp_path / "file").write_text("")
    assert run(["calibrate", "--device", "cpu", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "out: cannot be written" in capsys.readouterr().err


def test_a_calibration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "xlm-roberta-base", "--offline", "--calibration", "none.json"]
    assert run(words) == 2
    assert "calibration: no such file" in capsys.readouterr().err
