"""Latents of real speech to quantize: from a folder of sound files to (N, D), the same for all experiments.

Frames are log-mel spectra, 75 a second, or a multiple of that where more are needed. A small autoencoder, trained here
for seconds, makes latents of them: three frames a 75th of a second apart -> D numbers -> the same frames. With a prior
it is variational, and the latents spread over all of their dimensions like a Gaussian; without, they lie in a few
directions of the space, as those of young codecs do.
"""

import argparse
import hashlib
import itertools
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec import audio
from codec.cli import positive
from codec.errors import AudioError, ConfigError
from codec.evaluation.spectra import mel_filters

SAMPLE_RATE, HOP, N_FFT, BANDS = 24000, 320, 1280, 80
CONTEXT = 3  # frames, HOP samples apart
FEWEST_FRAMES = 64
BATCH = 1024
NOISE = 0.5  # variance of the frames about what is made of their latents, in the variational autoencoder
DEFAULT_FOLDER = Path("../shared/data/train")


@dataclass
class SpeechLatents:
    """Latents and the way back."""

    latents: Tensor  # (N, D), in random order, centred
    frames: Tensor  # (N, BANDS), what each was made of: the middle frame, normalised per band
    decoder: nn.Module  # (n, D) -> (n, CONTEXT * BANDS)

    def frame_error(self, quantized: Tensor, first: int) -> float:
        """Squared error of the frames made of quantized latents (n, D), those from `first` on; 1 is their variance."""
        middle = self.decoder(quantized)[:, BANDS : 2 * BANDS]
        return F.mse_loss(middle, self.frames[first : first + len(quantized)]).item()


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--data, the folder of speech, how many frames to make of it, and how long the autoencoder learns."""
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help=f"any folder of speech ({DEFAULT_FOLDER})")
    parser.add_argument(
        "--frame-rate", type=int, default=75, help="frames a second, a multiple of 75 that divides 24000"
    )
    parser.add_argument("--latent-steps", type=positive, default=500, help="of the autoencoder")


def load_frames(options: argparse.Namespace) -> Tensor:
    """All frames of the sound files below a folder, normalised per band: (F, BANDS) float32.

    Kept in the system's folder for temporary files, for the next experiment.
    """
    folder, frame_rate = options.data, options.frame_rate
    paths = audio.find_sounds(folder)
    listing = "\n".join(f"{path.resolve()} {path.stat().st_size}" for path in paths)
    if frame_rate < 1 or HOP * frame_rate % SAMPLE_RATE or SAMPLE_RATE % frame_rate:
        raise ConfigError(f"--frame-rate must be a multiple of {SAMPLE_RATE // HOP} that divides {SAMPLE_RATE}")
    listing += f"\n{frame_rate}"
    kept = Path(tempfile.gettempdir()) / f"codec-simvq-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npy"
    if not kept.is_file():
        with ProcessPoolExecutor() as pool:
            frames = np.concatenate(list(pool.map(_log_mel, paths, itertools.repeat(frame_rate), chunksize=16)))
        partial = kept.with_suffix(".partial.npy")
        np.save(partial, frames)
        partial.replace(kept)
    frames = torch.from_numpy(np.load(kept)).float()
    if len(frames) < FEWEST_FRAMES:
        raise AudioError(f"{folder}: has {len(frames)} frames of speech, at least {FEWEST_FRAMES} are needed")
    print(f"{folder}: {len(paths)} files, {len(frames)} frames, {len(frames) / frame_rate / 3600:.2f} h", flush=True)
    return (frames - frames.mean(0)) / frames.std(0)


def _log_mel(path: Path, frame_rate: int) -> np.ndarray:
    """(F, BANDS) float16."""
    torch.set_num_threads(1)
    wav = F.pad(torch.from_numpy(audio.read(path, SAMPLE_RATE)[0][0]), (0, N_FFT))
    spectra = torch.fft.rfft(wav.unfold(0, N_FFT, SAMPLE_RATE // frame_rate) * torch.hann_window(N_FFT)).abs()
    return (spectra @ torch.tensor(mel_filters(SAMPLE_RATE, N_FFT, BANDS))).clamp(min=1e-3).log().half().numpy()


def make_latents(frames: Tensor, options: argparse.Namespace, seed: int, *, has_prior: bool) -> SpeechLatents:
    """Train the autoencoder on frames (F, BANDS), and encode all of them in `options.dim` dimensions."""
    dim, num_steps, distance = options.dim, options.latent_steps, HOP * options.frame_rate // SAMPLE_RATE
    torch.manual_seed(seed)
    encoder, decoder = _network(CONTEXT * BANDS, 2 * dim), _network(dim, CONTEXT * BANDS)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=num_steps)
    for _ in range(num_steps):
        windows = _windows(frames, torch.randint(len(frames), (BATCH,)), distance)
        latent, mean, log_variance = _encode(encoder, windows, has_prior)
        loss = (decoder(latent) - windows).square().sum(1).mean()
        if has_prior:
            divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
            loss = loss / (2 * NOISE) + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if has_prior:
        print(f"latents of {dim} dimensions that carry {divergence.item() / np.log(2):.1f} bits a frame", flush=True)
    order = torch.randperm(len(frames))
    with torch.no_grad():
        latents = torch.cat(
            [_encode(encoder, _windows(frames, part, distance), has_prior)[0] for part in order.split(8192)]
        )
    return SpeechLatents(latents - latents.mean(0), frames[order], _Shifted(decoder, latents.mean(0)).eval())


def _encode(encoder: nn.Module, windows: Tensor, has_prior: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Latent (n, D), its mean, its log-variance; without prior it is the mean."""
    mean, log_variance = encoder(windows).chunk(2, dim=1)
    log_variance = log_variance.clamp(-10, 5)
    sample = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    return sample if has_prior else mean, mean, log_variance


class _Shifted(nn.Module):
    """A decoder of latents that were centred."""

    def __init__(self, decoder: nn.Module, offset: Tensor):
        super().__init__()
        self.decoder, self.offset = decoder, offset

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(latent + self.offset)


def _windows(frames: Tensor, places: Tensor, distance: int) -> Tensor:
    """Each frame with its neighbours at a distance: (n, CONTEXT * BANDS)."""
    last = len(frames) - 1
    return torch.cat([frames[(places + shift).clamp(0, last)] for shift in (-distance, 0, distance)], dim=1)


def _network(num_inputs: int, num_outputs: int, width: int = 256) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_outputs)
    )
