"""A config from the hub: the local cache first, read without any library, then the network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rigsize.errors import UnknownModel
from rigsize.models.registry import nearest_bundled
from rigsize.models.validate import MAX_CONFIG_BYTES

__all__ = ["HubConfig", "cached_snapshot", "download_config", "is_hub_id"]

# One request, and all of them together: a dead network must not look like a hang.
REQUEST_TIMEOUT_S = 5.0
DEADLINE_S = 20.0

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?")


class HubConfig(NamedTuple):
    """What the network gave."""

    path: Path
    checkpoint_parameters: int | None
    note: str


def is_hub_id(text: str) -> bool:
    """Whether the text has the form ``organisation/name`` or ``name``."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def cached_snapshot(hub_id: str) -> Path | None:
    """The folder of the cached main revision, if its config is there."""
    repository = _cache_folder() / ("models--" + hub_id.replace("/", "--"))
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        names = [revision] if re.fullmatch(r"[0-9A-Za-z]{1,64}", revision) else []
    except (OSError, ValueError):
        # Without a reference the only snapshot is the answer; of several, none is.
        snapshots = repository / "snapshots"
        names = [folder.name for folder in snapshots.iterdir()] if snapshots.is_dir() else []
    if len(names) != 1:
        return None
    folder = repository / "snapshots" / names[0]
    return folder if (folder / "config.json").is_file() else None


def download_config(hub_id: str) -> HubConfig:
    """The config of a hub model over the network; offline is one clear line, never a hang."""
    if _says_yes("HF_HUB_OFFLINE") or _says_yes("TRANSFORMERS_OFFLINE"):
        raise _not_found(hub_id, "not bundled, not in the local cache, and HF_HUB_OFFLINE is set")
    try:
        import huggingface_hub  # late: it costs more than a whole estimate
    except ImportError:
        hint = "pip install 'rigsize[hub]' to ask the hub, or give a folder or a config.json"
        raise _not_found(hub_id, "not bundled and not in the local cache", hint) from None
    try:
        return _within(DEADLINE_S, lambda: _ask(huggingface_hub, hub_id))
    except UnknownModel:
        raise
    except Exception as error:  # whatever the library raises becomes one line
        raise _translated(hub_id, error) from None


def _ask(hub: Any, hub_id: str) -> HubConfig:
    url = hub.hf_hub_url(hub_id, "config.json")
    size = hub.get_hf_file_metadata(url, timeout=REQUEST_TIMEOUT_S).size
    if size is not None and size > MAX_CONFIG_BYTES:
        raise UnknownModel("model", hub_id, f"its config.json has {size:,} bytes")
    path = hub.hf_hub_download(hub_id, "config.json", etag_timeout=REQUEST_TIMEOUT_S)
    total, note = _total(hub, hub_id)
    return HubConfig(Path(path), total, note)


def _total(hub: Any, hub_id: str) -> tuple[int | None, str]:
    try:
        info = hub.HfApi().model_info(hub_id, expand=["safetensors"], timeout=REQUEST_TIMEOUT_S)
        total = info.safetensors.total
    except Exception as error:  # the count is an extra: its absence is told, not fatal
        return None, f"the hub gave no safetensors total ({type(error).__name__})"
    return (total, "safetensors total of the hub") if isinstance(total, int) else (None, "")


def _within(deadline_s: float, ask: Callable[[], HubConfig]) -> HubConfig:
    """The answer, or TimeoutError; a daemon thread may outlive it but holds nothing up."""
    import threading

    answer: list[HubConfig | BaseException] = []

    def work() -> None:
        try:
            answer.append(ask())
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if not answer:
        raise TimeoutError(f"no answer within {deadline_s:g} s")
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def _translated(hub_id: str, error: BaseException) -> UnknownModel:
    # By name: the classes moved between versions of the library, their names did not.
    names = {base.__name__ for base in type(error).__mro__}
    if "GatedRepoError" in names:
        hint = "accept its licence on the hub and log in with `hf auth login`"
        return _not_found(hub_id, "a gated model", hint)
    if names & {"RepositoryNotFoundError", "HFValidationError"}:
        return _not_found(hub_id, "not bundled, and the hub has no such model")
    if "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names:
        return _not_found(hub_id, "this hub model has no config.json")
    return _not_found(
        hub_id, f"not bundled, not in the local cache, and the hub did not answer ({_first(names)})"
    )


def _first(names: set[str]) -> str:
    known = ("TimeoutError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "OSError")
    return next((name for name in known if name in names), "network error")


def _not_found(hub_id: str, problem: str, hint: str = "") -> UnknownModel:
    return UnknownModel(
        "model",
        hub_id,
        problem,
        allowed=("a bundled name", "a folder", "a config.json", "a hub id"),
        nearest=nearest_bundled(hub_id),
        hint=hint or "download its config.json where there is a network and give its path",
    )


def _cache_folder() -> Path:
    for variable, inside in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser() / inside
    return Path("~/.cache/huggingface/hub").expanduser()


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
