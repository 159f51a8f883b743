"""The OTP application: built and tested by rebar3 and mix, against a node of this process.

It is built in a copy: the checkout stays clean.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erl_bridge.service import ErllamaNode
from erl_bridge.service.heads import FUNCTIONS
from erllama_py import api
from rebar_shim.regenerate import tables
from tests.live.erlnode import COOKIE, ErlNode, unique_name
from tests.models import smollm2_path
from tests.waiting import wait_for

SHIM = Path(__file__).resolve().parents[2] / "rebar_shim"
BEAMS = "_build/check/lib/erllama/ebin"
EUNIT_MODULES = "[erllama_tests, erllama_link_tests, erllama_example_tests, erllama_modules_tests]"
CONTEXT_KEY = b"llama.context_length"
SHORT_CONTEXT = 256

pytestmark = pytest.mark.model


def run(command: list[str], folder: Path, **env: str) -> str:
    """Run a tool to its end and return what it printed, which a failure shows."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


def found(tool: str) -> str:
    path = shutil.which(tool)
    assert path is not None, f"{tool} is not installed"
    return path


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application, compiled with all warnings as errors."""
    copy = tmp_path_factory.mktemp("otp") / "rebar_shim"
    shutil.copytree(SHIM, copy, ignore=shutil.ignore_patterns("_build", "deps"))
    run([found("rebar3"), "as", "check", "do", "compile,", "xref"], copy)
    return copy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as if trained on 256 tokens.

    The documented example sets no limit to its replies, and what ends them then is the
    context.
    """
    data = bytearray(Path(smollm2_path()).read_bytes())
    # A GGUF key is followed by the type of its value, 4 for a 32-bit number, and the value.
    at = data.index(CONTEXT_KEY) + len(CONTEXT_KEY)
    assert struct.unpack_from("<I", data, at) == (4,)
    struct.pack_into("<I", data, at + 4, SHORT_CONTEXT)
    path = tmp_path_factory.mktemp("models") / "short.gguf"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def node(model: Path) -> Iterator[ErllamaNode]:
    with ErllamaNode(unique_name("shim"), cookie=COOKIE, roots=[model.parent]) as served:
        yield served


@pytest.fixture(scope="module")
def env(node: ErllamaNode, model: Path) -> dict[str, str]:
    """What tells the tests of the application where the node is."""
    return {
        "ERLLAMA_TEST_NODE": node.name,
        "ERLLAMA_TEST_COOKIE": COOKIE,
        "ERLLAMA_TEST_MODEL": str(model),
    }


def test_rebar3_eunit(shim: Path, env: dict[str, str]) -> None:
    assert "All " in run([found("rebar3"), "eunit"], shim, **env)


def test_the_same_tests_on_otp_28(shim: Path, env: dict[str, str], erl28: str, erl25: str) -> None:
    """That runtime has no compiler and no EUnit: both are OTP 25's, and so are the beams."""
    run([found("rebar3"), "as", "test", "compile"], shim, **env)
    eunit = run([erl25, "-noshell", "-eval", "io:put_chars(code:lib_dir(eunit)), halt()."], shim)
    outcome = f"eunit:test({EUNIT_MODULES}, [verbose])"
    beams = shim / "_build/test/lib/erllama"
    tests = shim / "_build/tests28"
    tests.mkdir()
    sources = [str(path) for path in sorted((shim / "test").glob("*.erl"))]
    run([found("erlc"), "-o", str(tests), *sources], shim)
    printed = run(
        [
            *(erl28, "-noshell", "-pa", str(beams / "ebin"), str(tests), f"{eunit}/ebin"),
            *("-eval", f'"28" = erlang:system_info(otp_release), ok = {outcome}, halt().'),
        ],
        shim,
        **env,
    )
    assert "All " in printed


def test_a_rebar3_project(shim: Path, node: ErllamaNode, erl25: str, tmp_path: Path) -> None:
    """A project that has it as a checkout, built without a network, configured as it says."""
    files = {
        "rebar.config": "{deps, [erllama]}.",
        "src/my_app.app.src": """
            {application, my_app,
                [{description, ""}, {vsn, "1"}, {applications, [kernel, stdlib, erllama]}]}.
        """,
        "src/my_app.erl": "-module(my_app). -export([f/0]). f() -> erllama:counters().",
        "sys.config": f"[{{erllama, [{{node, '{node.name}'}}, {{cookie, '{COOKIE}'}}]}}].",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "_checkouts").mkdir()
    (tmp_path / "_checkouts" / "erllama").symlink_to(shim)
    run([found("rebar3"), "compile"], tmp_path)
    beams = [str(path) for path in (tmp_path / "_build/default").glob("*/*/ebin")]
    code = "{ok, _} = application:ensure_all_started(my_app), 20 = map_size(my_app:f()), halt()."
    run([erl25, "-noshell", "-config", "sys", "-pa", *beams, "-eval", code], tmp_path)


