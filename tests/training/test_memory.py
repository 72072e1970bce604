"""The allocator setting: a training loop's large blocks are not faulted in again and again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from codec.training.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def step():
    blocks = [torch.zeros(5 * 2**20) for _ in range(8)]  # 20 MiB each
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
    if result.returncode == 3:
        pytest.skip("needs glibc")
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_a_repeated_step_faults_in_almost_no_pages():
    assert page_faults("keep") < 200  # of 40,960 pages of 4 KiB
    assert page_faults("default") > 10_000
