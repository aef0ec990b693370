"""Templates lowered for a device: kernels' scratch, attention's buffers, ledger categories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.program import tiny_profile as tiny

from rigsize.program.categories import Categories
from rigsize.program.environment import Environment
from rigsize.program.lower import ALLOC, FREE, GRADIENT, WORKSPACE, Lowered, Lowering
from rigsize.trace.profile import Body, Event, Profile
from rigsize.trace.sizes import monomials_at

Sized = list[tuple[str, int]]
# Queries [2, 4, 16, 64] against 32 keys of 2 x 4 heads, fp32: 8,192 and 16,384 elements.
NUMBERS = (2, 4, 16, 64, 4, 32, 64)
NO_MASK, MASK = (0, 0, 0, 0), (2, 1, 16, 32)
T4 = replace(tiny.A100, compute_capability=(7, 5), sm_count=40, max_threads_per_sm=1024)
FP32, BF16 = "float32", "bfloat16"


def lowered(
    profile: Profile, environment: Environment = tiny.A100, half_dtype: str = "bfloat16"
) -> Lowered:
    categories = Categories(profile, 250)
    values = monomials_at(tiny.POINT)
    body = profile.bodies[0]
    return Lowering(profile, body, values, environment, categories, half_dtype).run()


def sized(result: Lowered, template: int, group: int = 0) -> Sized:
    """The allocations (+) and frees (-) of a template in bytes, where they are of its own group."""
    names = {ALLOC: "+", FREE: "-"}
    own = [p for p in result.templates[template, group] if p.kind in names and p.ref[0] == "own"]
    return [(names[p.kind], result.groups[group].sizes[p.ref[1]]) for p in own]


def label(dtype: str = FP32, mask: str = "none", **more: Any) -> tuple[Any, ...]:
    causal, dropout = more.get("causal", False), more.get("dropout", 0.0)
    return (dtype, mask, causal, dropout, False, more.get("needs_grad", True))


def kernel(name: str, *numbers: int) -> Profile:
    """One kernel event outside all layers."""
    sizes = tuple(tiny.constant(n) for n in numbers)
    event = Event("kernel", None, name, label=(name,), numbers=sizes)
    body = Body(templates=((event,),), births=(0,), schedule=(("backward", 0, 0),))
    return replace(tiny.profile(), bodies=(body,))


def test_traced_events_keep_their_order_and_size() -> None:
    result = lowered(tiny.profile())
    kinds = [p.kind for p in result.templates[5, 3]]
    assert kinds == [ALLOC, FREE, FREE, ALLOC, GRADIENT, ALLOC, GRADIENT, FREE]
    assert result.templates[5, 3][-1].ref == ("global", 2)
    assert [p.name for p in result.templates[5, 3] if p.kind == GRADIENT] == [
        "encoder.layer.*.dense.weight",
        "encoder.layer.*.dense.bias",
    ]
    assert result.groups[3].sizes == [4096, 4096, 4096, 16_384, 256]


def test_a_parameter_that_dies_is_no_event() -> None:
    body = Body(templates=((tiny.free("kept", "x"),),), births=(0,), schedule=(("forward", 0, 0),))
    assert lowered(replace(tiny.profile(), bodies=(body,))).templates[0, 0] == []


@pytest.mark.parametrize(
    ("capability", "num_bytes"), [((7, 5), 8_519_680), ((8, 0), 8_519_680), ((9, 0), 32 << 20)]
)
def test_a_product_brings_a_workspace(capability: tuple[int, int], num_bytes: int) -> None:
    result = lowered(tiny.profile(), replace(tiny.A100, compute_capability=capability))
    workspaces = [p for p in result.templates[1, 1] if p.kind == WORKSPACE]
    assert [(p.num_bytes, p.place and p.place.basis) for p in workspaces] == [
        (num_bytes, "derived")
    ]


def test_a_product_on_rocm_brings_two_workspaces() -> None:
    result = lowered(tiny.profile(), replace(tiny.A100, gfx="gfx942"))
    workspaces = [p for p in result.templates[1, 1] if p.kind == WORKSPACE]
    assert [(p.num_bytes, p.place and p.place.basis) for p in workspaces] == [
        (128 << 20, "assumed"),
        (76 << 20, "assumed"),
    ]


def test_a_norm_on_rocm_sums_in_one_row_a_lane() -> None:
    environment = replace(tiny.A100, gfx="gfx942")
    result = lowered(kernel("layer_norm_backward", 2048, 768), environment)
    partial = 64 * 768 * 4
    assert sized(result, 0) == [("+", partial), ("+", partial), ("-", partial), ("-", partial)]


def test_no_kernel_has_scratch_on_the_cpu() -> None:
    assert lowered(kernel("embedding_backward", 4096, 1000, 64), tiny.CPU).templates[0, 0] == []
    assert lowered(tiny.profile(), tiny.CPU).templates[1, 1][0].kind == ALLOC


def test_embedding_backward_sorts_its_indices() -> None:
    # 4,096 indices in 1,000 rows of 64: 1,000 segments, 409 + 1,000 partial sums.
    sizes = [4 * [32_768], [8], 2 * [8000], [8], [1409 * 8], [1409 * 64 * 4]]
    flat = [size for part in sizes for size in part]
    result = lowered(kernel("embedding_backward", 4096, 1000, 64))
    assert sized(result, 0) == [("+", s) for s in flat] + [("-", s) for s in flat]
    assert lowered(kernel("embedding_backward", 3072, 1000, 64)).templates[0, 0] == []


def test_a_norm_weight_has_the_bytes_of_the_traced_dtype() -> None:
    # 131,072 rows of 64: 4,096 parts of 64 elements, for weight and bias.
    full = kernel("layer_norm_backward", 131_072, 64)
    half = replace(full, key=replace(full.key, compute="half"))
    assert sized(lowered(full), 0)[:2] == [("+", 4096 * 64 * 4)] * 2
    assert sized(lowered(half), 0)[:2] == [("+", 4096 * 64 * 2)] * 2


def test_an_unknown_kernel_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no scratch rule"):
        lowered(kernel("sort", 4096))


def test_efficient_attention_forward_and_backward() -> None:
    result = lowered(tiny.attending(label(), (*NUMBERS, *NO_MASK)))
    # Output 2 x 4 x 16 x 64 x 4, log-sum-exp with 16 rounded up to 32 rows.
    assert sized(result, 0) == [("+", 32_768), ("+", 2 * 4 * 32 * 4)]
    # dq, dk, dv; fp32 makes delta outside: product and row sums (with a copy); then the workspace:
    # one tile of 64 x 64 and its 16 bytes for each of 8 heads.
    workspace = 8 * (64 * 64 * 4 + 16)
    rows = 2 * 4 * 16 * 4
    assert sized(result, 1) == [
        ("+", 32_768),
        ("+", 65_536),
        ("+", 65_536),
        ("+", 32_768),
        ("+", rows),
        ("+", rows),
        ("-", rows),
        ("-", 32_768),
        ("+", workspace),
        ("-", rows),
        ("-", workspace),
        ("-", 1024),
    ]
    assert result.kernels == {"attn": "efficient (no flash: fp32)"}
    assert result.groups[0].sizes[:4] == [32_768, 32_768, 65_536, 65_536]


def test_a_boolean_mask_becomes_a_float_one_for_the_node() -> None:
    plain = lowered(tiny.attending(label(), (*NUMBERS, *NO_MASK)))
    masked = lowered(tiny.attending(label(mask="bool"), (*NUMBERS, *MASK)))
    assert sized(masked, 0) == [("+", 2 * 16 * 32 * 4), *sized(plain, 0)]
    assert sized(masked, 1)[-2:] == [("-", 2 * 16 * 32 * 4), ("-", 1024)]


def test_inference_frees_what_backward_would_read() -> None:
    result = lowered(tiny.attending(label(needs_grad=False), (*NUMBERS, *NO_MASK)))
    assert sized(result, 0) == [("+", 32_768)]


def test_a_first_pass_that_is_computed_again_saves_nothing() -> None:
    profile = tiny.attending(label(), (*NUMBERS, *NO_MASK))
    body = replace(profile.bodies[0], schedule=profile.bodies[0].schedule[:1])
    result = lowered(replace(profile, bodies=(body,)))
    assert sized(result, 0) == [("+", 32_768), ("+", 1024), ("-", 1024)]


def test_the_kernel_is_the_accelerators() -> None:
    half = tiny.attending(label(BF16), (*NUMBERS, *NO_MASK))
    assert lowered(half).kernels == {"attn": "flash (first in order)"}
    assert lowered(half, T4).kernels["attn"].startswith("math (")
    assert lowered(half, T4, "float16").kernels["attn"].startswith("efficient (")
    asked = replace(tiny.A100, force_flash=True)
    assert lowered(half, asked).kernels == {"attn": "flash (asked for)"}
    assert lowered(half).assumptions == set()
    assert lowered(half, T4).assumptions != set()


def test_packed_texts_get_flash_whatever_else_would_be_taken() -> None:
    # 2 texts, the longest 16, 25 tokens in all: 4 heads of 64 in bf16.
    numbers = (2, 4, 16, 64, 4, 16, 64, *NO_MASK, 25)
    result = lowered(tiny.attending(label(BF16), numbers))
    assert sized(result, 0)[:2] == [("+", 25 * 4 * 64 * 2), ("+", 4 * 25 * 4)]
    assert result.kernels == {"attn": "flash (texts in one row)"}


def test_math_copies_its_head_major_output() -> None:
    result = lowered(tiny.attending(label(BF16), (*NUMBERS, *NO_MASK)), T4)
    out = 2 * 4 * 16 * 64 * 2
    assert sized(result, 0)[-2:] == [("+", out), ("-", out)]
    assert {p.basis for p in result.groups[0].places} >= {"assumed"}


def test_each_masks_gradient_has_its_own_masks_size() -> None:
    # As in T5: two nodes, the second with another mask, before either runs backward.
    profile = tiny.attending(label(mask="float"), (*NUMBERS, 2, 4, 16, 32))
    node, back = (template[0] for template in profile.bodies[0].templates)
    later = tiny.attending(label(mask="float"), (*NUMBERS, *MASK)).bodies[0].templates[0][0]
    body = Body(
        templates=((node,), (replace(later, ref=("own", 5)),), (backward_of(back),)),
        births=(7,),
        schedule=(("forward", 0, 0), ("forward", 0, 1), ("backward", 0, 2)),
    )
    result = lowered(replace(profile, bodies=(body,)))
    assert result.groups[0].sizes[6] == 2 * 4 * 16 * 32 * 4


def backward_of(event: Event) -> Event:
    """The same with a gradient of the mask."""
    return replace(event, outputs=(*event.outputs[:3], ("own", 6)))


@pytest.mark.parametrize(
    ("event", "phase", "group", "category"),
    [
        (tiny.EMBED[0], "forward", 0, "activations.embeddings_and_head"),
        (tiny.LAYER_FORWARD[0], "forward", 1, "activations.feed_forward"),
        (tiny.LAYER_FORWARD[0], "backward", 1, "temporaries"),
        (Event("alloc", None, "mm", "lm_head", ((1000, "M"),)), "forward", 0, "logits"),
        (Event("alloc", None, "mm", "lm_head", ((1000, "M/8"),)), "backward", 0, "logits"),
        (Event("alloc", None, "mm", "lm_head", ((1000, "N"),)), "forward", 0, "logits"),
        (Event("alloc", None, "mm", "lm_head", ((1000, "S"),)), "forward", 0, "logits"),
        (Event("alloc", None, "addmm", "h.*.attn", tiny.BS), "forward", 1, "activations.attention"),
        (Event("alloc", None, "native_dropout", "", tiny.BS), "forward", 0, "activations.dropout"),
        (Event("alloc", None, "mul", "h.*.ln_1", tiny.BS), "forward", 1, "activations.norms"),
        (
            Event("alloc", None, "_to_copy", "", tiny.constant(512)),
            "forward",
            1,
            "weights.autocast_casts",
        ),
        (Event("alloc", None, "mm", "lm_head", ((1000, "BS"),)), "forward", 0, "logits"),
        (Event("alloc", None, "mm", "lm_head", ((1000, "BS"),)), "backward", 0, "logits"),
        (
            Event("alloc", None, "mm", "lm_head", ((1001, "BS"),)),
            "forward",
            0,
            "activations.embeddings_and_head",
        ),
    ],
)
def test_categories(event: Event, phase: str, group: int, category: str) -> None:
    """The vocabulary has 250 entries, so 1,000 BS bytes are fp32 logits."""
    assert Categories(tiny.profile(), 250).of(event, phase, group).category == category


def test_places_are_shared() -> None:
    categories = Categories(tiny.profile(), 0)
    first, second = (categories.of(tiny.EMBED[0], "forward", 0) for _ in range(2))
    assert first is second
