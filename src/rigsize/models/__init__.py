"""Where a model comes from, and what its config says before anything is imported or built."""

from rigsize.models.lengths import check_lengths
from rigsize.models.positions import (
    TASKS,
    architecture_of,
    check_task,
    default_task,
    heads_of,
    max_positions,
    tasks_of,
)
from rigsize.models.published import published_bytes
from rigsize.models.registry import BundledModel, bundled_models, find_bundled
from rigsize.models.source import ModelSource, digest, resolve_model
from rigsize.models.validate import check_config, parse_config

__all__ = [
    "TASKS",
    "BundledModel",
    "ModelSource",
    "architecture_of",
    "bundled_models",
    "check_config",
    "check_lengths",
    "check_task",
    "default_task",
    "digest",
    "find_bundled",
    "heads_of",
    "max_positions",
    "parse_config",
    "published_bytes",
    "resolve_model",
    "tasks_of",
]
