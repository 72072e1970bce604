"""Cores that a container grants: files as Linux documents them, and a real control group where one can be made."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codec.cores import granted_cores, num_cores

HYBRID = "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/docker/1\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),  # the outermost group of a machine
        ("0::/a.slice/b\n", {"a.slice/cpu.max": "400000 100000\n", "a.slice/b/cpu.max": "max 100000\n"}, 4),
        ("0::/a/b\n", {"cpu.max": "80000 20000\n", "a/cpu.max": "10000 20000\n", "a/b/cpu.max": "40000 20000\n"}, 0.5),
        ("0::/kubepods/1\n", {"cpu.max": "200000 100000\n"}, 2),  # the group's own name is not seen from inside
        (HYBRID, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (HYBRID, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        (HYBRID, {"cpu/docker/1/cpu.cfs_quota_us": "50000\n", "cpu/docker/1/cpu.cfs_period_us": "25000\n"}, 2),
        ("4:cpuset:/\n3:cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, math.inf),
        ("0::/caf\udce9\r/1\n", {"caf\udce9\r/cpu.max": "100000 100000\n"}, 1),  # names are any bytes
        ("", {"cpu.max": "150000 100000\n"}, math.inf),
        (None, {"cpu.max": "150000 100000\n"}, math.inf),
    ],
)
def test_the_tightest_group_grants_cores(tmp_path: Path, own: str | None, files: dict[str, str], cores: float):
    if own is not None:
        (tmp_path / "own").write_bytes(os.fsencode(own))
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert granted_cores(tmp_path / "own", tmp_path / "groups") == cores


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """The list of a group's processes, which get half the time of a core."""
    groups = Path("/sys/fs/cgroup")
    is_first = (groups / "cpu").is_dir()
    group = groups / ("cpu" if is_first else "") / f"codec-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if is_first:
            (group / "cpu.cfs_quota_us").write_text("50000")
            (group / "cpu.cfs_period_us").write_text("100000")
        else:
            (group / "cpu.max").write_text("50000 100000")
        yield group / "cgroup.procs"
    except OSError as error:
        pytest.skip(f"a control group cannot be limited here: {error}")
    finally:
        group.rmdir()


@pytest.mark.skipif(num_cores() < 2, reason="there is one core only")
@pytest.mark.parametrize(("said", "threads"), [(None, 1), ("2", 2)])
def test_a_command_starts_no_more_threads_than_cores_are_granted(half_a_core: Path, said: str | None, threads: int):
    code = f"""
import os, pathlib
pathlib.Path({str(half_a_core)!r}).write_text(str(os.getpid()))
from codec.cli import main
from codec.cores import num_cores
try:
    main(["--version"])
except SystemExit:
    import torch
    print(num_cores(), torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": said} if said else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[1:] == ["1 " + str(threads)], done.stderr
