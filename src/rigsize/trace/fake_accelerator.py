"""A fake accelerator: torch dispatches as on a GPU, nothing is computed, no memory is taken.

Private torch APIs live here and nowhere else in the package. Tested with torch 2.11 and 2.13
(`torch.utils.backend_registration`, `torch._subclasses.fake_tensor`). A fake `cuda` device does
not work on a CPU build: autograd wants a device guard, which only a registered backend has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from rigsize.errors import TraceFailed

DEVICE_TYPE = "accelerator_fake"
_registered = False
_known_to_autograd = False


class _Stream:
    """The least of a stream that FSDP2 asks for; events never wait."""

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def wait_stream(self, _other: object) -> None: ...

    def wait_event(self, _event: object) -> None: ...

    def record_event(self, event: object = None) -> object:
        return event or _Event()

    def synchronize(self) -> None: ...


class _Event:
    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def record(self, _stream: object = None) -> None: ...

    def wait(self, _stream: object = None) -> None: ...

    def synchronize(self) -> None: ...


_STREAM = _Stream()


class _BackendModule:
    """What `torch.accelerator_fake` answers: one device that is always there."""

    Stream = _Stream
    Event = _Event

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def current_stream(*_args: object) -> _Stream:
        return _STREAM

    @staticmethod
    def stream(_stream: object) -> contextlib.AbstractContextManager[None]:
        return (
            contextlib.nullcontext()
        )  # checkpoints are written through the accelerator's stream, if any

    @staticmethod
    def is_bf16_supported() -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(_seed: int) -> None: ...

    @staticmethod
    def get_rng_state(_device: object = 0) -> torch.Tensor:
        return torch.empty(16, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(_state: torch.Tensor, _device: object = 0) -> None: ...


def is_registered() -> bool:
    """Whether this process has the fake device, and with it a thread of autograd's."""
    return _registered


def register() -> torch.device:
    """Registers the backend once for this process and returns its device."""
    global _registered, _known_to_autograd
    if not _registered:
        _setup_privateuseone_for_python_backend(DEVICE_TYPE, backend_module=_BackendModule())
        # Python numbers become CPU constants, not device tensors; else a lifted constant of the
        # fake device reaches `aten::empty_strided`, which no backend here implements.
        torch._C._set_only_lift_cpu_tensors(True)
        from rigsize.trace import attention, autocast, kernels

        autocast.register(DEVICE_TYPE)
        attention.register()
        kernels.register()
        _registered = True
    device = torch.device(DEVICE_TYPE, 0)
    if not _known_to_autograd:
        _ask_autograd(device)
        _known_to_autograd = True
    return device


def _ask_autograd(device: torch.device) -> None:
    """Runs the smallest backward pass, so that a process that came too late learns it here.

    The engine counts devices at the first backward pass of a process and never again
    (`Engine::start_device_threads` of torch/csrc/autograd/engine.cpp).
    """
    with fake_mode(), torch.enable_grad():
        try:
            torch.empty((), device=device, requires_grad=True).sin().backward()
        except RuntimeError as error:
            raise TraceFailed(
                "process",
                "one that ran a backward pass before",
                "autograd does not know the fake accelerator",
                hint="Trace first, or in a process of its own.",
            ) from error


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """A FakeTensorMode in which no tensor is ever taken for a known constant.

    T5, DeBERTa, NLLB and most decoders fail on `aten::empty_strided` otherwise. Never run an
    optimizer inside: `step.item()` needs the constant and raises DataDependentOutputException.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.may_turn_const = lambda _tensor: False  # type: ignore[method-assign, assignment]
    with mode:
        yield mode
