"""Limits of control groups, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

from headrace.host import cgroup

GIB = 1 << 30


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def test_version_2_takes_the_tightest_limit_of_the_path(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc": "0::/a/b",
            "sys/a/cpu.max": "150000 100000",
            "sys/a/b/cpu.max": "max 100000",
            "sys/a/memory.max": str(4 * GIB),
            "sys/a/memory.current": str(3 * GIB),
            "sys/a/memory.stat": f"anon 1\ninactive_file {GIB}",
            "sys/a/b/memory.max": "max",
        },
    )
    assert cgroup.read(tmp_path / "proc", tmp_path / "sys") == cgroup.Limits(1.5, 4 * GIB, 2 * GIB)


def test_version_1(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc": "3:cpu,cpuacct:/x\n2:memory:/x\n1:name=systemd:/",
            "sys/cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
            "sys/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            "sys/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/memory/x/memory.limit_in_bytes": str(GIB),
            "sys/memory/x/memory.usage_in_bytes": str(GIB // 4),
            "sys/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    limits = cgroup.read(tmp_path / "proc", tmp_path / "sys")
    assert limits == cgroup.Limits(2.0, GIB, GIB - GIB // 4)


def test_a_container_whose_path_names_a_folder_of_the_host(tmp_path: Path) -> None:
    put(tmp_path, {"proc": "0::/system/docker/1234", "sys/cpu.max": "50000 100000"})
    assert cgroup.read(tmp_path / "proc", tmp_path / "sys").cpus == 0.5


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup.read(tmp_path / "proc", tmp_path / "sys") == cgroup.Limits()


def test_kills_for_lack_of_memory_are_counted_in_the_own_group(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc": "0::/a/b",
            "sys/a/memory.events": "low 0\noom 9\noom_kill 9",
            "sys/a/b/memory.events": "low 0\noom 3\noom_kill 2",
            "vmstat": "pgfault 1\noom_kill 40",
        },
    )
    assert oom_kills(tmp_path) == 2


def test_kills_in_version_1(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc": "4:memory:/a\n1:cpu:/",
            "sys/memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7",
        },
    )
    assert oom_kills(tmp_path) == 7


def test_without_a_group_the_machine_counts(tmp_path: Path) -> None:
    put(tmp_path, {"proc": "0::/", "sys/cpu.stat": "x 1", "vmstat": "pgfault 1\noom_kill 40"})
    assert oom_kills(tmp_path) == 40


def test_where_nobody_counts_there_is_no_count(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None


def oom_kills(folder: Path) -> int | None:
    return cgroup.oom_kills(folder / "proc", folder / "sys", folder / "vmstat")
