"""How many cores this process may use."""

import math
import os
import sys
from pathlib import Path, PurePosixPath


def num_cores() -> int:
    """Those that this process is bound to, but no more than its container grants."""
    if sys.platform == "linux":
        return math.ceil(min(len(os.sched_getaffinity(0)), max(granted_cores(), 1)))
    return os.cpu_count() or 1


def granted_cores(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """The time of how many cores the control groups of Linux grant this process; infinity if they do not limit it.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (version 1).

    Args:
        own: names the groups of this process.
        groups: where they are mounted.
    """
    try:
        lines = os.fsdecode(own.read_bytes()).split("\n")  # the one byte that names in them cannot have
    except OSError:
        return math.inf
    granted = math.inf
    for line in filter(None, lines):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, where all are one
            top = groups
        elif "cpu" in controllers.split(","):
            top = groups / "cpu"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # A group gets no more than those around it. In a container only the outermost may be there.
        granted = min(granted, *(_limit(top / each) for each in (group, *group.parents)))
    return granted


def _limit(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such group, or `max`
        return math.inf


def keep_to_granted_cores() -> None:
    """Let libraries that are imported from now on start no more threads than there are cores for.

    They count the machine's cores. More threads than a container grants use its time up by waiting for each other.
    """
    if sys.platform == "linux" and (cores := num_cores()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
