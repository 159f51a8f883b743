"""Metrics of a node that a real Erlang talks to, and of the command."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from erllama_py import metrics
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.waiting import wait_for


def scrape(url: str) -> dict[str, float]:
    """Return the samples without their labels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def llm(peer: ErlNode) -> Iterator[Serving]:
    serving = Serving(peer)
    with stub_model("m", stub_opts={"step_delay_ms": 5}):
        yield serving
    serving.stop()


def test_peers_and_their_streams(llm: Serving) -> None:
    with metrics.serve(port=0, node=llm.node) as server:
        alone = scrape(server.url)
        assert alone["erllama_node_peers"] == 0
        assert alone["erllama_node_connections_total"] == 0
        llm.eval("""begin
            {ok, R} = erllama:infer(<<"m">>, [1, 2], #{response_tokens => 100000}, self()),
            put(stream, R),
            receive {erllama_token, R, _} -> ok end
        end""")
        seen = scrape(server.url)
        assert seen["erllama_node_peers"] == 1
        assert seen["erllama_node_connections_total"] == 1
        assert seen["erllama_node_streams"] == 1
        assert seen["erllama_generated_tokens_total"] >= 1
        llm.eval("""begin
            R = get(stream),
            ok = erllama:cancel(R),
            receive {erllama_done, R, _} -> ok end,
            true = erlang:disconnect_node(N)
        end""")
        wait_for(lambda: scrape(server.url)["erllama_node_peers"] == 0)
        assert scrape(server.url)["erllama_node_connections_total"] == 1


def test_the_command_serves_them_and_says_where() -> None:
    name = f"metered_{secrets.token_hex(3)}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "erllama_py.cli", "node", "--name", name),
            *("--cookie", "c", "--metrics", "0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = re.fullmatch(r"metrics: (http://127\.0\.0\.1:\d+/metrics)\n", next(process.stdout))
        assert found
        assert scrape(found[1])["erllama_node_peers"] == 0
    finally:
        process.terminate()
        assert process.wait(timeout=10) == 0
        process.stdout.close()
