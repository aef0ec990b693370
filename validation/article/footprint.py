"""Claims of the article's first section: what a model's memory depends on."""

from __future__ import annotations

from validation.article.claim import DEPENDS, HOLDS, NOT, ROUGHLY, Finding, claim, within
from validation.article.question import (
    BASE,
    GB,
    LARGE,
    XL,
    XXL,
    ask,
    command,
    device,
    gb,
    gib,
    rows,
)

THREE_BILLION = 3_000_000_000
_WIDTHS = {BASE: 768, LARGE: 1024, XL: 2560, XXL: 4096}


@claim
def half_precision_of_three_billion() -> Finding:
    """A 3B model in half precision takes 6 GB: parameters times 2 bytes."""
    found = ask(XL, use="inference", precision="bf16", micro_batch=1)
    weights, peak = rows(found, "weights."), device(found)
    each = weights / found.parameters.model
    return Finding(
        ours=f"XL ({found.parameters.model / GB:.2f}B): {each:.3f} bytes a parameter,"
        f" {gb(weights)} of weights; the device holds {gb(peak)} with one text and the context",
        command=command(found),
        verdict=within(each, 2.0, 0.01),
    )


@claim
def bytes_of_the_formats() -> Finding:
    """A parameter takes 4 bytes in FP32, below 3 in TF32, 2 in half, 1 in INT8, half in INT4."""
    found = {p: ask(XL, use="inference", precision=p, micro_batch=1) for p in _FORMATS}
    weights = {p: rows(one, "weights.") / one.parameters.model for p, one in found.items()}
    shown = ", ".join(f"{p} {size:.2f}" for p, size in weights.items())
    return Finding(
        ours=f"XL as stored, bytes a parameter: {shown}. TF32 is a way to multiply: its tensors are"
        " FP32 in memory. INT8 and INT4 leave embeddings, norms and head in 16 bits",
        command=command(found["tf32"]),
        verdict=NOT if weights["tf32"] > 3 else HOLDS,
    )


_FORMATS = ("fp32", "tf32", "bf16", "int8", "int4")


@claim
def training_is_three_times_inference() -> Finding:
    """Training takes about three times the memory of inference."""
    parts = []
    ratios = []
    for model in (BASE, LARGE):
        inference = ask(model, use="inference", precision="fp32", micro_batch=16)
        training = ask(model, precision="fp32", micro_batch=16)
        ratio = training.memory.allocated_peak_bytes / inference.memory.allocated_peak_bytes
        ratios.append(ratio)
        parts.append(f"{model}: {ratio:.1f} times")
    worst = max(ratios, key=lambda ratio: abs(ratio - 3))
    return Finding(
        ours="allocated peak, fp32, AdamW, 16 texts: " + ", ".join(parts) + "; weights, gradients"
        " and AdamW's states alone are four times the weights",
        command=command(ask(BASE, precision="fp32", micro_batch=16)),
        verdict=within(worst, 3.0, 0.2),
    )


_PAIRS = (
    ("google-bert/bert-base-uncased", "openai-community/gpt2"),
    ("FacebookAI/roberta-large", "openai-community/gpt2-medium"),
)


@claim
def decoders_below_encoders() -> Finding:
    """Decoders (GPT) need less memory than encoders of comparable size (BERT)."""
    parts, less = [], []
    for pair in _PAIRS:
        encoder, decoder = (ask(model, precision="fp32", micro_batch=16) for model in pair)
        read, wrote = (ask(model, use="inference", micro_batch=16) for model in pair)
        less += [device(decoder) < device(encoder), device(wrote) < device(read)]
        names = " against ".join(model.rpartition("/")[2] for model in reversed(pair))
        parts.append(
            f"{names} ({decoder.parameters.model / 1e6:.0f}M,"
            f" {encoder.parameters.model / 1e6:.0f}M): fine-tuning {gib(device(decoder))} against"
            f" {gib(device(encoder))}, inference {gib(device(wrote))} against {gib(device(read))}"
        )
    return Finding(
        ours="3 classes, 16 x 128, fp32: " + "; ".join(parts),
        command=command(ask(_PAIRS[0][1], precision="fp32", micro_batch=16)),
        verdict=HOLDS if all(less) else DEPENDS if any(less) else NOT,
    )


@claim
def length_matters() -> Finding:
    """A shorter maximum length lowers memory."""
    peaks = {s: ask(LARGE, precision="fp32", micro_batch=16, max_length=s) for s in (128, 256, 512)}
    shown = ", ".join(f"{s} tokens {gib(device(found))}" for s, found in peaks.items())
    rising = [device(found) for found in peaks.values()]
    return Finding(
        ours=f"Large, fine-tuning, 16 texts: {shown}",
        command=command(peaks[512]),
        verdict=HOLDS if rising == sorted(rising) else NOT,
    )


@claim
def embeddings_are_vocabulary_times_width() -> Finding:
    """The input and output layer takes vocabulary (250k) x width x bytes."""
    parts, off = [], 0.0
    for model, width in _WIDTHS.items():
        found = ask(model, use="inference", precision="fp32", micro_batch=1)
        table, real = 250_000 * width * 4, rows(found, "weights.embeddings")
        off = max(off, abs(real - table) / table)
        parts.append(f"{model.rpartition('-')[2]} {gib(real)}")
    return Finding(
        ours="all embedding tables, fp32: " + ", ".join(parts) + f"; at most {off:.1%} from that"
        " product (positions and 2 to 880 more tokens). The output layer is the same table, tied,"
        " and takes nothing more",
        command=command(ask(XXL, use="inference", precision="fp32", micro_batch=1)),
        verdict=within(1 + off, 1.0, 0.01),
    )


