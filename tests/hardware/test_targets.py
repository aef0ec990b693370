import pytest

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator, find_accelerator, load_accelerators
from rigsize.hardware.targets import target_of
from rigsize.program.environment import environment_of
from rigsize.spec import Strategy

ROWS = load_accelerators()
ALTERNATIVES = {  # the nine of the article, by a row of each
    "RyzenAI-XDNA2": "inference only",
    "Inferentia2": "inference only",
    "Cerebras-WSE3": "its maker's own software",
    "Furiosa-RNGD": "inference only",
    "TPU-v5e": "trains through torch_xla",
    "Graphcore-BowIPU": "discontinued",
    "Groq-LPU": "inference only",
    "Gaudi1-HL205": "trains through Intel Gaudi's PyTorch plugin (deprecated)",
    "Qualcomm-AI100-Std": "inference only",
}


@pytest.mark.parametrize("id_", ALTERNATIVES)
def test_what_the_nine_alternatives_can_and_cannot_do(id_: str) -> None:
    row = find_accelerator(id_)
    assert row.seed_ref == "seed-alt"
    target = target_of(row)
    assert ALTERNATIVES[id_] in target.words
    assert not target.answered
    assert target.trains or "not a PyTorch training target" in target.words


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_answered_is_what_estimate_answers(row: Accelerator) -> None:
    if target_of(row).answered:
        environment_of(row, Strategy())
    else:
        with pytest.raises(UnsupportedCombination):
            environment_of(row, Strategy())


def test_the_seeds_seven() -> None:
    answered = {r.id: target_of(r).answered for r in ROWS if r.seed_ref == "seed-7"}
    assert [id_ for id_, is_answered in answered.items() if not is_answered] == ["Radeon-Pro-V520"]
    assert not target_of(find_accelerator("K80")).trains
