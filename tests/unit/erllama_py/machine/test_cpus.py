"""Cores by affinity and quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erllama_py._machine import cpus
from erllama_py._machine.cpus import default_threads, usable_cores


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """Return a function that lays out control groups on a machine of 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def read(groups: str, files: dict[str, str]) -> int:
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(groups)
        for name, content in files.items():
            file = cgroups / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n")
        return usable_cores(proc, cgroups)

    return read


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        ("0::/\n", {"cpu.max": "100 0"}, 16),
        # A service with CPUQuota=: the limit is its own group's, or one's above.
        ("0::/app.slice/one.service\n", {"app.slice/one.service/cpu.max": "300000 100000"}, 3),
        (
            "0::/a/b\n",
            {"a/cpu.max": "400000 100000", "a/b/cpu.max": "800000 100000"},
            4,
        ),
        # In a container the path is the host's, and the mount the container's.
        ("0::/docker/abc\n", {"cpu.max": "100000 100000"}, 1),
        (
            "3:cpu,cpuacct:/box\n",
            {"cpu/box/cpu.cfs_quota_us": "150000", "cpu/box/cpu.cfs_period_us": "50000"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "50000"}, 16),
        ("2:cpuset:/x\n", {"cpu.max": "100000 100000"}, 16),
    ],
)
def test_the_tightest_quota_counts(cores, groups, files, expected) -> None:
    assert cores(groups, files) == expected


def test_without_control_groups_affinity_decides(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores(tmp_path, tmp_path) == 2


@pytest.mark.parametrize(("available", "expected"), [(1, (1, 1)), (2, (1, 2)), (8, (7, 8))])
def test_decoding_leaves_a_core(monkeypatch, available, expected) -> None:
    monkeypatch.setattr(cpus, "usable_cores", lambda: available)
    assert default_threads() == expected
