"""Scale the values of a stream model's latent so that the same error in any of them is heard as much.

    python recipes/stream/balance.py runs/average --output runs/balanced recipe=stream-cpu \\
        data.train=../shared/data/train training.pitch_weight=100

Codes are chosen for the least squared error of the latent, whatever the decoder makes of it, and training does not
change that: its gradient passes the quantizer as if there was no error, so nothing tells the encoder to make large what
has to be exact. What an error in a value costs is the gradient of the losses (those that the settings weigh) with
respect to it: here each value is multiplied by the root of the mean square of its gradient over some batches. Encoder,
quantizer and decoder are changed alike, so that without quantization the sound is what it was.

Source: the sensitivity matrix of Gardner and Rao, "Theoretical analysis of the high-rate vector quantization of LPC
parameters", 1995; of that its diagonal, measured with the gradients of the losses.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from codec.cli import exit_code, positive
from codec.config import compose
from codec.errors import ConfigError
from codec.model import weights
from codec.model.codec import Codec
from codec.model.decoder import SpectralDecoder
from codec.model.encoder import SpectralEncoder
from codec.model.predictive import PredictiveSimVQ
from codec.training.trainer import Trainer


def main() -> None:
    """Measure, print the factors, and write the model in 16 bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name or directory")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of training, which say what is heard and how")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--batches", type=positive, default=100)
    arguments = parser.parse_intermixed_args()
    codec = weights.load(arguments.model)
    check(codec)
    with tempfile.TemporaryDirectory() as folder:
        settings = [*arguments.settings, f"training.init={arguments.model}", f"training.run={folder}"]
        factors = root_mean_square_gradients(Trainer(compose(settings)), arguments.batches)
    factors /= factors.log().mean().exp()
    print("factors", *(f"{factor:.3f}" for factor in factors.tolist()))
    scale_latent(codec, factors)
    weights.save(codec, arguments.output, dtype=torch.float16)


def check(codec: Codec) -> None:
    """Refuse what `scale_latent` does not know.

    Raises:
        ConfigError: the codec is not one of the stream family with a predictive quantizer.
    """
    kinds = (codec.encoder, SpectralEncoder), (codec.quantizer, PredictiveSimVQ), (codec.decoder, SpectralDecoder)
    if not all(isinstance(part, kind) for part, kind in kinds):
        raise ConfigError("only a stream model with a predictive quantizer can be balanced")


def root_mean_square_gradients(trainer: Trainer, num_batches: int) -> Tensor:
    """(D,), of the losses of a trainer with respect to each value of the quantized latent."""
    total = torch.zeros(trainer.codec.quantizer.codebook_dim)
    for step in range(num_batches):
        torch.manual_seed(trainer.settings.seed + step)
        batch = trainer.sampler.batch(step).to(trainer.device)
        with torch.no_grad():
            quantized = trainer.codec.quantizer(trainer.codec.encoder(batch.wav)).quantized
        (gradient,) = torch.autograd.grad(trainer.judge(quantized.requires_grad_(), batch).loss, quantized)
        total += gradient.square().mean(dim=(0, 2)).cpu()
    return (total / num_batches).sqrt()


@torch.no_grad()
def scale_latent(codec: Codec, factors: Tensor) -> None:
    """Multiply each value of the latent by its factor (D,), and change all that makes or reads it alike."""
    encoder, quantizer, decoder = codec.encoder, codec.quantizer, codec.decoder
    for layer in (encoder.output, quantizer.projection):  # with a bias or without
        for parameter in layer.parameters():
            parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
    quantizer.taps.copy_(quantizer.taps * factors / factors[:, None])
    for convolution in (decoder.input, decoder.pitch.input):
        convolution.weight.div_(factors[:, None])


if __name__ == "__main__":
    sys.exit(exit_code(main))
