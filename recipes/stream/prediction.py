"""How much of a code the codes before it tell: quantization error against the memory of `PredictiveSimVQ`.

    python recipes/stream/prediction.py --train ../shared/data/train --test ../shared/data/dev

Quantizers of several memories learn on latents that the encoder of a stream model makes of some files of `--train`,
each from what `match` gives, with the same steps: by the taps alone, and with the network that hears past codes; memory
0 is SimVQ. Then they quantize the latents of `--test`. The encoder stays as it is, so this shows what prediction gives
before the encoder makes use of it.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

import codec
from codec import CodecError, SimVQ, audio
from codec.cli import exit_code, positive, whole_number
from codec.model.predictive import PredictiveSimVQ
from codec.training.counters import perplexity

WINDOW = 150  # frames that quantizers learn on at once
BATCH = 16  # windows


def main() -> None:
    """Learn and measure, one line for each memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stream", help="boxed name or directory of a stream model")
    parser.add_argument("--train", type=Path, required=True, help="folder of speech")
    parser.add_argument("--test", type=Path, required=True, help="folder of other speech")
    parser.add_argument("--files", type=positive, default=400, help="drawn from --train")
    parser.add_argument("--memories", type=whole_number, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--steps", type=positive, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = codec.load(options.model)
    files = audio.find_sounds(options.train)
    random.Random(options.seed).shuffle(files)
    train, test = windows(files[: options.files], model), windows(audio.find_sounds(options.test), model)
    print(f"{train.shape[0] * WINDOW} frames to learn on, {test.shape[0] * WINDOW} to measure")
    for memory in options.memories:
        for is_heard in (False, True) if memory else (False,):
            torch.manual_seed(options.seed)
            quantizer = learn(memory, is_heard, model, train, options.steps)
            with torch.no_grad():
                output = quantizer.eval()(test)
            error = (output.quantized - test).square().mean() / test.var(dim=(0, 2), keepdim=True).mean()
            evenness = perplexity(torch.bincount(output.codes.flatten()))
            name = f"memory {memory}{', heard' if is_heard else ''}"
            print(f"{name}: error {error:.4f} of the latents' variance, perplexity {evenness:.0f}", flush=True)


@torch.no_grad()
def windows(paths: list[Path], model: codec.Codec) -> Tensor:
    """Latents of all whole windows of the files: (n, D, WINDOW)."""
    parts = []
    for path in paths:
        wav = torch.from_numpy(audio.read(path, model.sample_rate)[0])[None]
        latent = model.encoder(wav)[0]
        parts += [part for part in latent.split(WINDOW, dim=1) if part.shape[1] == WINDOW]
    if not parts:
        raise CodecError(f"no file has {WINDOW} frames; name a folder of longer ones")
    return torch.stack(parts)


def learn(memory: int, is_heard: bool, model: codec.Codec, train: Tensor, num_steps: int) -> SimVQ:
    """A quantizer that has learned with Adam, at 0.05 for the codes and 3e-3 for the rest, both falling to 0."""
    size, dim = model.codebook_size, model.quantizer.codebook_dim
    quantizer = PredictiveSimVQ(size, dim, memory=memory) if memory else SimVQ(size, dim)
    quantizer.match(train)
    if isinstance(quantizer, PredictiveSimVQ):
        quantizer.expect.requires_grad_(is_heard)
    codes = quantizer.code_parameters()
    others = [p for p in quantizer.parameters() if p.requires_grad and not any(p is code for code in codes)]
    optimizer = torch.optim.Adam([{"params": codes, "lr": 0.05}, {"params": others, "lr": 3e-3}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        loss = quantizer(train[torch.randint(len(train), (BATCH,))]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return quantizer


if __name__ == "__main__":
    sys.exit(exit_code(main))
