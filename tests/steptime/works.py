"""Small encoders as `Work`, made by hand."""

from rigsize.program.work import Kernel, Work, WorkSegment


def encoder_work(
    *,
    layers: int = 4,
    hidden: int = 768,
    vocabulary: int = 32000,
    batch: int = 16,
    length: int = 128,
    dtype: str = "bfloat16",
    training: bool = True,
) -> Work:
    """Layers of four square products, a fourfold feed-forward, attention; a head in layer 0."""
    B, S, H, F, V = batch, length, hidden, 4 * hidden, vocabulary
    T, size = B * S, 4 if dtype == "float32" else 2

    def product(m: int, n: int, k: int, layout: str, launches: int = 1) -> Kernel:
        return Kernel("gemm", dtype, (1, m, n, k), layout, "mm", launches)

    def moved(kind: str, num_bytes: int, launches: int = 1) -> Kernel:
        return Kernel(kind, dtype, (num_bytes,), launches=launches)

    heads = (B, S, H // 64, 64, S, H // 64)
    forward = (
        product(T, H, H, "nt", 4),
        product(T, F, H, "nt"),
        product(T, H, F, "nt"),
        Kernel("attention", dtype, heads),
        moved("elementwise", 3 * T * H * size, 4),
        moved("layernorm", 2 * T * H * size, 2),
    )
    backward = (
        product(T, H, H, "nn", 4),
        product(H, H, T, "tn", 4),
        product(T, F, H, "nn"),
        product(T, H, F, "nn"),
        product(F, H, T, "tn", 2),
        Kernel("attention_backward", dtype, heads),
        moved("elementwise", 3 * T * H * size, 6),
        moved("layernorm-backward", 3 * T * H * size, 2),
    )
    segments = [WorkSegment("forward", 0, (moved("embedding", 2 * T * H * size),), 20)]
    segments += [WorkSegment("forward", n, forward, 40) for n in range(1, layers + 1)]
    segments.append(WorkSegment("forward", 0, (product(T, V, H, "nt"),), 10))
    if training:
        head = (product(T, H, V, "nn"), product(V, H, T, "tn"))
        segments.append(WorkSegment("backward", 0, head, 10))
        segments += [WorkSegment("backward", n, backward, 60) for n in range(layers, 0, -1)]
        embedding = (moved("embedding-backward", V * H * size),)
        segments.append(WorkSegment("backward", 0, embedding, 10))
    parameters = (V * H, *(12 * H * H,) * layers)
    return Work(
        segments=tuple(segments),
        parameters=parameters,
        trainable=parameters if training else (0,) * len(parameters),
        tensors=16 * layers + 1,
        weight_bytes=tuple(numel * size for numel in parameters),
        training=training,
        point={"B": B, "S": S},
    )
