"""Cells are counted as the stub counts them, whatever is shared, cut and cleared."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from erllama_py._backends.base import BackendConfig, ContextOptions, Row
from erllama_py._backends.stub import StubBackend
from erllama_py._engine.measures import Measures
from erllama_py._engine.slots import Slots, common

SLOTS = 3
STEPS = st.tuples(
    st.sampled_from(["grow", "cut", "clear", "share"]),
    st.integers(0, SLOTS - 1),
    st.integers(0, SLOTS - 1),
    st.integers(0, 40),
)


class Holder:
    def __init__(self, slot: int) -> None:
        self.slot = slot


@given(st.lists(STEPS, max_size=40))
def test_shared_cells_count_once(steps: list[tuple[str, int, int, int]]) -> None:
    context = ContextOptions(n_ctx=4096, n_seq_max=SLOTS)
    backend = StubBackend(BackendConfig("stub", context=context))
    slots = Slots(backend)
    for what, slot, other, number in steps:
        length = backend.length(slot)
        match what:
            case "grow" if number:
                backend.step([Row(slot, length, range(number), logits=False)])
                slots.measure(Holder(slot))  # type: ignore[arg-type]
            case "cut":
                assert slots.truncate(slot, min(number, length))
            case "clear":
                slots.clear(slot)
            case "share" if slot != other:
                slots.clear(other)
                assert slots.share(slot, other, number) == (0 < number <= length)
        assert slots.used() == len(set().union(*backend._ids))
        assert backend.length(slot) == slots._cells.length(slot)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    length = common(array("I", one), array("I", other))
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == len(one)


def test_parking_is_worth_it_from_half_a_decoding_step_on() -> None:
    measures = Measures()
    assert not measures.worth_parking(1e12)  # nothing is known of decoding yet
    measures.decoded(1000)
    measures.restored(2000, 1000)
    assert measures.worth_parking(251)
    assert not measures.worth_parking(249)
    for _ in range(50):
        measures.decoded(4000)
    assert not measures.worth_parking(900)
