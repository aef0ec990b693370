"""Constants of the time model that no packaged table gives, each with its source and range.

A `Span` is (low, mid, high): mid is used for the middle estimate, the others for the interval.
"""

from __future__ import annotations

from typing import NamedTuple

from rigsize.provenance import Basis, Sourced

__all__ = [
    "ADAFACTOR_KERNELS",
    "ADAMW_KERNELS",
    "ATTENTION_BACKWARD",
    "COMPILED_LAUNCHES",
    "COMPILED_TRAFFIC",
    "CPU_ADAM_BYTES_PER_PARAM",
    "CPU_ADAM_LOOP_S_PER_PARAM",
    "CPU_ADAM_S_PER_PARAM",
    "DISPATCH_S",
    "FOREACH_PASSES",
    "KERNEL_LAUNCH_S",
    "LOOP_PASSES",
    "LOW_POWER_SHARE",
    "MISALIGNED",
    "MOMENTUM_KERNELS",
    "MOMENTUM_PASSES",
    "NETWORK_BYTES_PER_S",
    "NETWORK_HOP_S",
    "OVERLAP_COST",
    "PCIE_SHARE",
    "RMSPROP_KERNELS",
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
    "assumed",
)
CPU_ADAM_LOOP_S_PER_PARAM = _span(
    0.8e-9,
    1.4e-9,
    3.0e-9,
    "torch.optim.AdamW on the CPU, about 1.4 s for 1e9 parameters (ZeRO-Offload, recalled)",
    "assumed",
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
    "a common factor of 2 on 2.5 us an operator and 6 us a launch, on transformers' greedy"
    " decoding of Qwen2.5 0.5B, 1.5B and 3B on an A100, 12 published rows between 21 and 32 ms a"
    " token, which prove nothing therefore; published range 5 to 25 us an operator in eager mode"
)
DISPATCH_S = _span(
    1.5e-6,
    5e-6,
    10e-6,
    f"host time of one dispatched operator beside its launches; {_HOST}",
    "fitted",
)
KERNEL_LAUNCH_S = _span(
    4e-6,
    12e-6,
    24e-6,
    f"host time of one kernel launch in eager mode; {_HOST}",
    "fitted",
)

# Traffic of an optimizer step against one fused pass over weight, gradient and states; foreach
# stores and reads again between its multi-tensor calls, the loop likewise, a tensor at a time.
FOREACH_PASSES = _span(1.7, 2.0, 3.0, "about twice the fused traffic", "assumed")
LOOP_PASSES = _span(2.0, 3.0, 4.0, "about three times the fused traffic", "assumed")
MOMENTUM_PASSES = _span(
    1.0, 1.4, 2.0, "foreach SGD reads and writes the momentum between two calls", "assumed"
)
# Launches of a step, estimated from torch's Python code, not measured: multi-tensor calls where
# tensors go together, kernels of each tensor where they do not.
ADAMW_KERNELS = _span(10, 12, 14, "torch's AdamW, foreach or loop", "assumed")
RMSPROP_KERNELS = _span(5, 6, 8, "torch's foreach RMSprop", "assumed")
MOMENTUM_KERNELS = _span(2, 3, 4, "torch's foreach SGD with momentum and weight decay", "assumed")
ADAFACTOR_KERNELS = _span(12, 15, 20, "Adafactor of torch and of transformers", "assumed")
