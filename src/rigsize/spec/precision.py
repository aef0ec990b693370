"""Named precision policies: what each parameter costs, said out loud.

The 2.7-fold spread between estimators of one and the same fine-tune is nothing but this choice,
unnamed (Llama-3-8B, full AdamW: 8, 12, 16 or 18 bytes a parameter).
"""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.spec.checks import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPolicy:
    """Bytes per parameter and the arithmetic around them."""

    name: str
    compute: str
    """What is traced: fp32, amp (fp32 weights, forward under autocast) or half."""
    weight_bytes: int
    gradient_bytes: int
    master_bytes: int
    """An fp32 copy kept by the optimizer beside 16-bit weights; 0 without one."""
    state_bytes: int
    """Of each AdamW moment."""
    half_dtype: str
    """float16, bfloat16 or float32: the dtype of the matrix products."""
    loss_scaling: bool = False
    """A GradScaler; its cost is two scalars."""
    training: bool = True
    note: str = ""

    def bytes_per_parameter(self) -> str:
        """`4 weight + 4 gradient + 8 AdamW = 16`."""
        parts = [(self.weight_bytes, "weight")]
        if self.training:
            parts += [
                (self.gradient_bytes, "gradient"),
                (self.master_bytes, "master"),
                (2 * self.state_bytes, "AdamW"),
            ]
        shown = [f"{size} {name}" for size, name in parts if size]
        total = sum(size for size, _ in parts)
        return f"{' + '.join(shown)} = {total}" if len(shown) > 1 else shown[0]


def _policy(
    name: str, compute: str, half_dtype: str, *sizes: int, **more: object
) -> PrecisionPolicy:
    weight, gradient, master, state = sizes
    return PrecisionPolicy(
        name=name,
        compute=compute,
        half_dtype=half_dtype,
        weight_bytes=weight,
        gradient_bytes=gradient,
        master_bytes=master,
        state_bytes=state,
        **more,  # type: ignore[arg-type]
    )


POLICIES: dict[str, PrecisionPolicy] = {
    policy.name: policy
    for policy in (
        _policy("fp32", "fp32", "float32", 4, 4, 0, 4),
        _policy("tf32", "fp32", "float32", 4, 4, 0, 4, note="fp32 tensors, TF32 products"),
        _policy("amp-bf16", "amp", "bfloat16", 4, 4, 0, 4, note="fp32 weights under autocast"),
        _policy("amp-fp16", "amp", "float16", 4, 4, 0, 4, loss_scaling=True),
        _policy("bf16", "half", "bfloat16", 2, 2, 0, 2, note="pure bf16, no master copy"),
        _policy("fp16", "half", "float16", 2, 0, 0, 0, training=False, note="inference only"),
        _policy(
            "int8",
            "half",
            "float16",
            1,
            0,
            0,
            0,
            training=False,
            note="LLM.int8 weights, fp16 math",
        ),
        _policy(
            "int4", "half", "bfloat16", 1, 0, 0, 0, training=False, note="NF4 weights, bf16 math"
        ),
        _policy(
            "fp8", "half", "bfloat16", 1, 0, 0, 0, training=False, note="fp8 weights, bf16 math"
        ),
        _policy(
            "fp16-master",
            "half",
            "float16",
            2,
            2,
            4,
            4,
            loss_scaling=True,
            note="fp16 weights and gradients, fp32 master copy and states",
        ),
    )
}


def find_policy(name: str) -> PrecisionPolicy:
    """The policy of that name; SpecError otherwise."""
    one_of("precision", name, POLICIES)
    return POLICIES[name]
