import numpy as np
import pytest
from tests.texts.blobs import PIECES, make_blob

from rigsize.errors import SpecError
from rigsize.texts.e5_blob import dequantised, parse_blob


def test_a_block_by_hand() -> None:
    # Scale 2; the first byte's low nibble 15 is weight 0, its high nibble 0 is weight 16.
    raw = np.float16(2).tobytes() + bytes([0x0F, 0x88]) + bytes([0x88] * 14)
    weights = dequantised(raw)
    assert weights.dtype == np.float32
    assert (weights[0], weights[1], weights[16], weights[17]) == (14.0, 0.0, -16.0, 0.0)


def test_sizes_and_vocabulary() -> None:
    blob = parse_blob(make_blob())
    assert (blob.hidden_size, blob.num_hidden_layers, blob.num_attention_heads) == (32, 1, 2)
    assert (blob.intermediate_size, blob.vocab_size, blob.max_position_embeddings) == (64, 8, 16)
    assert blob.special_ids == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    assert blob.pieces == tuple(PIECES)


def test_tensors() -> None:
    blob = parse_blob(make_blob())
    assert blob.tensor("emb.ln.b", 32)[[0, -1]].tolist() == [0.0, 1.0]
    words = blob.tensor("emb.word", 8, 32)
    assert words.shape == (8, 32)
    assert set(np.unique(words * 16)) <= set(range(-8, 8))
    for name, shape in (("l1.q.w", (32, 32)), ("emb.word", (8, 31))):
        with pytest.raises(SpecError, match="no tensor"):
            blob.tensor(name, *shape)


def test_another_file_is_told() -> None:
    with pytest.raises(SpecError, match="not a weight file"):
        parse_blob(b"GGUF....")
    with pytest.raises(SpecError, match="blocks of another size"):
        parse_blob(make_blob(block=64))


@pytest.mark.parametrize("length", [5, 40, 60, 120, 200, 300])
def test_a_cut_file_is_told(length: int) -> None:
    with pytest.raises(SpecError, match="weight"):
        parse_blob(make_blob()[:length])


def test_a_cut_tensor_is_told() -> None:
    with pytest.raises(SpecError, match="ends before"):
        parse_blob(make_blob()[:-1]).tensor("l0.oln.b", 32)
