"""What is as expected on import is not said; everything else is."""

import logging

import pytest

from rigsize import quiet

KERNEL = "Failed to load /x/torchao/_C_cutlass_90a.abi3.so: Could not load this library"
ENUM = "<enum 'K'> is an Enum subclass and is now natively supported by torch.compile"


def said(caplog: pytest.LogCaptureFixture, name: str, *texts: str) -> list[str]:
    quiet.hush()
    quiet.hush()
    with caplog.at_level(logging.WARNING):
        for text in texts:
            logging.getLogger(name).warning(text)
    return caplog.messages


def test_three_messages_are_dropped_and_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "_has_cuda", lambda: False)
    old = "Skipping import of cpp extensions due to incompatible torch version."
    assert said(caplog, "torchao", KERNEL, old) == [old]
    assert said(caplog, "torch.utils._pytree", ENUM, "another") == [old, "another"]
    caplog.clear()
    without = "Failed to load CPU gemm_4bit_forward from kernels-community: "
    texts = (f"{without}No module named 'kernels'. Please", f"{without}a bad symbol")
    assert said(caplog, "bitsandbytes.backends.cpu.ops", *texts) == [texts[1]]


def test_kernels_that_do_not_load_beside_cuda_are_an_error_to_see(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "_has_cuda", lambda: True)
    assert said(caplog, "torchao", KERNEL) == [KERNEL]
