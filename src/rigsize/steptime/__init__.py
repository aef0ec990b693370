"""From operators to seconds: kernels, collectives and the constants between them."""

from rigsize.steptime.attention import Heads, attention
from rigsize.steptime.collectives import Collective, collective
from rigsize.steptime.gemm import Layout, gemm
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.memory_bound import MemoryClass, memory_bound
from rigsize.steptime.step import Part, Quantiles, StepTime, step_time

__all__ = [
    "Collective",
    "Heads",
    "KernelTime",
    "Layout",
    "MemoryClass",
    "Part",
    "Quantiles",
    "StepTime",
    "attention",
    "collective",
    "gemm",
    "memory_bound",
    "step_time",
]
