"""The child process: an abort, a time-out, a lack of memory are answers of one line."""

import sys
from typing import Any

import pytest
from tests.trace.tiny import CONFIGS

from rigsize.errors import TraceFailed
from rigsize.models import ModelSource
from rigsize.trace import child
from rigsize.trace.profile import TraceKey, unpack

POINT = {"B": 2, "S": 40, "T": 24}


def source(config: dict[str, Any]) -> ModelSource:
    return ModelSource(
        name="tiny",
        origin="config",
        config=config,
        path=None,
        checkpoint_parameters=None,
        checkpoint_note="",
    )


def key(task: str = "causal-lm", use: str = "training") -> TraceKey:
    return TraceKey("0" * 16, task, use, "fp32", "sdpa", True, "none", "accelerator", 3, True)


def failure(config: dict[str, Any], trace_key: TraceKey) -> TraceFailed:
    with pytest.raises(TraceFailed) as caught:
        child.trace_in_child(source(config), trace_key, POINT)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A child that runs `code`."""
    monkeypatch.setattr(child, "command", lambda folder: [sys.executable, "-c", code, folder])


def test_an_abort_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "import os, sys; print('why', file=sys.stderr, flush=True); os.abort()")
    error = failure(CONFIGS["llama"], key())
    assert "the tracing process died (exit -6): why" in str(error)


def test_a_child_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(child, "TIMEOUT_S", 0.5)
    assert "took longer than 0 s" in str(failure(CONFIGS["llama"], key()))


def test_a_child_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "raise SystemExit(7)")
    assert "exit 7" in str(failure(CONFIGS["llama"], key()))


def test_without_torch_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "rigsize[trace]" in str(failure(CONFIGS["llama"], key()))


def test_errors_of_torch_become_sentences() -> None:
    class DynamicOutputShapeException(RuntimeError):  # as torch's own is named
        pass

    told = child._explain(DynamicOutputShapeException("aten.unique_consecutive.default"))
    assert "aten.unique_consecutive.default" in told["problem"]
    assert "values of the tokens" in told["problem"]
    assert "limit" in child._explain(MemoryError())["problem"]
    long = child._explain(ValueError("many\nlines " * 200))["problem"]
    assert "\n" not in long
    assert len(long) < 400


@pytest.mark.slow
def test_a_model_is_traced() -> None:
    traces = child.trace_in_child(source(CONFIGS["llama"]), key(use="inference"), POINT)
    assert unpack(traces.profile).body_at(POINT) is not None
    assert unpack(traces.work).body_at(POINT) is not None


@pytest.mark.slow
def test_a_loop_over_positions_is_traced_for_the_size_that_is_asked_for() -> None:
    traces = child.trace_in_child(source(CONFIGS["mamba"]), key(use="inference"), POINT)
    for profile in map(unpack, traces):
        assert profile.body_at(POINT) is not None
        assert profile.body_at({**POINT, "S": 48}) is None


@pytest.mark.slow
def test_an_architecture_that_cannot_be_traced_says_why() -> None:
    # BLT cuts its bytes into patches whose lengths it works out from them
    error = failure({"model_type": "blt"}, key())
    assert "aten._local_scalar_dense" in str(error)
    assert "values of the tokens" in str(error)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_a_lack_of_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MEMORY_LIMIT_BYTES", 300 * 2**20)  # torch alone needs more
    assert str(failure(CONFIGS["llama"], key()))
