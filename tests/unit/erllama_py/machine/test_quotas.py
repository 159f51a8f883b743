"""How much memory may be used, read from files shaped like the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erllama_py._machine.quotas import LIMIT, default_quota, usable_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def system(tmp_path):
    """Return a function that lays out /proc and /sys/fs/cgroup and reads them."""

    def read(groups: str, **limits: str) -> int:
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(groups)
        for name, text in limits.items():
            file = cgroups / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return usable_memory(proc, cgroups)

    return read


def test_the_tightest_group_of_version_2_counts(system):
    limits = {"a__memory_dot_max": "3000000", "a__b__memory_dot_max": "max"}
    assert system("0::/a/b\n", **limits) == 3000000


def test_memory_high_counts_too(system):
    limits = {"a__memory_dot_max": "3000000", "a__memory_dot_high": "2000000"}
    assert system("0::/a\n", **limits) == 2000000


def test_a_container_shows_its_own_group_at_the_top(system):
    assert system("0::/outside/name\n", memory_dot_max="5000000") == 5000000


def test_version_1_is_found_among_other_controllers(system):
    groups = "5:cpu,cpuacct:/x\n4:memory:/y\n"
    assert system(groups, memory__y__memory_dot_limit_in_bytes="4000000") == 4000000


def test_without_limits_it_is_the_machine(system):
    assert system("0::/\n") == PHYSICAL
    assert usable_memory(Path("/nowhere"), Path("/nowhere")) == PHYSICAL


def test_the_default_quota_is_a_quarter_and_no_more_than_the_limit():
    assert default_quota() == min(usable_memory() // 4, LIMIT)
