"""Profiles of tiny models: packed and unpacked, tiled against a trace of every layer."""

import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from tests.program import tiny_profile
from tests.tiers import thinned
from tests.trace.tiny import CONFIGS
from validation.check_profiles import depth_difference, gradient_difference

from rigsize.trace.domains import all_labels
from rigsize.trace.profile import Profile, TraceKey, is_embedding, pack, unpack
from rigsize.trace.session import LengthMatters, Session

KEY = TraceKey(
    config_digest="0123456789abcdef",
    task="causal-lm",
    use="training",
    compute="fp32",
    attention="sdpa",
    padded=True,
    recompute="none",
    device="accelerator",
    num_labels=3,
    hold_output=True,
)
SIZES = [
    {"B": 2, "S": 40, "T": 24, "M": 24, "N": 61},
    {"B": 1, "S": 40, "T": 24, "M": 16, "N": 40},
    {"B": 3, "S": 37, "T": 29, "M": 48, "N": 80},
    {"B": 1, "S": 53, "T": 19, "M": 16, "N": 53},
]
"""One in each of bN.s8, b1.s8, bN.sx, b1.sx."""
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "num_layers")
DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")


def deep(family: str, layers: int, **more: Any) -> dict[str, Any]:
    """The family's tiny config with many layers, decoders of pairs one deeper."""
    config = CONFIGS[family] | more
    config |= {name: layers for name in DEPTHS if name in config}
    return config | {name: layers + 1 for name in DECODER_DEPTHS if name in config}


def differences(config: dict[str, Any], key: TraceKey) -> list[str]:
    """Profile every domain, then trace every layer at a size in each."""
    session = Session(config, key, 131)
    profile = unpack(pack(session.profile(all_labels(session.limits))))
    assert profile.traced_depths == () or sum(profile.traced_depths) < len(profile.full_layers())
    found = [gradient_difference(profile) if key.use == "training" else ""]
    for point in SIZES:
        body = profile.body_at(point)
        assert body is not None
        trace = session.record(point, full_depth=True)
        found.append(depth_difference(profile, body, trace, point))
    return [line for line in found if line]


@pytest.fixture(scope="module")
def llama() -> tuple[Session, Profile]:
    session = Session(deep("llama", 9), KEY, 131)
    return session, session.profile(["bN.sx.0"])


def test_a_profile_survives_packing(llama: tuple[Session, Profile]) -> None:
    _, profile = llama
    assert unpack(pack(profile)) == profile
    assert len(pack(profile)) < 8000


def test_the_key_is_a_file_name() -> None:
    text = KEY.text()
    assert text.startswith("0123456789abcdef-causal-lm-training-fp32-sdpa-padded-keep-held")
    others = [
        replace(KEY, use="inference"),
        replace(KEY, padded=False),
        replace(KEY, recompute="block"),
        replace(KEY, num_labels=4),
        replace(KEY, hold_output=False),
        replace(KEY, device="cpu"),
        replace(KEY, loss="masked"),
        replace(KEY, loss="chunked"),
        replace(KEY, unpadded="grid"),
        replace(KEY, unpadded="flash"),
    ]
    assert len({text, *(key.text() for key in others)}) == 11


def test_a_long_adapter_is_told_by_its_digest() -> None:
    names = "+".join(f"module_{i}" for i in range(60))
    one, other = (replace(KEY, adapter=f"method=lora,targets={names}{x}") for x in "ab")
    assert one.text() != other.text()
    assert len(one.text()) < 200
    assert replace(KEY, adapter="method=ia3").text().endswith("-method=ia3")


def test_what_was_stored_before_is_still_found() -> None:
    # Names and packed keys of profiles from before `loss` and `unpadded`.
    assert KEY.text().endswith("-held-accelerator-3")
    assert TraceKey(*[getattr(KEY, name) for name in TraceKey.__slots__[:10]]) == KEY


@pytest.mark.parametrize(
    ("task", "loss", "unpadded", "rows"),
    [
        ("masked-lm", "all", "", False),
        ("masked-lm", "masked", "", True),
        ("masked-lm", "all", "flash", False),
        ("causal-lm", "all", "", False),
        ("causal-lm", "all", "grid", True),
        ("sequence-classification", "all", "", False),
        ("sequence-classification", "all", "grid", True),
        ("token-classification", "all", "grid", False),
        ("embedding", "all", "grid", False),
    ],
)
def test_which_batches_say_what_the_head_reads(
    task: str, loss: str, unpadded: str, rows: bool
) -> None:
    key = replace(KEY, task=task, loss=loss, unpadded=unpadded)
    assert key.selects_rows is rows
    # A classifier's rows are as many as there are texts: no size of their own.
    assert key.varied.rows is (rows and task.endswith("-lm"))


def test_layers_are_traced_once_and_told_as_often_as_they_are(
    llama: tuple[Session, Profile],
) -> None:
    _, profile = llama
    assert profile.traced_depths == (4,)
    # the first, seven of one context, the last
    assert profile.representative == ((0, *[1] * 7, 3),)
    assert profile.full_layers()[8] == (0, 8, 4)
    names = [name for name, _, _ in profile.full_tensors()]
    assert names.count("model.layers.8.mlp.up_proj.weight") == 1
    assert sum("up_proj" in name for name in names) == 9
    # parameters of llama: embeddings, head, final norm; a layer: q k v o, gate up down, two norms
    vocabulary, hidden, heads, kv = 5003, 96, 96, 48
    layer = 2 * hidden * heads + 2 * hidden * kv + 3 * hidden * 208 + 2 * hidden
    assert (
        sum(
            _numel(tensor.shape)
            for name, tensor, _ in profile.full_tensors()
            if not name.startswith(("buffer:", "input:"))
        )
        == 2 * vocabulary * hidden + hidden + 9 * layer
    )


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def test_only_the_proved_domain_has_a_body(llama: tuple[Session, Profile]) -> None:
    _, profile = llama
    assert profile.body_at({"B": 3, "S": 37}) is not None
    assert profile.body_at({"B": 3, "S": 40}) is None
    assert profile.body_at({"B": 1, "S": 37}) is None
    assert profile.body_at({"B": 3, "S": 1}) is None