def test_a_mix_project(shim: Path, env: dict[str, str]) -> None:
    """A project of Elixir's that has the application as a dependency by path."""
    rebar3 = found("rebar3")
    printed = run(
        [found("mix"), "test"], shim / "test" / "elixir", MIX_ENV="test", MIX_REBAR3=rebar3, **env
    )
    assert " 0 failures" in printed


@pytest.mark.parametrize("release", ["erl25", "erl28"])
class TestOnBothReleases:
    """The beams that OTP 25 compiled, in a running VM of each release."""

    @pytest.fixture
    def peer(
        self, release: str, shim: Path, request: pytest.FixtureRequest
    ) -> Iterator[Callable[..., ErlNode]]:
        """Start a VM that has the application, configured for a node."""
        started: list[ErlNode] = []

        def start(node: str, **settings: str) -> ErlNode:
            erl = request.getfixturevalue(release)
            vm = ErlNode(erl, extra=("-pa", str(shim / BEAMS)))
            started.append(vm)
            vm.eval("application:load(erllama)")
            for key, value in {"node": f"'{node}'", **settings}.items():
                vm.eval(f"application:set_env(erllama, {key}, {value})")
            vm.eval("{ok, _} = application:ensure_all_started(erllama)")
            return vm

        yield start
        for vm in started:
            vm.stop()

    def test_the_exports_are_the_nodes_functions(
        self, peer: Callable[..., ErlNode], node: ErllamaNode
    ) -> None:
        vm = peer(node.name)
        exports = vm.eval(
            "lists:sort(erllama:module_info(exports)) -- [{module_info,0},{module_info,1}]"
        )
        expected = ",".join(f"{{{name},{arity}}}" for name, arity in sorted(FUNCTIONS))
        assert exports == f"[{expected}]"

    def test_so_are_those_of_its_siblings(
        self, peer: Callable[..., ErlNode], node: ErllamaNode
    ) -> None:
        vm = peer(node.name)
        for module, functions in tables().items():
            info = "[{module_info,0},{module_info,1}]"
            exports = vm.eval(f"lists:sort({module}:module_info(exports)) -- {info}")
            assert exports == "[" + ",".join(f"{{{name},{n}}}" for name, n in functions) + "]"

    def test_it_comes_back_with_the_node(self, peer: Callable[..., ErlNode]) -> None:
        name = unique_name("comes_back")
        first = ErllamaNode(name, cookie=COOKIE)
        first.start()
        try:
            vm = peer(first.name, required="true")
            assert vm.eval("erllama_link:status()") == f"{{up,{first.name}}}"
            vm.eval(
                '{ok, M} = erllama:load_model(<<"kept">>, #{stub_opts => #{step_delay_ms => 5}})'
            )
            vm.begin('catch erllama:complete(<<"kept">>, <<"a">>)')
            wait_for(lambda: api.pending_len("kept") == 0 and api.phase("kept") != "idle")
        finally:
            first.stop()
        nodedown = f"{{'EXIT',{{nodedown,{first.name}}}}}"
        assert vm.result() == nodedown
        assert vm.eval("catch erllama:models()") == nodedown
        assert vm.eval("erllama:cancel(make_ref())") == "ok"
        assert vm.eval("element(1, erllama_link:status())") in ("trying", "waiting")
        with ErllamaNode(name, cookie=COOKIE):
            wait_for(lambda: vm.eval("element(1, erllama_link:status())") == "up", seconds=15)
            assert vm.eval("length(erllama:models())") == "1"
            assert vm.eval('erllama:unload(<<"kept">>)') == "ok"

    def test_a_vm_without_a_name_gets_one(
        self, release: str, shim: Path, request: pytest.FixtureRequest
    ) -> None:
        """A long one here, since the node's is."""
        code = """
            {ok, _} = application:ensure_all_started(erllama),
            true = is_map(erllama:counters()),
            [_, Host] = string:split(atom_to_list(node()), "@"),
            true = lists:member($., Host),
            [] = nodes(),
            io:put_chars("counted"), halt().
        """
        with ErllamaNode(f"{unique_name('long')}@127.0.0.1", cookie=COOKIE) as served:
            printed = run(
                [
                    *(request.getfixturevalue(release), "-noshell", "-pa", str(shim / BEAMS)),
                    *("-erllama", "node", f"'{served.name}'", "-erllama", "cookie", COOKIE),
                    *("-eval", " ".join(code.split("\n"))),
                ],
                shim,
            )
        assert printed == "counted"
