"""All files of a plan, which are left out and why, and writing them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rigsize.emit.accelerate import accelerate_file
from rigsize.emit.deepspeed import deepspeed_file
from rigsize.emit.launch import ACCELERATE, DEEPSPEED, RUN, SBATCH, SPEC, File, Launch
from rigsize.emit.scripts import run_file, sbatch_file
from rigsize.emit.spec_file import spec_toml
from rigsize.errors import SpecError
from rigsize.spec.zero import ZEROS

__all__ = ["Emission", "emit", "write_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What a plan becomes."""

    files: tuple[File, ...]
    left_out: tuple[tuple[str, str], ...]
    """(file, why it is not written)."""

    @property
    def notes(self) -> Iterator[str]:
        """What each format cannot say, behind the file's name."""
        for file in self.files:
            yield from (f"{file.name}: {note}" for note in file.notes)


def emit(launch: Launch) -> Emission:
    """The files of the plan; nothing is written yet."""
    spec = File(name=SPEC, text=spec_toml(launch.workload, launch.strategy, launch.cluster))
    if not launch.workload.training:
        why = "nothing is trained"
        left = tuple((name, why) for name in (ACCELERATE, DEEPSPEED, SBATCH))
        return Emission(files=(spec, run_file(launch)), left_out=left)
    files = [spec, run_file(launch)]
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    if launch.strategy.parallel in ZEROS:
        deepspeed = deepspeed_file(launch)
        files.append(deepspeed)
        notes = deepspeed.notes
    else:
        left_out = ((DEEPSPEED, f"parallel {launch.strategy.parallel} is not DeepSpeed's"),)
    # DeepSpeed's JSON has no comments: what it cannot say stands in the YAML that names it.
    files += [accelerate_file(launch, notes), sbatch_file(launch)]
    return Emission(files=tuple(files), left_out=left_out)


def write_files(emission: Emission, folder: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Writes them all, or none where one is there already; their paths.

    Raises SpecError for a file that exists (unless `force`), or a folder that cannot be written.
    """
    paths = tuple(folder / file.name for file in emission.files)
    stale = [folder / name for name, _ in emission.left_out if (folder / name).exists()]
    there = [path for path in (*paths, *stale) if path.exists()]
    if there and not force:
        raise SpecError("out", str(there[0]), "exists already", hint="--force, or another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, file in zip(paths, emission.files, strict=True):
            _replace(path, file.text, executable=file.name == RUN)
        for path in stale:  # of another plan: it would be taken for this one's
            path.unlink()
    except OSError as error:
        raise SpecError("out", str(folder), f"cannot be written ({error.strerror})") from None
    return paths


def _replace(path: Path, text: str, *, executable: bool) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o755 if executable else 0o644)
    partial.replace(path)
