"""The documents say what is there: every command they show runs, every file they name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+)\)")


def _build_docs() -> object:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "validation/build_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD_DOCS = _build_docs()
SHOWN = sorted(
    {m[1] for page in BUILD_DOCS.PAGES for m in BUILD_DOCS.BLOCK.finditer(page.read_text())}  # type: ignore[attr-defined]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("page", BUILD_DOCS.PAGES, ids=lambda page: page.name)  # type: ignore[attr-defined]
def test_shown_output_is_what_the_command_prints(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert BUILD_DOCS.rewritten(text) == text, "run python validation/build_docs.py"  # type: ignore[attr-defined]


def test_readme_shows_commands_on_stored_profiles() -> None:
    assert any("table" in shlex.split(command) for command in SHOWN)
    assert any("estimate" in shlex.split(command) for command in SHOWN)


def test_readme_names_the_two_commands_and_what_is_not_shown() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    assert "nothing has been compared with a GPU by us" in text
