"""Bytes of each optimizer's states, parameter by parameter, as the implementation makes them.

Sources: `_init_group` in torch/optim/adam.py, sgd.py, rmsprop.py, _adafactor.py and _muon.py
(2.13); `init_state` and `get_state_buffer` of `Optimizer2State` and `Optimizer1State` in
bitsandbytes/optim/optimizer.py (0.50.2); `_new_buffer` in torchao/optim/adam.py and the `zeros` of
subclass_8bit.py, subclass_4bit.py and subclass_fp8.py (0.18); `step` of `Adafactor` in
transformers/optimization.py (5.23).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rigsize.program.foreach import FP32_BYTES, Device
from rigsize.spec.optimizers import muon_takes

__all__ = [
    "BLOCKWISE",
    "CODE_TABLE_BYTES",
    "code_tables",
    "factor_numels",
    "is_blockwise",
    "needs_code_tables",
    "paged_sizes",
    "product",
    "state_bytes",
    "state_sizes",
]

MIN_QUANTISED_NUMEL = 4096
"""Smaller parameters keep whole states (bitsandbytes `min_8bit_size`; torchao follows it)."""
MIN_PAGED_NUMEL = 100_000
"""Smaller ones stay in the allocator (bitsandbytes `get_state_buffer`)."""
CODE_TABLE_BYTES = 256 * FP32_BYTES
"""One dynamic code table of 256 fp32 values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bitsandbytes:
    """An optimizer of bitsandbytes: fp32 or 8-bit states, in the allocator or managed."""

    num_states: int
    bits: int
    paged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockwise:
    """A low-bit state of torchao: codes, an fp32 scale a block, and a code table of its own."""

    bits: int
    block: int
    table_bytes: int
    compiled_scratch: float
    """Bytes an element of the parameter that torch.compile's kernels hold for a moment where they
    do not fuse whole: measured on the CPU backend of 2.13, not on a GPU."""


BITSANDBYTES = {
    "adamw-8bit": _Bitsandbytes(num_states=2, bits=8),
    "paged-adamw": _Bitsandbytes(num_states=2, bits=32, paged=True),
    "paged-adamw-8bit": _Bitsandbytes(num_states=2, bits=8, paged=True),
    "lion": _Bitsandbytes(num_states=1, bits=32),
    "lion-8bit": _Bitsandbytes(num_states=1, bits=8),
}
BLOCK_8BIT = 256
"""Elements that share one fp32 maximum in bitsandbytes."""
BLOCKWISE = {
    "adamw-8bit-torchao": Blockwise(
        bits=8, block=256, table_bytes=CODE_TABLE_BYTES, compiled_scratch=8 + 1 / 32
    ),
    "adamw-4bit": Blockwise(
        bits=4, block=128, table_bytes=16 * FP32_BYTES, compiled_scratch=26 + 1 / 16
    ),
    "adamw-fp8": Blockwise(bits=8, block=256, table_bytes=0, compiled_scratch=2 + 1 / 32),
}
_HOST_COUNTED = (
    "adamw-foreach",
    "adamw-loop",
    "adafactor",
    "adafactor-foreach",
    "rmsprop",
    *BLOCKWISE,
    "adamw-sr",
)
"""Their `step` is a tensor of 4 bytes on the host, which counts where the device is the CPU."""


def state_sizes(
    name: str,
    shape: tuple[int, ...],
    itemsize: int,
    device: Device = "cuda",
    parameter: str = "",
) -> list[int]:
    """Bytes of each state of one parameter in the device's allocator, in the order they are made.

    `parameter` is its name, by which Muon knows its own; `paged_sizes` has what is not here.
    """
    numel = product(shape)
    if name in BITSANDBYTES:
        return _bitsandbytes_sizes(BITSANDBYTES[name], numel, device)
    counter = [FP32_BYTES] if name in _HOST_COUNTED and device == "cpu" else []
    if name in BLOCKWISE:
        return counter + 2 * _blockwise_sizes(BLOCKWISE[name], numel, itemsize)
    if name == "adafactor-hf":
        # The factors, in fp32 for 16-bit parameters too, and the root mean square as a scalar.
        return [size * FP32_BYTES for size in (*factor_numels(shape), 1)]
    if name in ("adafactor", "adafactor-foreach"):
        return counter + [size * itemsize for size in factor_numels(shape)]
    if name in ("sgd", "sgd-momentum"):
        return [numel * itemsize] if name == "sgd-momentum" else []
    if name == "muon" and muon_takes(parameter, shape):
        return [numel * itemsize]
    if name == "rmsprop":
        return [*counter, numel * itemsize]
    counter = [FP32_BYTES] if name in ("adamw-fused", "muon") else counter
    return [*counter, numel * itemsize, numel * itemsize]


