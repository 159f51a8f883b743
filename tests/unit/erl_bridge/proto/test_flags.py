"""The flags, checked against what real nodes were seen to accept."""

from __future__ import annotations

import pytest

from erl_bridge.proto.flags import MANDATORY, OFFERED, Flag, missing, offered


def test_the_sets_are_those_that_were_tried_on_real_nodes() -> None:
    """Visible and hidden, as accepted by OTP 25 and 28."""
    assert offered(hidden=False) == 0xD074F1FBD
    assert offered(hidden=True) == 0xD074F1FBC


def test_nothing_is_offered_that_changes_the_framing() -> None:
    """With either of these, every frame we send would have to look different."""
    assert not OFFERED & (Flag.DIST_HDR_ATOM_CACHE | Flag.FRAGMENTS)


@pytest.mark.parametrize("theirs", [0xD07DF7FBD, 0x2D07DF7FBD], ids=["OTP 25", "OTP 28"])
def test_real_nodes_lack_nothing(theirs: int) -> None:
    """What the releases advertise, unknown bits included."""
    assert not missing(theirs)


def test_the_digest_flag_stands_for_the_others() -> None:
    """OTP 25 may leave out what the digest implies; 28 wants two more beside it."""
    digest = Flag.MANDATORY_25_DIGEST | Flag.UNLINK_ID | Flag.V4_NC
    assert not missing(digest)
    assert missing(Flag.MANDATORY_25_DIGEST) == Flag.UNLINK_ID | Flag.V4_NC


@pytest.mark.parametrize("flag", list(MANDATORY), ids=lambda flag: flag.name)
def test_each_mandatory_flag_is_missed(flag: Flag) -> None:
    """Each one alone, where the digest does not stand in for it."""
    assert missing(OFFERED & ~Flag.MANDATORY_25_DIGEST & ~flag) == flag
