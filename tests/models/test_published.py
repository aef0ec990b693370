"""Sizes of checkpoints by hand."""

from __future__ import annotations

from dataclasses import replace

from rigsize.models import published_bytes, resolve_model

ELSEWHERE = replace(resolve_model("xlm-roberta-base"), origin="folder", checkpoint_parameters=None)


def test_a_bundled_model_is_published_in_its_own_dtype() -> None:
    llama = resolve_model("meta-llama/Llama-3.1-8B")
    num_bytes, note = published_bytes(llama, 1)
    assert (round(num_bytes or 0, -8), note) == (16_100_000_000, "published in bfloat16")
    base = resolve_model("xlm-roberta-base")
    assert published_bytes(base, 1) == (4 * 278_885_778, "published in float32")


def test_elsewhere_the_config_names_it_or_nothing_does() -> None:
    named = replace(ELSEWHERE, config={**ELSEWHERE.config, "torch_dtype": "float16"})
    assert published_bytes(named, 10) == (20, "published in float16")
    bare = {k: v for k, v in ELSEWHERE.config.items() if "dtype" not in k}
    num_bytes, note = published_bytes(replace(ELSEWHERE, config=bare), 10)
    assert num_bytes == 40
    assert "names no other" in note


def test_a_packed_checkpoint_is_not_guessed() -> None:
    packed = {**ELSEWHERE.config, "quantization_config": {"quant_method": "gptq"}}
    assert published_bytes(replace(ELSEWHERE, config=packed), 10)[0] is None
