from rigsize.provenance import Sourced
from rigsize.steptime import constants
from rigsize.steptime.constants import OPTIMIZER_BYTES_PER_PARAM, Span


def test_every_span_is_ordered_and_positive() -> None:
    single = [v for v in vars(constants).values() if isinstance(v, Sourced)]
    spans = [row.value for row in (*single, *OPTIMIZER_BYTES_PER_PARAM.values())]
    assert len(spans) > 15
    for span in spans:
        assert isinstance(span, Span)
        assert 0 < span.low <= span.mid <= span.high


def test_adam_bytes_by_hand() -> None:
    # Weight, gradient and two states are read, weight and two states written: 7 x 4 bytes.
    assert OPTIMIZER_BYTES_PER_PARAM["adamw-fused"].value.mid == 7 * 4
    # fp32 read, 16-bit written.
    assert OPTIMIZER_BYTES_PER_PARAM["autocast-cast"].value.mid == 4 + 2
