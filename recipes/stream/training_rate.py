"""How fast a run was, and what share of its processor's rate it used.

    python recipes/stream/training_rate.py RUN --data ../shared/data/dev --peak 989e12

Steps a second are the median of what the run has logged. The operations of a step are counted here, on the CPU, from a
step of the run's settings with two windows: those of matrix products and convolutions, forwards and backwards, which
are what a processor's rate is stated for.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from torch.utils.flop_counter import FlopCounterMode

from codec.cli import exit_code, not_negative
from codec.config import restore
from codec.errors import ConfigError
from codec.training.doctor import read_run
from codec.training.trainer import Trainer

NUM_WINDOWS = 2


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, help="any folder of speech")
    parser.add_argument("--peak", type=not_negative, help="operations a second that the processor is stated to do")
    arguments = parser.parse_args()
    record = read_run(arguments.run)
    if not record.config:
        raise ConfigError(f"{arguments.run}: its settings, config.json, are missing or damaged")
    operations = count_operations(record.config, arguments.data)
    if not (logged := record.values("steps_per_second")):
        raise ConfigError(f"{arguments.run}: has not logged how fast it is")
    steps, batch_size = median(logged), record.setting("data.batch_size")
    seconds = steps * batch_size * record.setting("data.window_seconds")
    rate = steps * operations * batch_size
    print(f"{steps:.1f} steps/s, {seconds:.0f} s of audio a second, {rate / 1e12:.1f} T operations/s")
    if arguments.peak:
        print(f"{100 * rate / arguments.peak:.1f} % of {arguments.peak / 1e12:.0f} T operations/s")


def count_operations(settings: dict, data: Path) -> float:
    """Operations of a step for each of its windows; a multiplication and an addition are two."""
    with tempfile.TemporaryDirectory() as folder:
        windows = {"train": str(data), "validation": "", "cache": folder, "batch_size": NUM_WINDOWS, "workers": 0}
        training = {"init": "", "freeze": [], "quantizer_start": -1, "device": "cpu", "record": False, "run": folder}
        trainer = Trainer(restore(settings, {"data": windows, "training": training}))
        batch = trainer.sampler.batch(0)
        with FlopCounterMode(display=False) as counter:
            trainer.train_step(batch)
    return counter.get_total_flops() / NUM_WINDOWS


if __name__ == "__main__":
    sys.exit(exit_code(main))
