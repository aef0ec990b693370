"""Kernel choice and buffers of attention, hand-worked from the CUDA sources."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigsize.program.attention import (
    AttentionLowering,
    AttentionNode,
    Kernel,
    choose_kernel,
    explain_choice,
    lower_attention,
)

MIB = 1 << 20
A100, H100, T4, V100, K80, L40 = (8, 0), (9, 0), (7, 5), (7, 0), (3, 7), (8, 9)
CUDNN = (9, 20, 0)

XLM_R_BASE = AttentionNode(
    batch=16,
    heads=12,
    kv_heads=12,
    query_length=128,
    key_length=128,
    head_dim=64,
    value_head_dim=64,
    element_bytes=4,
    dtype="float32",
    dropout=0.1,
    needs_grad=True,
)
BF16 = replace(XLM_R_BASE, dtype="bfloat16", element_bytes=2)
LLAMA = AttentionNode(
    batch=1,
    heads=32,
    kv_heads=8,
    query_length=2048,
    key_length=2048,
    head_dim=128,
    value_head_dim=128,
    element_bytes=2,
    dtype="bfloat16",
    causal=True,
    needs_grad=True,
    enable_gqa=True,
)


def padded(node: AttentionNode) -> AttentionNode:
    """The same call with a batch that contains padding."""
    elements = node.batch * node.query_length * node.key_length
    return replace(node, mask="bool", mask_elements=elements)


def kernel_on(
    node: AttentionNode,
    capability: tuple[int, int],
    torch_version: tuple[int, int] = (2, 13),
    cudnn_version: tuple[int, ...] | None = CUDNN,
    deterministic: bool = False,
) -> Kernel:
    return choose_kernel(
        node,
        compute_capability=capability,
        torch_version=torch_version,
        cudnn_version=cudnn_version,
        deterministic=deterministic,
    )


def lowered(
    node: AttentionNode, kernel: Kernel, capability: tuple[int, int] = A100, sm_count: int = 108
) -> AttentionLowering:
    return lower_attention(node, kernel, compute_capability=capability, sm_count=sm_count)


def sizes(lowering: AttentionLowering, part: str) -> dict[str, int]:
    return {buffer.name: buffer.num_bytes for buffer in getattr(lowering, part)}


@pytest.mark.parametrize(
    ("node", "capability", "expected"),
    [
        (XLM_R_BASE, A100, "efficient"),
        (XLM_R_BASE, H100, "efficient"),
        (XLM_R_BASE, T4, "efficient"),
        (XLM_R_BASE, V100, "efficient"),
        (XLM_R_BASE, K80, "math"),
        (padded(XLM_R_BASE), A100, "efficient"),
        (padded(XLM_R_BASE), H100, "efficient"),
        (padded(XLM_R_BASE), T4, "efficient"),
        (BF16, A100, "flash"),
        (BF16, H100, "flash"),  # dropout 0.1 keeps cuDNN away
        (BF16, T4, "math"),
        (BF16, V100, "math"),
        (BF16, K80, "math"),
        (padded(BF16), A100, "efficient"),
        (padded(BF16), H100, "efficient"),
        (padded(BF16), T4, "math"),
        (replace(BF16, dtype="float16"), T4, "efficient"),
        (replace(BF16, dtype="float16"), V100, "efficient"),
        (replace(BF16, dropout=0.0), A100, "flash"),
        (replace(BF16, dropout=0.0), H100, "cudnn"),
        (replace(padded(BF16), dropout=0.0), H100, "cudnn"),
        (LLAMA, A100, "flash"),
        (LLAMA, H100, "cudnn"),
        (LLAMA, L40, "flash"),
        (replace(LLAMA, dtype="float32", element_bytes=4), A100, "math"),
    ],
)
def test_choice(node: AttentionNode, capability: tuple[int, int], expected: Kernel) -> None:
    assert kernel_on(node, capability) == expected


def test_choice_depends_on_versions() -> None:
    assert kernel_on(padded(BF16), H100, torch_version=(2, 11)) == "cudnn"
    assert kernel_on(LLAMA, H100, cudnn_version=(9, 15, 0)) == "flash"
    assert kernel_on(LLAMA, H100, cudnn_version=None) == "flash"
    assert kernel_on(LLAMA, H100, deterministic=True) == "flash"
    assert kernel_on(replace(BF16, dropout=0.125), H100) == "cudnn"


def test_choice_by_shape() -> None:
    assert kernel_on(replace(LLAMA, key_length=4096), A100) == "math"  # causal, unequal, grouped
    wide = replace(BF16, head_dim=256, value_head_dim=256, dropout=0.1)
    assert kernel_on(wide, A100) == "flash"
    assert kernel_on(wide, L40) == "efficient"
    assert kernel_on(replace(wide, dropout=0.0), L40) == "flash"
    assert kernel_on(replace(padded(BF16), head_dim=60, value_head_dim=60), A100) == "math"
    assert kernel_on(replace(XLM_R_BASE, head_dim=60, value_head_dim=60), A100) == "efficient"


def test_explanation_names_the_obstacles() -> None:
    line = explain_choice(
        padded(BF16), compute_capability=H100, torch_version=(2, 13), cudnn_version=CUDNN
    )
    assert line == ("efficient (no cudnn: dropout 0.1 is no multiple of 1/16; no flash: a mask)")


def test_xlm_roberta_base_fp32() -> None:
    lowering = lowered(padded(XLM_R_BASE), "efficient")
    assert lowering.out_bytes == 6 * MIB
    # 16 * 12 * 128 row sums in fp32; the boolean mask becomes a fp32 bias of 16 * 128 * 128
    assert sizes(lowering, "forward_saved") == {"bias": MIB, "logsumexp": 98_304}
    assert lowering.forward_scratch == ()
    assert sizes(lowering, "gradients") == dict.fromkeys(("dq", "dk", "dv"), 6 * MIB)
    # (16 + 4 * 64 * 64) bytes for each of 2 query blocks: 8200 fp32, for 192 heads
    assert sizes(lowering, "backward_scratch") == {
        "product": 6 * MIB,
        "row_sums": 98_304,
        "delta": 98_304,
        "workspace": 6_297_600,
    }
    # the product is gone before the workspace is made: not 18 + 6 + 6 MiB
    assert lowering.backward_peak_bytes == 18 * MIB + 6 * MIB + 2 * 98_304
    assert lowering.basis == "derived"
    assert lowering.saved_inputs == ("q", "k", "v")


def test_xlm_roberta_large_bf16() -> None:
    node = replace(padded(BF16), heads=16, kv_heads=16)
    lowering = lowered(node, "efficient")
    assert sizes(lowering, "forward_saved")["bias"] == MIB // 2
    assert sum(sizes(lowering, "gradients").values()) == 12 * MIB
    assert sizes(lowering, "backward_scratch") == {"delta": 131_072, "workspace": 8_396_800}
    assert lowering.backward_peak_bytes == 12 * MIB + 131_072 + 8_396_800


def test_llama_flash() -> None:
    lowering = lowered(LLAMA, "flash")
    assert lowering.out_bytes == 16 * MIB
    assert sizes(lowering, "forward_saved") == {
        "logsumexp": 32 * 2048 * 4,
        "rng_state": 16,
        "rng_unused": 8,
    }
    assert sum(sizes(lowering, "gradients").values()) == 24 * MIB
    assert sizes(lowering, "backward_scratch") == {
        "softmax_d": MIB // 4,
        "dq_accum": 32 * MIB,
        "dk_expanded": 16 * MIB,
        "dv_expanded": 16 * MIB,
    }
    assert lowering.backward_peak_bytes == (24 * 4 + 257) * MIB // 4
    deterministic = lower_attention(
        LLAMA, "flash", compute_capability=A100, sm_count=108, deterministic=True
    )
    assert sizes(deterministic, "backward_scratch")["dq_accum"] == 4 * 32 * MIB  # 108 / 32 heads


def test_flash_decoding_splits_the_keys() -> None:
    # one token against 4096: 8 groups of 4 queries are 8 tiles, 32 key blocks of 128, 216 half
    # processors: 16 splits fill 128 of 216 (0.59), 32 fill 256 of 432 (0.59), the best; the first
    # within 85 % is 16.
    node = replace(LLAMA, query_length=1, key_length=4096, causal=False, needs_grad=False)
    lowering = lowered(node, "flash")
    scratch = sizes(lowering, "forward_scratch")
    assert scratch["out_accum"] == 16 * 32 * 128 * 4
    assert scratch["logsumexp_accum"] == 16 * 32 * 4
    assert lowering.forward_saved == ()
    assert lowering.backward == ()


def test_flash_pads_odd_heads() -> None:
    lowering = lowered(replace(BF16, head_dim=60, value_head_dim=60, dropout=0.0), "flash")
    assert lowering.out_bytes == 16 * 128 * 12 * 64 * 2
    assert {"q_padded", "k_padded", "v_padded"} <= set(sizes(lowering, "forward_saved"))
    assert sizes(lowering, "gradients")["dq"] == 16 * 128 * 12 * 60 * 2
    assert lowering.saved_inputs == ()


def test_flash_of_packed_texts() -> None:
    # 16 texts, 546 tokens in all, the longest 60: 12 heads of 64 in bf16
    node = replace(BF16, query_length=60, key_length=60, packed_tokens=546)
    lowering = lowered(node, "flash")
    assert lowering.out_bytes == 546 * 12 * 64 * 2
    assert sizes(lowering, "forward_saved") == {
        "logsumexp": 12 * 546 * 4,
        "rng_unused": 8,
        "rng_state_used": 16,
    }
    assert sum(sizes(lowering, "gradients").values()) == 3 * 546 * 768 * 2
    # 128 rows behind each text keep its sums from the next one's.
    rows = 546 + 16 * 128
    assert sizes(lowering, "backward_scratch") == {
        "softmax_d": 12 * rows * 4,
        "dq_accum": 12 * rows * 64 * 4,
    }


def test_flash_of_packed_texts_with_groups() -> None:
    # one text of 2048 tokens: as the padded call, but for the gap and without splitting keys
    node = replace(LLAMA, packed_tokens=2048)
    scratch = sizes(lowered(node, "flash"), "backward_scratch")
    assert scratch["softmax_d"] == 32 * (2048 + 128) * 4
    assert scratch["dk_expanded"] == scratch["dv_expanded"] == 16 * MIB
    forward = replace(node, needs_grad=False)
    assert sizes(lowered(forward, "flash"), "forward_scratch").keys() >= {"logsumexp"}
    assert lowered(forward, "flash").forward_saved == ()


def test_efficient_pads_masks_of_odd_length() -> None:
    node = replace(XLM_R_BASE, query_length=101, key_length=101)
    for mask in ("bool", "float"):
        masked = replace(node, mask=mask, mask_elements=16 * 101 * 101)
        lowering = lowered(masked, "efficient")
        assert sizes(lowering, "forward_saved") == {
            "bias_padded": 16 * 101 * 104 * 4,
            "logsumexp": 16 * 12 * 128 * 4,
        }
    even = replace(XLM_R_BASE, mask="float", mask_elements=16 * 128 * 128)
    assert "mask" in lowered(even, "efficient").saved_inputs
    assert set(sizes(lowered(even, "efficient"), "forward_saved")) == {"logsumexp"}


def test_efficient_without_gradient_keeps_nothing() -> None:
    lowering = lowered(replace(padded(XLM_R_BASE), needs_grad=False), "efficient")
    assert lowering.forward_saved == ()
    assert set(sizes(lowering, "forward_scratch")) == {"bias"}


def test_efficient_wide_half_heads_stage_key_gradients() -> None:
    node = replace(padded(BF16), head_dim=128, value_head_dim=128)
    big = sizes(lowered(node, "efficient", A100), "backward_scratch")["workspace"]
    assert big == 192 * 4 * (4 + 128 * 128)  # one tile of 128 x 128
    # on a card with 99 KiB blocks are 64 x 64: 4 tiles; one split stages dK and dV of 64 x 128
    small = lowered(node, "efficient", L40)
    assert sizes(small, "backward_scratch")["workspace"] == 192 * 4 * (4 * 4100 + 2 * 64 * 128)
    assert small.basis == "assumed"
    # above 128 the forward accumulates in memory too
    wide = lowered(replace(node, head_dim=256, value_head_dim=256), "efficient")
    assert sizes(wide, "forward_scratch")["out_accum"] == 16 * 128 * 12 * 256 * 4
    # fp32 writes its accumulator straight into the output
    fp32 = replace(padded(XLM_R_BASE), head_dim=256, value_head_dim=256)
    assert lowered(fp32, "efficient").forward_scratch == ()


def test_efficient_before_volta_needs_no_fp32_workspace() -> None:
    scratch = sizes(lowered(XLM_R_BASE, "efficient", (6, 0), 56), "backward_scratch")
    assert "workspace" not in scratch


def test_cudnn_is_marked_assumed() -> None:
    lowering = lowered(replace(padded(BF16), dropout=0.0), "cudnn", H100, 132)
    assert sizes(lowering, "forward_saved") == {
        "bias": MIB // 2,
        "rng_seed": 8,
        "rng_offset": 8,
        "logsumexp": 98_304,
    }
    assert sizes(lowering, "backward_scratch") == {"workspace": 6 * MIB + 98_304}
    assert lowering.basis == "assumed"
    assert lowering.assumptions


def test_math_saves_probabilities_and_dropout() -> None:
    scores = 16 * 12 * 128 * 128
    lowering = lowered(padded(XLM_R_BASE), "math", K80, 13)
    assert sizes(lowering, "forward_saved") == {
        "q_copy": 6 * MIB,
        "k_copy": 6 * MIB,
        "v_copy": 6 * MIB,
        "probabilities": 4 * scores,
        "dropped": 4 * scores,
        "dropout_mask": scores,
    }
    assert lowering.out_is_token_major is False
    assert lowering.basis == "assumed"
    single = lowered(replace(XLM_R_BASE, batch=1, dropout=0.0), "math", K80, 13)
    assert set(sizes(single, "forward_saved")) == {"q_scaled", "k_scaled", "probabilities"}
    assert single.saved_inputs == ("v",)


NODES = st.builds(
    lambda half, grouped, **shape: AttentionNode(
        dtype="bfloat16" if half else "float32",
        element_bytes=2 if half else 4,
        kv_heads=2 if grouped else 8,
        heads=8,
        enable_gqa=grouped,
        **shape,
    ),
    half=st.booleans(),
    grouped=st.booleans(),
    batch=st.integers(1, 40),
    query_length=st.integers(1, 300),
    key_length=st.integers(1, 300),
    head_dim=st.sampled_from([40, 64, 96, 128, 192, 256]),
    value_head_dim=st.sampled_from([64, 128]),
    causal=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1, 0.125]),
    needs_grad=st.booleans(),
)
CAPABILITIES = st.sampled_from([K80, (6, 0), V100, T4, A100, (8, 6), L40, H100, (10, 0), (12, 0)])


@settings(max_examples=300, deadline=None)
@given(node=NODES, capability=CAPABILITIES, masked=st.booleans())
def test_every_buffer_is_freed_once(
    node: AttentionNode, capability: tuple[int, int], masked: bool
) -> None:
    if masked and not node.causal:
        node = padded(node)
    kernel = kernel_on(node, capability)
    lowering = lowered(node, kernel, capability, 108)
    live: dict[str, int] = {}
    for events, remaining in ((lowering.forward, None), (lowering.backward, {"dq", "dk", "dv"})):
        for action, name, num_bytes in events:
            assert num_bytes > 0
            if action == "alloc":
                assert name not in live
                live[name] = num_bytes
            else:
                assert live.pop(name) == num_bytes
        if remaining is None:
            assert live.pop("out") == lowering.out_bytes
            assert live == sizes(lowering, "forward_saved")
        else:
            assert set(live) == (remaining if node.needs_grad else set())
    gradients = sizes(lowering, "gradients")
    if node.needs_grad:
        assert gradients["dq"] == node.query_elements * node.element_bytes
        assert gradients["dk"] == node.key_elements * node.element_bytes
        assert gradients["dv"] == node.value_elements * node.element_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"element_bytes": 2},
        {"kv_heads": 5},
        {"mask": "bool"},
        {"packed_tokens": 99, "key_length": 64},
        {"packed_tokens": 99, "mask": "float", "mask_elements": 128},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"element_bytes|multiple|mask"):
        replace(XLM_R_BASE, **change)  # type: ignore[arg-type]
