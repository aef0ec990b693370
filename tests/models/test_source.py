import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError, UnknownModel
from rigsize.models import digest, hub, resolve_model

BERT = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets the cache, or the offline switches, of the machine it runs on."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    return tmp_path / "hf" / "hub"


def folder(path: Path, config: object = BERT) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def safetensors(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    """A header as the format has it; the data behind it is never read."""
    tensors = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def refused(text: str, **options: Any) -> SizingError:
    with pytest.raises(SizingError) as caught:
        resolve_model(text, **options)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_bundled_by_alias() -> None:
    source = resolve_model("XLMR-Base")
    assert (source.name, source.origin) == ("FacebookAI/xlm-roberta-base", "bundled")
    assert source.checkpoint_parameters == 278_885_778
    assert source.model_type == "xlm-roberta"
    assert source.digest == digest(source.config)


def test_what_a_caller_does_to_a_config_stays_there() -> None:
    dict.clear(resolve_model("gpt2").config)  # type: ignore[arg-type]
    assert resolve_model("gpt2").config["model_type"] == "gpt2"


def test_folder_and_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine")
    for text, origin in ((str(path), "folder"), (str(path / "config.json"), "config")):
        source = resolve_model(text)
        assert source.origin == origin
        assert source.config == BERT
        assert source.path == str(path)
    assert resolve_model(str(path)).name == "mine"


def test_a_bundled_name_wins_over_a_folder_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    source = resolve_model("gpt2")
    assert source.origin == "bundled"
    assert "write ./" in source.notes[-1]
    assert resolve_model("./gpt2").origin == "folder"


def test_checkpoint_is_counted_from_headers(tmp_path: Path) -> None:
    path = folder(tmp_path / "one")
    safetensors(path / "model.safetensors", {"a": [10, 64], "b": [64], "scalar": []})
    source = resolve_model(str(path))
    # 640 + 64 + 1
    assert source.checkpoint_parameters == 705
    assert source.checkpoint_note == "safetensors headers of 1 file"


def test_shards_and_quantised_tensors(tmp_path: Path) -> None:
    path = folder(tmp_path / "two")
    safetensors(path / "a.safetensors", {"a": [10, 64]})
    safetensors(path / "b.safetensors", {"b": [32]}, dtype="U8")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    source = resolve_model(str(path))
    assert source.checkpoint_parameters == 672
    assert "quantised" in source.checkpoint_note


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 30) + b'{"a": {"shape": ["x"]}}       ',
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 40000) + b"[" * 40000,
    ],
)
def test_broken_weights_are_no_reason_to_fail(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path / "broken")
    (path / "model.safetensors").write_bytes(data)
    source = resolve_model(str(path))
    assert source.checkpoint_parameters is None
    assert "cannot be read" in source.checkpoint_note


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = folder(tmp_path / "sly")
    safetensors(tmp_path / "secret.safetensors", {"a": [1]})
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert resolve_model(str(path)).checkpoint_parameters is None


def test_bad_paths(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in str(refused(str(empty)))
    assert "not a regular file" in str(refused("/dev/zero"))
    assert isinstance(refused(str(tmp_path / "absent" / "config.json")), UnknownModel)
    (tmp_path / "dir" / "config.json").mkdir(parents=True)
    assert isinstance(refused(str(tmp_path / "dir")), SpecError)


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "x" * 5000, "../../etc", "~nobody/x", "a//b"])
def test_names_that_are_none(text: str) -> None:
    refused(text)


def test_hub_cache(empty_cache: Path) -> None:
    repository = empty_cache / "models--org--name"
    folder(repository / "snapshots" / "0123abc")
    # Without a reference, the only snapshot.
    assert resolve_model("org/name").origin == "hub-cache"
    folder(repository / "snapshots" / "4567def", {**BERT, "hidden_size": 128})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("4567def", encoding="ascii")
    source = resolve_model("org/name")
    assert source.name == "org/name"
    assert source.config["hidden_size"] == 128


@pytest.mark.parametrize("reference", ["../../..", "/etc", "", "\u00e9"])
def test_a_reference_cannot_leave_the_cache(empty_cache: Path, reference: str) -> None:
    repository = empty_cache / "models--org--name"
    folder(repository / "snapshots" / "a")
    folder(repository / "snapshots" / "b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(reference, encoding="utf-8")
    assert hub.cached_snapshot("org/name") is None


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """A hub whose every download is ``answer()``; its other calls are harmless."""

    class Api:
        def model_info(self, *args: Any, **kwargs: Any) -> Any:
            return types.SimpleNamespace(safetensors=types.SimpleNamespace(total=1234))

    module = types.SimpleNamespace(
        hf_hub_url=lambda *args: "",
        get_hf_file_metadata=lambda *args, **kwargs: types.SimpleNamespace(size=100),
        hf_hub_download=lambda *args, **kwargs: answer(),
        HfApi=Api,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_hub_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "downloaded")
    fake_hub(monkeypatch, lambda: str(path / "config.json"))
    source = resolve_model("org/name")
    assert (source.origin, source.checkpoint_parameters) == ("hub", 1234)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RepositoryNotFoundError", "the hub has no such model"),
        ("GatedRepoError", "a gated model"),
        ("EntryNotFoundError", "has no config.json"),
        ("OfflineModeIsEnabled", "the hub did not answer"),
        ("ConnectionError", "the hub did not answer"),
    ],
)
def test_what_the_hub_says_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    def fail() -> None:
        raise type(error, (Exception,), {})("several\nlines")

    fake_hub(monkeypatch, fail)
    raised = refused("org/xlm-roberta-basf")
    assert said in str(raised)
    assert isinstance(raised, UnknownModel)


def test_a_dead_network_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(hub, "DEADLINE_S", 0.05)
    fake_hub(monkeypatch, lambda: released.wait(30))
    try:
        assert "TimeoutError" in str(refused("org/name"))
    finally:
        released.set()


def test_offline_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such model" in str(refused("org/name", allow_network=False))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in str(refused("org/name"))


def test_without_the_hub_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "rigsize[hub]" in str(refused("org/name"))


def test_unknown_name_suggests_the_nearest() -> None:
    assert refused("xlm-roberta-bas", allow_network=False).nearest == "xlm-roberta-base"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nowhere/config.json", "no such file, nor its folder"),  # the hub is not asked
        ("config.json", "no such file"),
        ("./config.json", "no such file"),
        ("/nowhere/config.json", "no such file, nor its folder"),
        ("/nowhere", "no such file or folder"),
        ("~nobody/model", "no such file or folder"),
        ("../nowhere", "no such file or folder"),
    ],
)
def test_a_path_that_is_not_there_is_no_hub_id(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rigsize.models.source.download_config", lambda _: pytest.fail("asked"))
    error = refused(text)
    assert error.problem == problem
    assert "a folder that holds a config.json" in str(error)


def test_remote_code_is_refused_unless_asked_for(tmp_path: Path) -> None:
    config = {"model_type": "new", "auto_map": {"AutoModelForCausalLM": "m.M"}}
    path = folder(tmp_path / "remote", config)
    assert "--trust-remote-code" in str(refused(str(path)))
    assert resolve_model(str(path), trust_remote_code=True).notes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_any_text_is_a_model_or_one_clear_line(text: str) -> None:
    with contextlib.suppress(SizingError):
        resolve_model(text, allow_network=False)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, rigsize.models as m, rigsize.hardware as h\n"
        "m.resolve_model('xlmr-base'); h.parse_gpus('A100:8')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == "[]"
