"""What optional libraries say of themselves on import, where it is as expected.

torchao brings kernels for CUDA beside its Python code and warns of every file that a CPU build of
torch cannot load; transformers, accelerate and peft import it whenever it is installed. On a
machine with CUDA the same words are an error, and pass. bitsandbytes tells of a package that it can
do without.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["hush"]


class _Expected(logging.Filter):
    """Drops three messages by their own words, and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it."""
        text = record.getMessage()
        if text.startswith("Failed to load ") and "torchao" in text:
            return _has_cuda()
        # A faster 4-bit product for CPUs, which bitsandbytes looks for in an optional package.
        if text.startswith("Failed to load CPU gemm_4bit_forward from kernels-community"):
            return "No module named 'kernels'" not in text
        # torchao 0.18 registers an Enum that torch 2.13 knows by itself.
        return "is an Enum subclass and is now natively supported" not in text


def _has_cuda() -> bool:
    """Never imports torch: who loads its kernels has."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


_EXPECTED = _Expected()


def hush() -> None:
    """From here on this process is not told what is as expected; twice is as once."""
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_EXPECTED)
