"""Tags of gen calls, and where they want the reply."""

from __future__ import annotations

from typing import Any

import pytest

from erl_bridge.etf import Atom, ImproperList, Pid, Reference
from erl_bridge.runtime.gen import alias_of, parse_call, parse_cast

PID = Pid(Atom("a@b"), 1, 2, 3)
REF = Reference(Atom("a@b"), 1, (1, 2, 3))
ALIAS = Reference(Atom("a@b"), 1, (1, 2, 3, 4, 5))
BY_ALIAS = ImproperList((Atom("alias"),), ALIAS)


@pytest.mark.parametrize(
    ("tag", "alias"),
    [
        (BY_ALIAS, ALIAS),
        (ImproperList((BY_ALIAS,), REF), ALIAS),
        (REF, None),
        ((REF, Atom("a@b")), None),
        (ImproperList((Atom("other"),), REF), None),
        (ImproperList((Atom("alias"), Atom("alias")), REF), None),
        (ImproperList((Atom("alias"),), 7), None),
        ([Atom("alias"), REF], None),
        (7, None),
    ],
)
def test_where_a_reply_goes(tag: Any, alias: Reference | None) -> None:
    """To the alias if there is one, else to the pid."""
    assert alias_of(tag) == alias


def test_calls_and_casts_are_told_from_messages() -> None:
    """By their exact shape."""
    assert parse_call((Atom("$gen_call"), (PID, REF), 1)) == (PID, REF, 1)
    assert parse_cast((Atom("$gen_cast"), 1)) == (1,)
    for other in (
        (Atom("$gen_call"), PID, 1),
        (Atom("$gen_call"), (1, REF), 1),
        (Atom("$gen_call"), (PID, REF)),
        (Atom("gen_call"), (PID, REF), 1),
        [Atom("$gen_cast"), 1],
        (Atom("$gen_cast"),),
        1,
    ):
        assert parse_call(other) is None
        assert parse_cast(other) is None
