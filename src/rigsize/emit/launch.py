"""What is to be launched, and what one file of it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rigsize.errors import UnsupportedCombination
from rigsize.program.mesh import mesh_of
from rigsize.run.checks import check_runs
from rigsize.spec import Cluster, Strategy, Workload

__all__ = ["ACCELERATE", "DEEPSPEED", "RUN", "SBATCH", "SPEC", "File", "Launch", "comment"]

SPEC, RUN, SBATCH = "rigsize.toml", "run.sh", "job.sbatch"
ACCELERATE, DEEPSPEED = "accelerate.yaml", "deepspeed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One plan: what, how, on what."""

    workload: Workload
    strategy: Strategy
    cluster: Cluster
    data: str | None = None
    """Texts to train on; None leaves a variable to be set."""
    run_flags: Mapping[str, str | bool] = field(default_factory=dict)
    """More flags of `rigsize train` by name: its learning rate, its evaluation."""
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    most_hours: float | None = None
    """The slow end of the predicted hours, for a scheduler's time limit."""
    command: str = ""
    """What was typed."""

    @property
    def ranks(self) -> int:
        """One a device."""
        mesh = mesh_of(self.strategy, self.cluster, training=self.workload.training)
        return mesh.ranks

    @property
    def global_batch(self) -> int:
        """Texts an optimizer step over all ranks."""
        return self.strategy.micro_batch * self.strategy.accumulation * self.ranks

    @property
    def why_not_run(self) -> str:
        """Why `rigsize train` does not run it, in words; empty where it does."""
        try:
            check_runs(self.workload, self.strategy)
        except UnsupportedCombination as error:
            return f"{error.field} {error.value}: {error.problem}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file that is written."""

    name: str
    text: str
    notes: tuple[str, ...] = ()
    """What its format cannot say."""


def comment(line: str) -> str:
    """A line behind a hash; whatever is in it stays one line."""
    return f"# {' '.join(line.split())}".rstrip()