@claim
def accumulation_needs_more() -> Finding:
    """Gradient accumulation needs additional memory, depending on the implementation."""
    once = ask(BASE, task="masked-lm", use="pre-training", precision="fp32", micro_batch=16)
    many = ask(
        BASE,
        task="masked-lm",
        use="pre-training",
        precision="fp32",
        micro_batch=16,
        accumulation=512,
    )
    more = many.memory.allocated_peak_bytes - once.memory.allocated_peak_bytes
    return Finding(
        ours=f"Base, masked LM, 16 texts: {gib(more)} more with 512 micro-steps: all gradients stay"
        " alive through forward and loss. It does not grow with the number of micro-steps",
        command=command(many),
        verdict=HOLDS if more > 0 else NOT,
    )


@claim
def pretraining_needs_more_than_fine_tuning() -> Finding:
    """Pre-training needs more than fine-tuning: its head predicts every token at each position."""
    tuned = ask(BASE, precision="fp32", micro_batch=16)
    trained = ask(BASE, task="masked-lm", use="pre-training", precision="fp32", micro_batch=16)
    lean = ask(
        BASE,
        task="masked-lm",
        use="pre-training",
        precision="fp32",
        micro_batch=16,
        loss="masked",
        hold_output=False,
    )
    return Finding(
        ours=f"Base, 16 x 128, fp32: {gib(device(trained))} against {gib(device(tuned))}. A head on"
        f" the masked positions alone, same mathematics: {gib(device(lean))}",
        command=command(trained),
        verdict=HOLDS if device(trained) > device(tuned) else NOT,
    )


@claim
def peft_needs_less() -> Finding:
    """Parameter-efficient fine-tuning needs less than full, and less again with quantisation."""
    full = ask(XL, precision="bf16", micro_batch=16)
    lora = ask(XL, precision="bf16", micro_batch=16, method="lora", lora_targets="query,value")
    quantised = ask(
        XL, precision="bf16", micro_batch=16, method="qlora", lora_targets="query,value"
    )
    peaks = [device(found) for found in (full, lora, quantised)]
    return Finding(
        ours=f"XL, bf16, 16 x 128: full {gib(peaks[0])}, LoRA {gib(peaks[1])}"
        f" ({lora.parameters.trainable / 1e6:.1f}M trainable), QLoRA {gib(peaks[2])}",
        command=command(quantised),
        verdict=HOLDS if peaks == sorted(peaks, reverse=True) else DEPENDS,
    )


@claim
def optimizer_bytes() -> Finding:
    """Optimizer states a parameter: AdamW 8 bytes, Adafactor 4, 8-bit Adam 2."""
    said = {"adamw-foreach": 8.0, "adafactor": 4.0, "adamw-8bit": 2.0}
    ours = {}
    for name in said:
        found = ask(LARGE, precision="fp32", micro_batch=16, optimizer=name)
        ours[name] = _state_bytes(found)
    shown = ", ".join(f"{name} {size:.3f}" for name, size in ours.items())
    wrong = [name for name, size in said.items() if within(ours[name], size, 0.02) != HOLDS]
    return Finding(
        ours=f"Large, fp32, states as allocated: {shown}"
        + ("; Adafactor keeps one row and one column a matrix" if "adafactor" in wrong else ""),
        command=command(ask(LARGE, precision="fp32", micro_batch=16, optimizer="adafactor")),
        verdict=HOLDS if not wrong else DEPENDS,
    )


def _state_bytes(found: object) -> float:
    from rigsize.report.answer import state_bytes_per_parameter

    return state_bytes_per_parameter(found)  # type: ignore[arg-type]


@claim
def adamw_of_three_billion() -> Finding:
    """AdamW allocates 24 GB of states for a 3B model."""
    found = ask(XL, gpus="H200", precision="fp32", micro_batch=1, optimizer="adamw-fused")
    each = _state_bytes(found)
    return Finding(
        ours=f"{each:.3f} bytes a parameter: {gb(each * THREE_BILLION)} for 3B,"
        f" {gb(each * found.parameters.trainable)} for XL; half with bf16 weights alone",
        command=command(found),
        verdict=within(each * 3, 24.0, 0.01),
    )


@claim
def ddp_needs_one_gpu_fsdp_shards() -> Finding:
    """DDP runs only what fits one GPU; FSDP and ZeRO spread a model over several."""
    ddp = ask(XL, gpus="A100-80GB:2", precision="fp32", micro_batch=16, parallel="ddp")
    single = ask(XL, precision="fp32", micro_batch=16)
    fsdp = ask(XL, gpus="A100-80GB:2", precision="fp32", micro_batch=16, parallel="fsdp")
    return Finding(
        ours=f"XL, fp32, 16 x 128: one GPU {gib(device(single))}, DDP over two {gib(device(ddp))}"
        f" each (its buckets are a second copy of the gradients), FSDP over two"
        f" {gib(device(fsdp))} each",
        command=command(fsdp),
        verdict=HOLDS if device(fsdp) < device(single) <= device(ddp) else ROUGHLY,
    )


@claim
def offload_saves_gpu_memory() -> Finding:
    """CPU offload with FSDP saves some GPU memory."""
    on = ask(XXL, gpus="A100-40GB:4", micro_batch=16, parallel="fsdp")
    off = ask(XXL, gpus="A100-40GB:4", micro_batch=16, parallel="fsdp", offload="cpu")
    return Finding(
        ours=f"XXL over 4, fp32, 16 x 128: {gib(device(on))} each without, {gib(device(off))} with",
        command=command(off),
        verdict=HOLDS if device(off) < device(on) else NOT,
    )
