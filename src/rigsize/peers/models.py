"""The model that the other estimators look at, on the meta device (imports torch)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rigsize.estimate import Estimate

__all__ = ["Sizes", "build_on_meta", "how_to_install", "sizes_of"]


class Sizes(NamedTuple):
    """What DeepSpeed's estimators take."""

    parameters: int
    """Shared ones counted once."""
    largest_layer: int
    """Of the module with the most parameters of its own."""


def how_to_install(package: str) -> str:
    """One line if a package of ours to ask is not there, else empty."""
    for name in ("torch", "transformers", package):
        if importlib.util.find_spec(name) is None:
            wanted = "'rigsize[trace]'" if name != package else package
            return f"{name} is not installed: pip install {wanted}"
    return ""


def build_on_meta(estimate: Estimate, task: str) -> Any:
    """The architecture in fp32 with the head of a task, `embedding` for none."""
    from rigsize.trace.capture import quiet_transformers
    from rigsize.trace.model import BuildOptions, build, load_config

    options = BuildOptions(
        task=task, compute="fp32", num_labels=estimate.workload.num_labels, training=False
    )
    with quiet_transformers():
        return build(load_config(estimate.source.config, options), options, "meta")


def sizes_of(model: Any) -> Sizes:
    """As `deepspeed/runtime/zero/stage3.py` `model_to_params` counts them.

    That function knows shared parameters by their address, which is 0 for all on meta.
    """
    unique = {id(p): p.numel() for p in model.parameters()}
    layers = (sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
    return Sizes(sum(unique.values()), max(layers, default=0))