def test_an_unseen_size_is_foretold(llama: tuple[Session, Profile]) -> None:
    session, profile = llama
    assert session.differs(profile.bodies[0], {"B": 6, "S": 109}) == ""
    # an aligned length has other events: the body does not claim it, and would be wrong there
    assert session.differs(profile.bodies[0], {"B": 1, "S": 104}) != ""


def test_a_session_finds_the_depth_of_a_profile(llama: tuple[Session, Profile]) -> None:
    session, profile = llama
    other = Session.of(profile, session.values, 131)
    assert other.differs(profile.bodies[0], {"B": 6, "S": 53}) == ""


def test_one_size_alone_is_a_constant() -> None:
    session = Session(deep("llama", 9), replace(KEY, use="inference"), 131)
    profile = session.profile(["at.2.1.0"])
    assert profile.body_at({"B": 2, "S": 1}) is not None
    assert profile.body_at({"B": 3, "S": 1}) is None
    assert session.differs(profile.bodies[0], {"B": 2, "S": 1}) == ""


@pytest.mark.exhaustive
def test_a_loop_over_positions_has_no_domain_but_a_profile_for_a_size() -> None:
    session = Session(deep("mamba", 6), replace(KEY, use="inference"), None)
    with pytest.raises(LengthMatters, match="depends on the size of the batch"):
        session.profile(["bN.s8.0"])
    assert session.profile(["at.2.16.0"]).body_at({"B": 2, "S": 16}) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roberta.embeddings.word_embeddings.weight", True),
        ("transformer.wte.weight", True),
        ("shared.weight", True),
        ("lm_head.weight", False),
        ("model.layers.0.mlp.shared_expert.weight", False),
    ],
)
def test_embeddings_by_name(name: str, expected: bool) -> None:
    assert is_embedding(name) is expected


@pytest.mark.parametrize(
    ("word", "packed", "named"),
    [("none", False, "keep"), ("block", True, "recompute"), ("every-2", "every-2", "every-2")],
)
def test_recompute_is_stored_as_before_it_had_words(word: str, packed: Any, named: str) -> None:
    key = replace(KEY, recompute=word)
    profile = replace(tiny_profile.profile(), key=key)
    data = pack(profile)
    assert json.loads(zlib.decompress(data))["key"][6] == packed
    assert unpack(data).key == key
    assert f"-{named}-" in key.text()


@pytest.mark.slow
def test_tiling_is_exact_in_every_domain() -> None:
    assert differences(deep("xlm-roberta", 9), replace(KEY, task="masked-lm")) == []


ONE_ROW = {"padded": False, "compute": "amp", "unpadded": "flash"}
WHOLE_MATRIX: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # autocast: the casts of every layer's weights die together at its end
    ("xlm-roberta", {}, {"task": "masked-lm", "compute": "amp"}),
    ("bert", {}, {"task": "sequence-classification", "compute": "half"}),
    ("deberta-v2", {}, {"task": "masked-lm", "compute": "amp"}),  # holds every hidden state
    ("deberta-v2", {}, {"task": "masked-lm", "use": "inference"}),
    ("albert", {}, {"task": "masked-lm"}),  # one layer many times: no stack to tile
    ("mpnet", {}, {"task": "masked-lm", "compute": "amp"}),
    ("modernbert", {}, {"task": "masked-lm", "recompute": "block"}),
    ("gpt2", {}, {}),
    ("llama", {}, {"compute": "amp", "recompute": "block"}),
    ("llama", {}, {"padded": False, "compute": "half"}),
    ("llama", {}, {"use": "inference", "compute": "half"}),
    ("gemma2", {}, {"compute": "half"}),  # sliding and full in turn
    ("mixtral", {}, {"compute": "half"}),
    ("gemma3_text", {}, {"compute": "half"}),  # five to one
    ("mixtral", {}, {"compute": "amp"}),
    ("t5", {}, {"task": "seq2seq-lm"}),  # the first layers' relative positions
    ("t5", {}, {"task": "seq2seq-lm", "compute": "amp", "recompute": "block"}),
    ("bart", {}, {"task": "seq2seq-lm", "compute": "amp"}),
    ("m2m_100", {}, {"task": "seq2seq-lm", "use": "inference"}),
    ("xlm-roberta", {}, {"task": "masked-lm", "loss": "masked", "compute": "amp"}),
    ("llama", {}, {"loss": "chunked", "compute": "amp"}),
    ("bert", {}, {"task": "embedding", "padded": False, "unpadded": "grid"}),
    ("xlm-roberta-xl", {}, ONE_ROW | {"task": "masked-lm", "loss": "masked"}),
    ("xlm-roberta", {}, ONE_ROW | {"task": "masked-lm", "loss": "chunked", "recompute": "block"}),
    ("llama", {}, {"compute": "half", "recompute": "every-2"}),
    ("xlm-roberta", {}, {"task": "masked-lm", "compute": "amp", "recompute": "selective"}),
    ("qwen3", {}, ONE_ROW | {"task": "sequence-classification"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config", "key"), thinned(WHOLE_MATRIX), ids=str)
def test_tiling_is_exact(family: str, config: dict[str, Any], key: dict[str, Any]) -> None:
    assert differences(deep(family, 14, **config), replace(KEY, **key)) == []
