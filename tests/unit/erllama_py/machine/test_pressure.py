"""Sources of memory pressure, read from files and tools shaped like the system's."""

from __future__ import annotations

import stat
import types
from pathlib import Path

import psutil
import pytest

from erllama_py._machine.pressure import (
    NOTHING,
    add_sampler,
    available_sources,
    remove_sampler,
    sample,
    source_term,
    system_memory,
)
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

MIB = 1 << 20
MACHINE = psutil.virtual_memory().total


@pytest.fixture
def system(tmp_path):
    """Return a function that lays out /proc and /sys/fs/cgroup and reads them."""

    def read(groups: str, files: dict[str, object]) -> tuple[int, int]:
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(groups)
        for name, content in files.items():
            file = cgroups / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return system_memory(proc, cgroups)

    return read


class TestSystem:
    def test_the_machine_where_no_group_is_limited(self, system) -> None:
        used, total = system("0::/\n", {"memory.max": "max", "memory.current": MIB})
        assert total == MACHINE
        assert 0 < used < total

    def test_the_machine_where_there_are_no_groups(self, tmp_path: Path) -> None:
        assert system_memory(tmp_path / "no", tmp_path / "no")[1] == MACHINE

    def test_the_group_that_is_fuller_less_what_the_system_would_drop(self, system) -> None:
        reading = system(
            "0::/box\n",
            {
                "box/memory.max": 100 * MIB,
                "box/memory.high": "max",
                "box/memory.current": 99 * MIB,
                "box/memory.stat": f"anon 5\ninactive_file {2 * MIB}\nactive_file 7",
            },
        )
        assert reading == (97 * MIB, 100 * MIB)

    def test_the_tighter_of_a_groups_two_limits(self, system) -> None:
        files = {"box/memory.max": 100, "box/memory.high": 60, "box/memory.current": 60}
        assert system("0::/box\n", files) == (60, 60)

    def test_a_group_above_ours_that_is_fuller_than_ours(self, system) -> None:
        files = {
            "a/memory.max": 1000,
            "a/memory.current": 999,
            "a/b/memory.max": 500,
            "a/b/memory.current": 490,
        }
        assert system("0::/a/b\n", files) == (999, 1000)

    def test_an_empty_group_does_not_hide_a_fuller_machine(self, system) -> None:
        files = {"box/memory.max": MACHINE - 1, "box/memory.current": 0}
        assert system("0::/box\n", files)[1] == MACHINE

    def test_version_1(self, system) -> None:
        reading = system(
            "9:name=systemd:/\n4:memory,cpu:/box\n",
            {
                "memory/box/memory.limit_in_bytes": 200,
                "memory/box/memory.usage_in_bytes": 190,
                "memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 10",
                "memory/memory.limit_in_bytes": (1 << 63) - 4096,
                "memory/memory.usage_in_bytes": 1 << 62,
            },
        )
        assert reading == (180, 200)

    def test_a_container_that_sees_its_own_group_at_the_top(self, system) -> None:
        files = {"memory.max": 50, "memory.current": 50}
        assert system("0::/outside/of/it\n", files) == (50, 50)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts an nvidia-smi in place of any other."""

    def install(script: str) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", str(tmp_path))
    return install


class TestNvidiaSmi:
    def test_gpus_are_summed(self, tool) -> None:
        tool("echo '100, 1000'; echo ' 20,2000 '")
        assert sample("nvidia_smi") == (120 * MIB, 3000 * MIB)

    def test_it_is_asked_for_numbers(self, tool) -> None:
        tool('[ "$*" = "--query-gpu=memory.used,memory.total --format=csv,noheader,nounits" ]'
             " && echo 1, 2")  # fmt: skip
        assert sample("nvidia_smi") == (MIB, 2 * MIB)

    def test_what_is_no_number_is_left_out(self, tool) -> None:
        tool("echo '[N/A], [N/A]'; echo; echo '1, 2, 3'; echo '5, 10'")
        assert sample("nvidia_smi") == (5 * MIB, 10 * MIB)

    @pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo '0, 0'"])
    def test_without_gpus_there_is_no_pressure(self, tool, script: str) -> None:
        tool(script)
        assert sample("nvidia_smi") == NOTHING

    def test_without_the_tool_there_is_no_pressure(self, tool) -> None:
        assert sample("nvidia_smi") == NOTHING

    def test_a_tool_that_hangs_is_ended(self, tool, monkeypatch: pytest.MonkeyPatch) -> None:
        tool("exec /bin/sleep 600")
        monkeypatch.setattr("erllama_py._machine.pressure._TOOL_SECONDS", 0.2)
        assert sample("nvidia_smi") == NOTHING


def reading() -> tuple[int, int]:
    return 3, 4


class Meter:
    def sample(self) -> tuple[int, int]:
        return 5, 6


GAUGE = types.ModuleType("gauge")
GAUGE.sample = reading


class TestSamplers:
    def test_the_names_that_are_always_there(self) -> None:
        assert available_sources() == ["noop", "system", "nvidia_smi"]
        assert all(type(name) is Atom for name in available_sources())

    def test_no_pressure(self) -> None:
        assert sample("noop") == (0, 1)

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            (reading, (3, 4)),
            (("module", reading), (3, 4)),
            (["module", reading], (3, 4)),
            (Meter(), (5, 6)),
            (("module", types.SimpleNamespace(sample=reading)), (3, 4)),
            (lambda: [1.5, 2], (1, 2)),
        ],
    )
    def test_callables_and_what_has_one(self, source, expected) -> None:
        assert sample(source) == expected

    def test_by_name(self) -> None:
        add_sampler("meter", Meter())
        try:
            assert sample((Atom("module"), Atom("meter"))) == (5, 6)
        finally:
            remove_sampler("meter")
        with pytest.raises(BadCall) as caught:
            sample(("module", "meter"))
        assert caught.value.reason == "undef"

    def test_a_module_is_not_found_by_its_name(self) -> None:
        """Else a peer could have anything imported and called."""
        with pytest.raises(BadCall, match="no sampler"):
            sample(("module", "random"))

    @pytest.mark.parametrize("source", ["gpu", b"noop", 5, None, ("module", 5), ("module",), {}])
    def test_what_is_no_source_has_no_clause(self, source) -> None:
        with pytest.raises(BadCall) as caught:
            sample(source)
        assert caught.value.reason == "function_clause"

    @pytest.mark.parametrize(
        "value",
        [None, 5, (1,), (1, 2, 3), ("1", 2), (-1, 2), (True, 2), (float("nan"), 1), (1, 1 << 64)],
    )
    def test_a_reading_is_two_amounts(self, value) -> None:
        with pytest.raises(ErllamaError, match="a sampler returned"):
            sample(lambda: value)

    def test_a_failure_is_the_samplers_own(self) -> None:
        with pytest.raises(ZeroDivisionError):
            sample(lambda: (1 // 0, 1))


@pytest.mark.parametrize(
    ("source", "term"),
    [
        ("system", "system"),
        (("module", "meter"), ("module", "meter")),
        (reading, ("module", f"{__name__}.reading")),
        (("module", reading), ("module", f"{__name__}.reading")),
        (Meter(), ("module", f"{__name__}.Meter")),
        (("module", GAUGE), ("module", "gauge")),
        (5, 5),
    ],
)
def test_a_source_has_a_term(source, term) -> None:
    assert source_term(source) == term


def test_the_names_in_a_term_are_atoms() -> None:
    assert type(source_term("noop")) is Atom
    assert [type(part) for part in source_term(reading)] == [Atom, Atom]
    assert len(source_term(type("X" * 300, (Meter,), {})())[1]) == 255
