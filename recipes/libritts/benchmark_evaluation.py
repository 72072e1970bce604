"""What a second core is worth to `codec evaluate`, and whether its memory grows with the number of utterances.

    python recipes/libritts/benchmark_evaluation.py FOLDER [--pairs 1000] [--seconds 3] [--jobs 2]

Cuts pairs out of the sound files of FOLDER, the estimates with noise, and scores them with PESQ, STOI and mel distance
from the command line: all of them with one process and with more, and a tenth of them for the memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from codec import audio
from codec.cli import exit_code, positive
from codec.cores import num_cores
from codec.errors import AudioError

SAMPLE_RATE = 24000
COMMAND = [sys.executable, "-m", "codec", "evaluate", "--metrics", "pesq_wb,stoi,mel", "--quiet", "--device", "cpu"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=positive, default=1000)
    parser.add_argument("--seconds", type=positive, default=3, help="of each utterance")
    parser.add_argument("--jobs", type=positive, default=num_cores())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pairs(arguments, folder)
        few = measure(folder, 1, max(arguments.pairs // 10, 1))
        one, more = (measure(folder, jobs, arguments.pairs) for jobs in (1, arguments.jobs))
    print(f"{arguments.pairs} utterances of {arguments.seconds} s: 1 process {one[0]:.1f} s, ", end="")
    print(f"{arguments.jobs} processes {more[0]:.1f} s, {one[0] / more[0]:.2f} times as fast")
    print(f"peak memory of the largest process: {few[1]:.0f} MiB for a tenth of them, {one[1]:.0f} MiB for all")


def make_pairs(arguments: argparse.Namespace, folder: Path) -> None:
    """`folder/references` and `folder/estimates`, cut out of the files in turn until there are enough."""
    paths = audio.find_sounds(arguments.folder)
    length, count = arguments.seconds * SAMPLE_RATE, 0
    rng = np.random.default_rng(0)
    for path in paths:
        sound = audio.read(path, SAMPLE_RATE)[0][0]
        for start in range(0, len(sound) - length + 1, length):
            reference = sound[start : start + length]
            estimate = reference + 0.01 * rng.standard_normal(length, np.float32)
            for kind, wav in (("references", reference), ("estimates", estimate)):
                (folder / kind).mkdir(exist_ok=True)
                audio.write(folder / kind / f"{count:05d}.wav", wav.clip(-1, 1), SAMPLE_RATE)
            count += 1
            if count == arguments.pairs:
                return
    raise AudioError(f"{arguments.folder}: gives {count} utterances of {arguments.seconds} s only")


def measure(folder: Path, jobs: int, limit: int) -> tuple[float, float]:
    """Seconds from start to end, and MiB of the largest process."""
    output = tempfile.mkdtemp(dir=folder)  # a new one: an evaluation would go on with what it finds
    command = [*COMMAND, str(folder / "references"), str(folder / "estimates"), "--output", output]
    start = time.perf_counter()
    done = subprocess.run([*command, "--jobs", str(jobs), "--limit", str(limit)])
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(exit_code(main))
