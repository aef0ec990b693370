"""What a device can be used for: estimated here, trained on elsewhere, or no training target."""

from __future__ import annotations

from typing import NamedTuple

from rigsize.hardware.accelerators import Accelerator

__all__ = ["Target", "target_of"]

# Stacks on which PyTorch trains through a vendor's plugin or compiler.
_THROUGH_PLUGIN = {
    "neuron": "torch-neuronx (XLA)",
    "synapse": "Intel Gaudi's PyTorch plugin",
    "xla": "torch_xla",
    "xpu": "torch's xpu device",
}


class Target(NamedTuple):
    """What can be done with a device."""

    answered: bool
    """Whether `--gpus` takes it."""
    trains: bool
    """Whether PyTorch trains on it today, answered here or not."""
    words: str
    """The same for people, with what it cannot do."""


def target_of(row: Accelerator) -> Target:
    """What a row of the table can be used for; no figure is made up for what it cannot do."""
    if row.is_cpu:
        return Target(True, True, "estimated and run: the host itself")
    no_training = row.training_capable.startswith("no")
    if row.software_stack in ("cuda", "rocm"):
        if no_training:
            return Target(False, False, f"PyTorch does not run on it {_reason(row)}".rstrip())
        return Target(True, row.pytorch_support[:2] != "no", f"estimated; {_support(row)}")
    if no_training:
        return Target(
            False,
            False,
            f"inference only, not a PyTorch training target; software: {row.pytorch_support}",
        )
    if "closed" in row.training_capable:
        return Target(
            False,
            False,
            f"discontinued, not a PyTorch training target; software: {row.pytorch_support}",
        )
    if row.software_stack in _THROUGH_PLUGIN:
        through = f"{_THROUGH_PLUGIN[row.software_stack]} {_reason(row)}".rstrip()
        return Target(
            False,
            True,
            f"trains through {through}; its compiler decides the memory, which is not answered"
            " here",
        )
    return Target(
        False,
        False,
        "trains in its maker's own software, not a PyTorch training target;"
        f" software: {row.pytorch_support}",
    )


def _reason(row: Accelerator) -> str:
    """What the table adds to its yes or no: `(deprecated)`, `(small)`."""
    rest = row.training_capable.removeprefix("yes").removeprefix("no").strip()
    return rest if not rest or rest.startswith("(") else f"({rest})"


def _support(row: Accelerator) -> str:
    if row.training_capable == "yes" and row.pytorch_support == "yes":
        return "PyTorch trains on it"
    return f"training: {row.training_capable}; PyTorch: {row.pytorch_support}"
