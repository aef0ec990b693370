import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rigsize.texts.reach import hub_answers

pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (urllib.error.URLError("no route"), False),
        (TimeoutError(), False),
        (urllib.error.HTTPError("", 403, "no", {}, None), True),  # type: ignore[arg-type]
    ],
)
def test_an_answer_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, error: Exception, answers: bool
) -> None:
    def asked(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    assert hub_answers() is answers


def test_what_is_cached_need_not_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_answers(tmp_path)
    assert not hub_answers(tmp_path / "none")
