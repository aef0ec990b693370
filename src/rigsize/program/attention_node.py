"""One call of scaled dot-product attention: its shapes, its mask, what is asked of it.

Legend: B batch, H heads, K heads of keys and values, Q query length, S key length, D head
dimension of queries and keys, V head dimension of values. Packed texts have N tokens in all instead
of B * Q and B * S; Q and S are then the longest text's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNode:
    """One call of scaled dot-product attention as the model makes it."""

    batch: int
    heads: int
    """Query heads."""
    kv_heads: int
    """Heads of keys and values as handed over (after `repeat_kv` where the model calls it)."""
    query_length: int
    key_length: int
    head_dim: int
    value_head_dim: int
    element_bytes: int
    """Of queries, keys and values."""
    dtype: Literal["float32", "float16", "bfloat16"]
    mask: Literal["none", "bool", "float"] = "none"
    mask_elements: int = 0
    """Elements of the mask in its own shape, before it is broadcast over the heads."""
    causal: bool = False
    """The `is_causal` flag, not a causal mask."""
    dropout: float = 0.0
    needs_grad: bool
    enable_gqa: bool = False
    packed_tokens: int = 0
    """N of texts that lie one after another in one row; 0 for a padded batch."""

    def __post_init__(self) -> None:
        if (self.dtype == "float32") != (self.element_bytes == FP32_BYTES):
            raise ValueError(f"element_bytes {self.element_bytes} does not fit {self.dtype}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads are no multiple of {self.kv_heads}")
        if (self.mask == "none") != (self.mask_elements == 0):
            raise ValueError(f"mask {self.mask!r} with {self.mask_elements} elements")
        if self.is_packed and (self.query_length != self.key_length or self.mask != "none"):
            raise ValueError("packed texts attend to themselves, without a mask")

    @property
    def is_packed(self) -> bool:
        """Whether the texts lie one after another in one row."""
        return self.packed_tokens > 0

    @property
    def query_rows(self) -> int:
        """B * Q, or N."""
        return self.packed_tokens or self.batch * self.query_length

    @property
    def key_rows(self) -> int:
        """B * S, or N."""
        return self.packed_tokens or self.batch * self.key_length

    @property
    def is_half(self) -> bool:
        """Whether queries, keys and values are fp16 or bf16."""
        return self.element_bytes < FP32_BYTES

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share a head of keys and values."""
        return self.heads != self.kv_heads

    @property
    def query_elements(self) -> int:
        """B * Q * H * D."""
        return self.query_rows * self.heads * self.head_dim

    @property
    def key_elements(self) -> int:
        """B * S * K * D."""
        return self.key_rows * self.kv_heads * self.head_dim

    @property
    def value_elements(self) -> int:
        """B * S * K * V."""
        return self.key_rows * self.kv_heads * self.value_head_dim

    @property
    def out_elements(self) -> int:
        """B * Q * H * V."""
        return self.query_rows * self.heads * self.value_head_dim

    @property
    def score_elements(self) -> int:
        """B * H * Q * S."""
        return self.batch * self.heads * self.query_length * self.key_length
