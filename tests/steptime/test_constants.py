from rigsize.provenance import Sourced
from rigsize.steptime import constants
from rigsize.steptime.constants import Span


def test_every_span_is_ordered_and_positive() -> None:
    spans = [v.value for v in vars(constants).values() if isinstance(v, Sourced)]
    assert len(spans) > 15
    for span in spans:
        assert isinstance(span, Span)
        assert 0 < span.low <= span.mid <= span.high


def test_a_constant_tuned_on_runs_says_so() -> None:
    # On greedy decoding of Qwen2.5 by transformers: those rows prove nothing therefore.
    for host in (constants.DISPATCH_S, constants.KERNEL_LAUNCH_S):
        assert host.basis == "fitted"
        assert "prove nothing" in host.source
