"""What optional libraries say of themselves on import, where it is as expected.

torchao brings kernels for CUDA beside its Python code and warns of every file that a CPU build of
torch cannot load; transformers, accelerate and peft import it whenever it is installed. On a
machine with CUDA the same words are an error, and pass.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["hush"]


class _Expected(logging.Filter):
    """Drops two messages by their own words, and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it."""
        text = record.getMessage()
        if text.startswith("Failed to load ") and "torchao" in text:
            return _has_cuda()
        # torchao 0.18 registers an Enum that torch 2.13 knows by itself.
        return "is an Enum subclass and is now natively supported" not in text


def _has_cuda() -> bool:
    """Never imports torch: who loads its kernels has."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


_EXPECTED = _Expected()


def hush() -> None:
    """From here on this process is not told what is as expected; twice is as once."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(_EXPECTED)
