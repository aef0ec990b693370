import pytest

from rigsize.trace.fold import (
    LengthDependent,
    NotFolded,
    fold,
    give_back_layer_deaths,
    mismatch,
)
from rigsize.trace.recorder import ALLOC, FREE, RawEvent, RawTrace

POINTS = [{"B": b, "S": s} for b, s in ((2, 37), (3, 75), (5, 101), (4, 61), (7, 117))]
STACKS = [("layers", 4)]
CONTEXTS = [0, 0, 1, 1, 2]


def alloc(storage: int, group: int, size: int, phase: str = "forward") -> RawEvent:
    module = f"layers.{group - 1}" if group else ""
    return RawEvent(ALLOC, storage, group, phase, "aten::mm", module, num_bytes=size)


def free(storage: int, group: int, phase: str = "forward") -> RawEvent:
    return RawEvent(FREE, storage, group, phase)


def chain(B: int, S: int, depth: int = 4, extra: int = 0) -> RawTrace:
    """Each layer makes its output and frees what the layer before left."""
    size = 4 * B * S
    events = [alloc(0, 0, size)]
    for layer in range(1, depth + 1):
        events.append(alloc(layer, layer, size + extra * (layer == 3)))
        events.append(free(layer - 1, layer))
    events.append(free(depth, 0))
    return RawTrace(events=events)


def test_layers_of_one_context_share_a_template() -> None:
    body = fold([chain(**p) for p in POINTS], POINTS, STACKS, CONTEXTS)
    # the embedding, the first layer (it frees a global), the others (a neighbour's), the end
    assert [(group, template) for _, group, template in body.schedule] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 2),
        (4, 2),
        (0, 3),
    ]
    assert body.births == (1, 1, 1, 1, 1)
    second = body.templates[2]
    assert [event.ref for event in second] == [("own", 0), ("near", -1, 0)]
    assert second[0].size == ((4, "BS"),)
    assert second[0].module == "layers.*"
    assert body.templates[3][0].ref == ("end", 0, 1, 0, 0)


def test_layers_of_one_context_that_differ_are_refused() -> None:
    with pytest.raises(NotFolded, match="one context differ"):
        fold([chain(**p, extra=512) for p in POINTS], POINTS, STACKS, CONTEXTS)


def test_events_that_depend_on_the_length_are_refused_for_good() -> None:
    traces = [chain(**p) for p in POINTS]
    traces[2].events.append(alloc(99, 0, 8))
    with pytest.raises(LengthDependent, match="events at"):
        fold(traces, POINTS, STACKS, CONTEXTS)


def test_a_size_that_no_expression_gives_is_refused() -> None:
    traces = [chain(**p) for p in POINTS]
    for trace, odd in zip(traces, (11, 17, 23, 31, 59), strict=True):
        trace.events[0].num_bytes = odd
    with pytest.raises(NotFolded, match="no expression"):
        fold(traces, POINTS, STACKS, CONTEXTS)


def test_a_layer_that_reaches_far_is_refused() -> None:
    trace = chain(2, 40, depth=6)
    trace.events[9], trace.events[10] = free(2, 5), free(4, 5)  # layer 5 frees what 2 left
    with pytest.raises(NotFolded):
        fold([trace], [{"B": 2, "S": 40}], [("layers", 6)], [0, 0, 1, 1, 1, 1, 2])


def test_a_body_foretells_sizes_that_it_has_not_seen() -> None:
    body = fold([chain(**p) for p in POINTS], POINTS, STACKS, CONTEXTS)
    unseen = {"B": 6, "S": 4096}
    assert mismatch(body, chain(**unseen), unseen, STACKS) == ""
    other = chain(**unseen)
    other.events[0].num_bytes += 1
    assert "against" in mismatch(body, other, unseen, STACKS)
    short = chain(**unseen)
    del short.events[-1]
    assert mismatch(body, short, unseen, STACKS) != ""


def casts(order: list[int], depth: int) -> list[int]:
    """The groups of deaths that follow the layers' births, told from outside the layers."""
    events = [alloc(layer, layer, 8) for layer in range(1, depth + 1)]
    events += [free(layer, 0) for layer in order]
    trace = RawTrace(events=events)
    give_back_layer_deaths(trace, [("layers", depth)])
    return [event.group for event in trace.events if event.kind == FREE]


@pytest.mark.parametrize("depth", [4, 12])
def test_casts_die_with_their_layers_at_any_depth(depth: int) -> None:
    up = list(range(1, depth + 1))
    assert casts(up, depth) == up
    assert casts(up[::-1], depth) == up[::-1]


def test_a_death_before_the_passage_is_no_part_of_it() -> None:
    # what the last layer left dies, then each layer's casts, the last one's among them
    events = [alloc(layer, layer, 8) for layer in range(1, 5)]
    events += [alloc(14, 4, 8), free(14, 0), *(free(layer, 0) for layer in range(1, 5))]
    trace = RawTrace(events=events)
    give_back_layer_deaths(trace, [("layers", 4)])
    assert [e.group for e in trace.events if e.kind == FREE] == [0, 1, 2, 3, 4]


def test_all_hidden_states_but_the_last() -> None:
    # DeBERTa's tuple goes backwards; the last layer's output dies by itself
    assert casts([3, 2, 1, 4], 4) == [3, 2, 1, 0]
    assert casts([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 12], 12) == [*range(11, 0, -1), 0]


def test_the_ends_alone_stay_outside() -> None:
    assert casts([11, 12], 12) == [0, 0]
    assert casts([1], 4) == [0]