def paged_sizes(name: str, shape: tuple[int, ...], device: Device = "cuda") -> list[int]:
    """Bytes of each state of one parameter in CUDA managed memory.

    Host pages, moved to the card when a step reads them and evicted from it when room is short. On
    the CPU nothing is paged.
    """
    made = BITSANDBYTES.get(name)
    if made is None or not _is_paged(made, product(shape), device):
        return []
    return [product(shape) * _state_bits(made, product(shape)) // 8] * made.num_states


def _is_paged(made: _Bitsandbytes, numel: int, device: Device) -> bool:
    return made.paged and device == "cuda" and numel >= MIN_PAGED_NUMEL


def _state_bits(made: _Bitsandbytes, numel: int) -> int:
    return 32 if numel < MIN_QUANTISED_NUMEL else made.bits


def _bitsandbytes_sizes(made: _Bitsandbytes, numel: int, device: Device) -> list[int]:
    """fp32 for a small parameter, else a byte an element and a maximum a block."""
    bits = _state_bits(made, numel)
    whole = [] if _is_paged(made, numel, device) else [numel * bits // 8] * made.num_states
    maxima = [-(-numel // BLOCK_8BIT) * FP32_BYTES] * made.num_states if bits == 8 else []
    return whole + maxima


def _blockwise_sizes(made: Blockwise, numel: int, itemsize: int) -> list[int]:
    """One state: quantised where it is large and whole blocks, else in the parameter's dtype."""
    if not is_blockwise(made, numel):
        return [numel * itemsize]
    table = [made.table_bytes] if made.table_bytes else []
    return [numel * made.bits // 8, numel // made.block * FP32_BYTES, *table]


def is_blockwise(made: Blockwise, numel: int) -> bool:
    """Whether a parameter's states are quantised; bitsandbytes needs no whole blocks."""
    return numel >= MIN_QUANTISED_NUMEL and numel % made.block == 0


def needs_code_tables(name: str, numel: int) -> bool:
    """Whether the first state of such a parameter puts the shared code tables on the device."""
    made = BITSANDBYTES.get(name)
    return made is not None and _state_bits(made, numel) == 8


def code_tables(name: str) -> int:
    """How many code tables bitsandbytes puts there: one a state."""
    return BITSANDBYTES[name].num_states


def factor_numels(shape: tuple[int, ...]) -> list[int]:
    """Adafactor's row and column factors, or the whole variance of a vector."""
    if len(shape) < 2:
        return [product(shape)]
    return [product(shape[:-1]), product(shape[:-2]) * shape[-1]]


def product(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def state_bytes(
    optimizer_name: str,
    shapes: Iterable[tuple[int, ...]],
    itemsize: int,
    *,
    device: Device = "cuda",
    names: Sequence[str] = (),
) -> int:
    """Bytes of all states on the device, master copies and managed memory apart.

    `itemsize` is of the tensors that are stepped on: 4 with fp32 master copies. `names` are theirs,
    by which Muon knows its own. On the CPU the host's step counters count too.
    """
    shapes = list(shapes)
    named = zip(shapes, names or [""] * len(shapes), strict=True)
    sizes = (sum(state_sizes(optimizer_name, s, itemsize, device, n)) for s, n in named)
    tables = any(needs_code_tables(optimizer_name, product(shape)) for shape in shapes)
    shared = code_tables(optimizer_name) * CODE_TABLE_BYTES if tables else 0
    return sum(sizes) + shared
