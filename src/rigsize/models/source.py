"""From what a person typed to a model's config: a bundled name, a folder, a file or a hub id."""

from __future__ import annotations

import copy
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rigsize.errors import SpecError, UnknownModel
from rigsize.models.hub import cached_snapshot, download_config, is_hub_id
from rigsize.models.registry import BundledModel, find_bundled, nearest_bundled
from rigsize.models.validate import MAX_CONFIG_BYTES, check_config, parse_config
from rigsize.models.weights import count_checkpoint_parameters

__all__ = ["ModelSource", "Origin", "digest", "resolve_model"]

Origin = Literal["bundled", "folder", "config", "hub-cache", "hub"]

# They name, label or store the model; none of them changes an operator or a size.
_NOT_IN_DIGEST = frozenset(
    "architectures transformers_version torch_dtype dtype _name_or_path id2label label2id "
    "use_cache".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that is known by its config; nothing of it has been built or imported."""

    name: str
    """The canonical id: the hub id where there is one, else the path's own name."""
    origin: Origin
    config: Mapping[str, Any]
    """Checked: model_type is known and every size is a sensible integer."""
    path: str | None
    """The folder it came from, where there is one (remote code and weights lie there)."""
    checkpoint_parameters: int | None
    """What the published file holds, not the model that is run: it may keep unused weights."""
    checkpoint_note: str
    notes: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The architecture, as transformers names it."""
        return str(self.config["model_type"])

    @property
    def digest(self) -> str:
        """What the trace of this model depends on, in 16 characters."""
        return digest(self.config)


def resolve_model(
    text: str, *, trust_remote_code: bool = False, allow_network: bool = True
) -> ModelSource:
    """The model that ``text`` names; remote code is never run here, only allowed for later."""
    name = text.strip()
    if not name:
        raise SpecError("model", text, "empty", allowed=("a bundled name, folder, file or hub id",))
    bundled = find_bundled(name)
    if bundled:
        return _from_bundled(bundled, shadowed=_kind(name) is not None)
    kind = _kind(name)
    if kind is not None:
        return _from_path(Path(name).expanduser(), kind, trust_remote_code)
    if _means_path(name):
        raise _missing(name)
    if not is_hub_id(name):
        raise _unknown(name)
    return _from_hub(name, trust_remote_code, allow_network)


def digest(config: Mapping[str, Any]) -> str:
    """sha256[:16] of the keys that can change a trace, independent of their order."""
    import hashlib

    canonical = json.dumps(_meaningful(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _meaningful(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _meaningful(v) for k, v in value.items() if k not in _NOT_IN_DIGEST}
    return value


def _from_bundled(model: BundledModel, shadowed: bool) -> ModelSource:
    shadow = f"a path of the name exists too: write ./{model.id} for it"
    return ModelSource(
        name=model.id,
        origin="bundled",
        config=copy.deepcopy(dict(model.config)),
        path=None,
        checkpoint_parameters=model.checkpoint_parameters,
        checkpoint_note=model.checkpoint_note,
        notes=(*model.notes, shadow) if shadowed else model.notes,
    )


def _kind(name: str) -> Origin | None:
    """Whether the text is a path that exists, and of what."""
    try:
        mode = Path(name).expanduser().stat().st_mode
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, no home
        return None
    return "folder" if stat.S_ISDIR(mode) else "config"


def _means_path(name: str) -> bool:
    """Whether the text can only be a path: no hub id looks like it, so the hub is not asked."""
    return name.startswith(("/", "./", "../", "~")) or name.endswith(".json")


def _missing(name: str) -> UnknownModel:
    """The path is not there, and how much of it is."""
    try:
        parent = Path(name).expanduser().parent
        there = parent.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, no home
        there = False
    problem = "no such file or folder"
    if name.endswith(".json"):
        problem = "no such file" if there else "no such file, nor its folder"
    hint = "give a folder that holds a config.json, or the file itself"
    return UnknownModel("model", name, problem, hint=hint, nearest=nearest_bundled(name))


def _from_path(path: Path, kind: Origin, trust_remote_code: bool) -> ModelSource:
    folder = path if kind == "folder" else path.parent
    file = path / "config.json" if kind == "folder" else path
    config = _read(file)
    notes = check_config(config, trust_remote_code=trust_remote_code)
    count, note = count_checkpoint_parameters(folder) if kind == "folder" else (None, "not asked")
    return ModelSource(
        name=path.absolute().name or str(path),
        origin=kind,
        config=config,
        path=str(folder),
        checkpoint_parameters=count,
        checkpoint_note=note,
        notes=notes,
    )


def _read(file: Path) -> dict[str, Any]:
    # A device or a pipe would never end; the size is checked again on what was really read.
    if not file.exists():
        hint = "give a folder that holds a config.json, or the file itself"
        raise SpecError("model", str(file.parent), "no config.json in this folder", hint=hint)
    if not file.is_file():
        raise SpecError("model", str(file), "not a regular file")
    try:
        with file.open("rb") as stream:
            return parse_config(stream.read(MAX_CONFIG_BYTES + 1), file.name)
    except OSError as error:
        raise SpecError("model", str(file), f"cannot be read ({error.strerror})") from None


def _from_hub(name: str, trust_remote_code: bool, allow_network: bool) -> ModelSource:
    origin: Origin = "hub-cache"
    folder = cached_snapshot(name)
    if folder is None and not allow_network:
        raise _unknown(name)
    if folder is None:
        origin, (file, count, note) = "hub", download_config(name)
        folder = file.parent
    else:
        count, note = count_checkpoint_parameters(folder)
    config = _read(folder / "config.json")
    return ModelSource(
        name=name,
        origin=origin,
        config=config,
        path=str(folder),
        checkpoint_parameters=count,
        checkpoint_note=note,
        notes=check_config(config, trust_remote_code=trust_remote_code),
    )


def _unknown(name: str) -> UnknownModel:
    return UnknownModel(
        "model",
        name,
        "no such model",
        allowed=("a bundled name", "a folder", "a config.json", "a hub id"),
        nearest=nearest_bundled(name),
    )
