"""The ZeRO runs that a Program is held to: tiny models, buckets small enough to be filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trace.tiny import SIZES, Case

from rigsize.program.zero3_fetch import Limits
from rigsize.spec import Strategy

REFERENCE = Path(__file__).with_name("zero_reference.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroCase:
    """One run of DeepSpeed's engine."""

    stage: int
    ranks: int
    family: str = "xlm-roberta"
    task: str = "masked-lm"
    dtype: str = "bfloat16"
    accumulation: int = 1
    optimizer: str = "adamw-fused"
    bucket: int = 400_000
    """Elements: fewer than the embedding has, more than anything else."""

    def __str__(self) -> str:
        words = [f"zero{self.stage}", f"{self.ranks}ranks", self.family, self.dtype]
        words += [f"x{self.accumulation}", self.optimizer, f"{self.bucket}"]
        if self.stage == 3:
            words.append(f"{self.prefetch}-{self.persistence}-{self.reuse}")
        return "-".join(words)

    prefetch: int = 20_000
    persistence: int = 1_000
    reuse: int = 100_000

    def limits(self) -> Limits:
        return Limits(prefetch=self.prefetch, persistence=self.persistence, max_reuse=self.reuse)

    def traced(self) -> Case:
        compute = "fp32" if self.dtype == "float32" else "half"
        return Case(
            family=self.family, task=self.task, compute=compute, padded=False, hold_output=False
        )

    def strategy(self) -> Strategy:
        return Strategy(
            parallel=f"zero{self.stage}",
            precision={"float32": "fp32", "bfloat16": "bf16"}[self.dtype],
            optimizer=self.optimizer,
            accumulation=self.accumulation,
            hold_output=False,
        )

    def deepspeed_config(self) -> dict[str, Any]:
        zero = {"stage": self.stage, "reduce_bucket_size": self.bucket}
        zero["allgather_bucket_size"] = self.bucket
        if self.stage == 3:
            zero["stage3_prefetch_bucket_size"] = self.prefetch
            zero["stage3_param_persistence_threshold"] = self.persistence
            zero["stage3_max_reuse_distance"] = self.reuse
        return {
            "train_micro_batch_size_per_gpu": SIZES["B"],
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": 1.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.dtype == "bfloat16"},
        }


_LLAMA: dict[str, Any] = {"family": "llama", "task": "causal-lm", "optimizer": "adamw-foreach"}
CASES = (
    ZeroCase(stage=1, ranks=1),
    ZeroCase(stage=1, ranks=4),
    ZeroCase(stage=1, ranks=4, accumulation=3),
    ZeroCase(stage=2, ranks=4),
    ZeroCase(stage=3, ranks=4),
    ZeroCase(stage=3, ranks=4, prefetch=10**6, reuse=10**9, persistence=10),
    ZeroCase(stage=2, ranks=4, accumulation=3),
    ZeroCase(stage=3, ranks=8, accumulation=2),
    ZeroCase(stage=2, ranks=2, dtype="float32"),
    ZeroCase(stage=3, ranks=3, **_LLAMA),
    ZeroCase(stage=2, ranks=4, bucket=100_000, **_LLAMA),
    ZeroCase(stage=3, ranks=2, dtype="float32"),
    ZeroCase(stage=3, ranks=1, bucket=100_000),
)
