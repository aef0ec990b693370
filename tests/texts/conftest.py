"""A tokenizer of 71 words that needs no network, made once, and a writer of small files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rigsize.texts.generated import generated_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*values: Any, name: str = "data.jsonl") -> str:
        return str(write_lines(tmp_path / name, (json.dumps(value) for value in values)))

    return write


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
