"""Constants of the time model that no packaged table gives, each with its source and range.

A `Span` is (low, mid, high): mid is used for the middle estimate, the others for the interval.
"""

from __future__ import annotations

from typing import NamedTuple

from rigsize.provenance import Basis, Sourced

__all__ = [
    "ATTENTION_BACKWARD",
    "COMPILED_LAUNCHES",
    "COMPILED_TRAFFIC",
    "CPU_ADAM_BYTES_PER_PARAM",
    "CPU_ADAM_LOOP_S_PER_PARAM",
    "CPU_ADAM_S_PER_PARAM",
    "DISPATCH_S",
    "KERNEL_LAUNCH_S",
    "LOW_POWER_SHARE",
    "MISALIGNED",
    "NETWORK_BYTES_PER_S",
    "NETWORK_HOP_S",
    "OPTIMIZER_BYTES_PER_PARAM",
    "OVERLAP_COST",
    "PCIE_SHARE",
    "ROCM_MATMUL_SHARE",
    "Span",
]


class Span(NamedTuple):
    """A value with its low and high bound."""

    low: float
    mid: float
    high: float


def _span(low: float, mid: float, high: float, source: str, basis: Basis) -> Sourced[Span]:
    return Sourced(value=Span(low, mid, high), source=source, as_of="2026-11-25", basis=basis)


MISALIGNED = _span(
    1.0,
    2.0,
    3.0,
    "factor on a tensor-core product with a row whose length is no multiple of 16 bytes; Netflix"
    " reports about 3 for a vocabulary that is no multiple of 64; nobody published a table",
    "assumed",
)
ATTENTION_BACKWARD = _span(
    2.2,
    2.5,
    3.5,
    "FlashAttention: the backward pass makes five products where the forward makes two",
    "derived",
)
LOW_POWER_SHARE = _span(
    0.4,
    0.6,
    0.9,
    "share of the tensor peak that a card of 75 W or less sustains beside other cards: their fp32"
    " factors in NeuSight's tables are .29 (L4) and .40 (T4) against .75 to .91",
    "assumed",
)
ROCM_MATMUL_SHARE = _span(
    0.4,
    0.57,
    0.7,
    "share of the datasheet peak in matrix products on CDNA: the best shape on an MI300X reaches"
    " .51 (stas00/ml-engineering), which already includes what tiles lose",
    "published",
)
PCIE_SHARE = _span(
    0.75,
    0.875,
    0.9,
    "pinned copies, 55.4 GB/s to and 55.1 GB/s from a device on PCIe 5 x16 (stas00/ml-engineering)",
    "published",
)
CPU_ADAM_S_PER_PARAM = _span(
    0.15e-9,
    0.24e-9,
    0.6e-9,
    "DeepSpeed's CPUAdam, .22 to .26 s for 1e9 parameters with a whole socket (ZeRO-Offload,"
    " recalled); all ranks of a node share its memory",
    "published",
)
CPU_ADAM_LOOP_S_PER_PARAM = _span(
    0.8e-9,
    1.4e-9,
    3.0e-9,
    "torch.optim.AdamW on the CPU, about 1.4 s for 1e9 parameters (ZeRO-Offload, recalled)",
    "published",
)
CPU_ADAM_BYTES_PER_PARAM = 28
"""What the host's AdamW moves for a parameter in fp32: other work of the host's memory is priced
by its bytes against this."""
OVERLAP_COST = _span(
    0.02,
    0.15,
    0.2,
    "share of the device that a collective takes from what computes beside it: Calculon charges"
    " .15 over NVLink and .02 over a network",
    "published",
)
COMPILED_TRAFFIC = _span(
    0.3,
    0.5,
    0.8,
    "share of the bytes of operators without a product that is left when torch.compile has fused"
    " them; depends on the model, and nobody published a table",
    "assumed",
)
COMPILED_LAUNCHES = _span(
    0.15,
    0.3,
    0.6,
    "share of the launches and dispatches that is left under torch.compile: the products stay,"
    " what is between them becomes one or two kernels",
    "assumed",
)
NETWORK_BYTES_PER_S = _span(
    1.25e9,
    12.5e9,
    50e9,
    "100 Gbit/s for a whole node where the offer does not say: between 10 Gbit/s Ethernet and"
    " one 400 Gbit/s adapter",
    "assumed",
)
NETWORK_HOP_S = _span(
    5e-6,
    15e-6,
    50e-6,
    "one exchange between nodes: a few us on InfiniBand, tens over TCP",
    "assumed",
)
_HOST = (
    "fitted (a common factor of 2 on 2.5 us an operator and 6 us a launch) on transformers' greedy"
    " decoding of Qwen2.5 0.5B, 1.5B and 3B on an A100, 12 published rows between 21 and 32 ms a"
    " token, which prove nothing therefore; published range 5 to 25 us an operator in eager mode"
)
DISPATCH_S = _span(
    1.5e-6,
    5e-6,
    10e-6,
    f"host time of one dispatched operator beside its launches; {_HOST}",
    "derived",
)
KERNEL_LAUNCH_S = _span(
    4e-6,
    12e-6,
    24e-6,
    f"host time of one kernel launch in eager mode; {_HOST}",
    "derived",
)

# Bytes moved for each trainable parameter by an optimizer step over fp32 states: AdamW reads the
# weight, the gradient and two states and writes three; foreach stores and re-reads intermediates
# between its passes; the loop does the same, one launch a pass and tensor.
OPTIMIZER_BYTES_PER_PARAM: dict[str, Sourced[Span]] = {
    "adamw-fused": _span(28, 28, 28, "4 reads and 3 writes of fp32", "derived"),
    "adamw-foreach": _span(48, 56, 84, "about twice the fused traffic", "assumed"),
    "adamw-loop": _span(56, 84, 112, "about three times the fused traffic", "assumed"),
    "sgd": _span(12, 12, 20, "2 reads and 1 write of fp32, no momentum", "derived"),
    "accumulate": _span(12, 12, 12, "2 reads and 1 write of fp32", "derived"),
    "unscale-clip": _span(8, 8, 16, "1 read and 1 write of fp32 gradients", "derived"),
    "autocast-cast": _span(6, 6, 6, "fp32 read, 16-bit written", "derived"),
}
