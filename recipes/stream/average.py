"""Average the weights of models that were trained from the same one.

    python recipes/stream/average.py runs/spectral/last runs/adversarial/last --shares 0.75 0.25 --output runs/average

Runs that part from one model end on the rim of the same basin, in directions of their own: their mean is often better
than any of them. Source: model soups (arXiv:2203.05482).
"""

import argparse
import sys
from pathlib import Path

import torch

from codec.cli import exit_code
from codec.errors import ConfigError
from codec.model import weights


def main() -> None:
    """Write the average as a model directory, in 16 bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name or directory")
    parser.add_argument("--shares", nargs="+", type=float, required=True, help="of each model; they add up to 1")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    if len(arguments.shares) != len(arguments.models) or not abs(sum(arguments.shares) - 1) <= 1e-6:
        raise ConfigError(f"--shares must be one for each model and add up to 1, got {arguments.shares}")
    codecs = [weights.load(model) for model in arguments.models]
    average = codecs[0]
    for model, codec in zip(arguments.models, codecs, strict=True):
        if codec.config != average.config:
            raise ConfigError(f"{model} has another configuration than {arguments.models[0]}")
    states = [codec.state_dict() for codec in codecs]
    mean = {
        name: sum(share * state[name] for share, state in zip(arguments.shares, states, strict=True))
        for name in states[0]
    }
    average.load_state_dict(mean)
    weights.save(average, arguments.output, dtype=torch.float16)


if __name__ == "__main__":
    sys.exit(exit_code(main))
