"""The allocator setting: a repeated step does not fault its memory in again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from codec.training.memory import keep_freed_memory
if not keep_freed_memory():
    sys.exit(3)
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(5 * 2**20) for _ in range(8)]  # 20 MiB each
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_repeated_step_faults_in_almost_no_pages():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if result.returncode == 3:
        pytest.skip("needs glibc")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 500  # the blocks are 40,960 pages of 4 KiB
