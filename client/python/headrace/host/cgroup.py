"""CPU and memory limits of the control group this process is in, version 2 or 1.

Reads files only. A limit holds if any ancestor sets it, so the tightest of the path counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # version 1 writes about 2**63 for "no limit"


@dataclass(frozen=True)
class Limits:
    """None where nothing limits it. Memory in bytes."""

    cpus: float | None = None
    memory_total: int | None = None
    memory_available: int | None = None


def read(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Limits:
    """The limits of this process; none where there are no control groups."""
    cpus: list[float] = []
    totals: list[int] = []
    available: list[int] = []
    for folder in _folders(proc, root):
        quota = _cpu_quota(folder)
        if quota is not None:
            cpus.append(quota)
        memory = _memory(folder)
        if memory is not None:
            totals.append(memory[0])
            available.append(memory[1])
    return Limits(
        cpus=min(cpus, default=None),
        memory_total=min(totals, default=None),
        memory_available=min(available, default=None),
    )


def oom_kills(
    proc: Path = Path("/proc/self/cgroup"),
    root: Path = Path("/sys/fs/cgroup"),
    vmstat: Path = Path("/proc/vmstat"),
) -> int | None:
    """How many processes the kernel has killed for lack of memory in this process's group, which
    its children are in too; on the whole machine where the group does not count them.

    None where nobody counts them.
    """
    for folder in _folders(proc, root):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _fields(folder / name).get("oom_kill")) is not None:
                return int(count)
    count = _fields(vmstat).get("oom_kill")
    return None if count is None else int(count)


def _folders(proc: Path, root: Path) -> list[Path]:
    """Each group of this process and its ancestors, as folders.

    Inside a container the path may name a folder of the host that is not visible; its ancestors,
    down to the mount point, are then what there is.
    """
    folders: list[Path] = []
    for line in _text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / controllers if controllers else root
        group = PurePosixPath(path.lstrip("/"))
        folders += [base / part for part in (group, *group.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us")
        period = _text(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():  # "max" and -1 mean no limit
        return None
    return int(quota) / int(period)


def _memory(folder: Path) -> tuple[int, int] | None:
    limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    if not limit.isdigit() or int(limit) >= _UNLIMITED:
        return None
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    # Inactive page cache counts as used but is given back on demand.
    used_bytes = (int(used) if used.isdigit() else 0) - _inactive_file(folder)
    return int(limit), max(0, int(limit) - max(0, used_bytes))


def _inactive_file(folder: Path) -> int:
    fields = _fields(folder / "memory.stat")
    return int(fields.get("total_inactive_file", fields.get("inactive_file", "0")))


def _fields(file: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _text(file).splitlines() if " " in line)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
