"""Stop sequences: the original's worked examples, and the choices recorded in the module."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from erllama_py._engine.stops import StopScanner, cut_at


def shown(scanner: StopScanner, fragments: list[bytes]) -> list[bytes]:
    return [scanner.feed(fragment) for fragment in fragments]


def test_text_before_a_match_is_shown_and_the_rest_dropped() -> None:
    scanner = StopScanner([b"END"])
    assert shown(scanner, [b"foo E", b"ND bar"]) == [b"foo", b" "]
    assert scanner.matched == b"END"
    assert scanner.flush() == b""


def test_without_a_match_the_last_bytes_come_with_the_flush() -> None:
    scanner = StopScanner([b"zzzz"])
    assert shown(scanner, [b"40100635"] * 3) == [b"40100", b"63540100", b"63540100"]
    assert scanner.flush() == b"635"
    assert scanner.matched is None


def test_leftmost_position_wins_whatever_the_list_order() -> None:
    scanner = StopScanner([b"cd", b"bc"])
    assert scanner.feed(b"xbcdef") == b"x"
    assert scanner.matched == b"bc"


def test_at_one_position_the_list_order_decides() -> None:
    for entries in ([b"bc", b"bcd"], [b"bcd", b"bc"]):
        scanner = StopScanner(entries)
        scanner.feed(b"xbcdef")
        assert scanner.matched == entries[0]


def test_an_entry_completed_earlier_in_time_wins() -> None:
    scanner = StopScanner([b"abcd", b"bc"])
    scanner.feed(b"ab")
    scanner.feed(b"c and more")
    assert scanner.matched == b"bc"


def test_no_entries_hold_nothing_back() -> None:
    scanner = StopScanner([b"", b""])
    assert not scanner.active
    assert scanner.feed(b"\xf0\x9f") == b"\xf0\x9f"


@given(
    st.lists(
        st.binary(min_size=1, max_size=3).map(lambda b: bytes(x % 3 + 97 for x in b)), max_size=30
    ),
    st.lists(
        st.binary(min_size=1, max_size=4).map(lambda b: bytes(x % 3 + 97 for x in b)), max_size=3
    ),
)
def test_what_is_shown_never_contains_an_entry_and_loses_nothing(
    fragments: list[bytes], entries: list[bytes]
) -> None:
    scanner = StopScanner(entries)
    out = b""
    fed = b""
    for fragment in fragments:
        fed += fragment
        out += scanner.feed(fragment)
        if scanner.matched is not None:
            break
    out += scanner.flush()
    assert not any(entry in out for entry in entries)
    if scanner.matched is None:
        assert out == fed
    else:
        assert fed.startswith(out + scanner.matched)


def test_a_reply_is_cut_at_the_entry_that_fired_if_it_occurs() -> None:
    assert cut_at(b"one END two END", b"END") == b"one "
    assert cut_at(b"one two", b"END") == b"one two"
    assert cut_at(b"one two", None) == b"one two"
