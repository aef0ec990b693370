from collections import Counter

import pytest

from rigsize.models import bundled_models, check_config, default_task, find_bundled, max_positions
from rigsize.models.registry import BundledModel

MODELS = bundled_models()
# Models whose architecture bounds nothing although the data names a trained length.
UNBOUNDED = {"bloom", "mamba", "mt5", "t5"}


def test_all_139_are_there_and_no_name_means_two() -> None:
    names = Counter(name.casefold() for m in MODELS for name in (m.id, *m.aliases))
    assert len(MODELS) == 139
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("model", MODELS, ids=[m.id for m in MODELS])
def test_config_is_accepted_and_sourced(model: BundledModel) -> None:
    assert check_config(model.config) == ()
    assert model.evidence
    assert model.checkpoint_note
    assert default_task(model.config) in {*model.meta_parameters, "embedding"}


@pytest.mark.parametrize("model", MODELS, ids=[m.id for m in MODELS])
def test_positions_cover_the_trained_length(model: BundledModel) -> None:
    limit = max_positions(model.config)
    assert (limit is None) == (model.config["model_type"] in UNBOUNDED)
    assert limit is None or limit >= model.training_seq_max


def test_names() -> None:
    base = find_bundled("xlm-roberta-base")
    assert base is not None
    assert base.id == "FacebookAI/xlm-roberta-base"
    assert find_bundled(" FACEBOOKAI/XLM-ROBERTA-BASE ") is base
    assert find_bundled("no-such-model") is None


def test_the_article_counts_checkpoints_with_a_pooler() -> None:
    # 278,885,778 = 278,295,186 + a pooler of 768 x 768 + 768
    base = find_bundled("xlm-r-base")
    assert base is not None
    assert base.checkpoint_parameters == 278_885_778
    assert base.meta_parameters["masked-lm"] + 768 * 768 + 768 == base.checkpoint_parameters
    assert "pooler" in base.checkpoint_note


def test_an_untied_checkpoint_is_counted_apart() -> None:
    model = find_bundled("google/mt5-small")
    assert model is not None
    assert model.loaded_parameters == {"seq2seq-lm": 300_176_768}
