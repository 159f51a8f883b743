"""The OTP application's modules are those that the node's tables ask for."""

from __future__ import annotations

from erl_bridge.service.servers import SERVERS
from rebar_shim.regenerate import SOURCES, sources, tables


def test_the_files_are_as_they_would_be_written_now() -> None:
    """If this fails: python rebar_shim/regenerate.py."""
    written = dict(sources())
    assert written == {name: (SOURCES / name).read_text() for name in written}
    marked = {path.name for path in SOURCES.glob("*.erl") if "regenerate.py" in path.read_text()}
    assert marked == set(written)


def test_every_server_of_the_node_has_its_module() -> None:
    assert set(SERVERS) <= set(tables())
    assert "erllama" not in tables()
