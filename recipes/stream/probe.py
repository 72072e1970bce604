"""What limits a stream model: its codes, its pitch, its codebook, or a band of the spectrum?

    python recipes/stream/probe.py --model stream --data ../shared/data/dev
    python recipes/stream/probe.py ... --paths 1 --delay 0    # with the nearest code of each frame

Scores round trips as they are, then with the latent unquantized, then with the pitch that a tracker hears in the
original in place of the one the decoder states, then with the magnitudes of the original in one band of frequencies.
Then tells how far the stated pitch is off, how well the codebook fits the latents, and how many codes come back when
the decoded sound is encoded again.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import codec
from codec import audio
from codec.cli import exit_code, positive, whole_number
from codec.errors import ConfigError
from codec.evaluation.metric import Pair, Settings
from codec.evaluation.pesq import WidebandPesq
from codec.evaluation.stoi import Stoi
from codec.training.counters import perplexity
from codec.training.pitch import track_pitch

BANDS = [(0, 500), (500, 1000), (1000, 2000), (2000, 4000), (4000, 8000)]  # Hz


def main() -> None:
    """Measure, file by file, and print means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stream", help="boxed name or directory of a stream model")
    parser.add_argument("--data", type=Path, required=True, help="folder of speech")
    parser.add_argument("--paths", type=positive, help="that the search follows, instead of the model's own number")
    parser.add_argument("--delay", type=whole_number, help="of the search, in frames, instead of the model's own")
    arguments = parser.parse_args()
    model = codec.load(arguments.model)
    if not model.is_streamable:
        raise ConfigError(f"{arguments.model}: only a stream model can be probed, it has a pitch")
    if arguments.paths is not None:
        model.quantizer.num_paths = arguments.paths
    if arguments.delay is not None:
        model.quantizer.delay = arguments.delay
    paths = audio.find_sounds(arguments.data)
    scores: dict[str, list[dict[str, float]]] = {"as it is": [], "unquantized": [], "tracked pitch": []}
    scores |= {name_of(band): [] for band in BANDS}
    latents, coded, codes, misses, errors, agreements = [], [], [], [], [], []
    with torch.inference_mode():
        for path in paths:
            wav = torch.from_numpy(audio.read(path, model.sample_rate)[0])[None]  # (1, 1, T)
            latent = model.encoder(wav)
            result = model.quantizer(latent)
            stated = model.decoder.pitch(result.quantized)
            tracked = track_pitch(wav, model.decoder.config, stated.shape[1])
            estimate = model.decode(result.codes)[..., : wav.shape[-1]]
            scores["as it is"].append(score(wav, estimate, model.sample_rate))
            scores["unquantized"].append(score(wav, model.decoder(latent), model.sample_rate))
            better = torch.where(tracked.is_voiced, tracked.log_pitch.to(stated), stated)
            scores["tracked pitch"].append(score(wav, decode_with(better, result.quantized, model), model.sample_rate))
            for band in BANDS:
                mixed = with_magnitudes(wav, estimate, *band, model.sample_rate)
                scores[name_of(band)].append(score(wav, mixed, model.sample_rate))
            latents.append(latent[0].T)
            coded.append(model.quantizer.remainder(latent, result.codes)[0].T)
            codes.append(result.codes[0])
            misses.append((latent - result.quantized)[0].T)
            errors.append((stated - tracked.log_pitch)[tracked.is_voiced].abs())
            agreements.append(float((model.encode(estimate) == result.codes).float().mean()))
    for name, rows in scores.items():
        print(f"{name:30s}", *(f"{key} {mean(row[key] for row in rows):.3f}" for key in rows[0]))
    error = torch.cat(errors)
    far = float((error > 0.1).float().mean())
    print(f"stated pitch: median error {float(error.median()):.1%}, over 10 % in {far:.0%} of voiced frames")
    print_fit(torch.cat(latents), torch.cat(coded), torch.cat(misses), model.quantizer.effective_codebook())
    counts = torch.bincount(torch.cat(codes), minlength=model.codebook_size)
    print(f"perplexity {perplexity(counts):.0f} of {int(counts.sum())} frames")
    print(f"re-encoding agreement {mean(agreements):.3f}")


def decode_with(log_pitch: Tensor, quantized: Tensor, model: codec.Codec) -> Tensor:
    """Decode (1, D, N) with a given pitch (1, N)."""
    handle = model.decoder.pitch.register_forward_hook(lambda *_: log_pitch)
    try:
        return model.decoder(quantized)
    finally:
        handle.remove()


def name_of(band: tuple[int, int]) -> str:
    """How its line begins."""
    return f"original from {band[0]} to {band[1]} Hz"


def with_magnitudes(reference: Tensor, estimate: Tensor, low: float, high: float, sample_rate: int) -> Tensor:
    """An estimate (1, 1, T) whose magnitudes between two frequencies are those of the reference, its phases its own."""
    n_fft = 1024
    window = torch.hann_window(n_fft)
    true, decoded = (
        torch.stft(wav[0], n_fft, n_fft // 4, window=window, return_complex=True) for wav in (reference, estimate)
    )
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    magnitudes = torch.where((hz >= low) & (hz < high), true.abs(), decoded.abs())
    mixed = torch.polar(magnitudes, decoded.angle())
    return torch.istft(mixed, n_fft, n_fft // 4, window=window, length=reference.shape[-1])[None]


def score(reference: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, float]:
    """PESQ and STOI of (1, 1, T) against at least as many samples."""
    estimate = estimate[..., : reference.shape[-1]].clamp(-1, 1)
    pair = Pair(reference[0, 0].numpy(), estimate[0, 0].numpy(), sample_rate)
    return WidebandPesq(Settings()).score(pair) | Stoi(Settings()).score(pair)


def print_fit(latents: Tensor, coded: Tensor, errors: Tensor, codebook: Tensor) -> None:
    """Spread along the latents' principal axes: of latents, what of them codes stand for, codes, and errors (n, D)."""
    axes = torch.linalg.eigh(torch.cov(latents.T)).eigenvectors.flip(1)
    for name, vectors in {"latents": latents, "coded": coded, "codebook": codebook, "error": errors}.items():
        print(f"{name:9s} std", *(f"{float(value):.2f}" for value in ((vectors - vectors.mean(0)) @ axes).std(0)))
    share = errors.square().sum() / (latents - latents.mean(0)).square().sum()
    print(f"error {float(share):.5f} of the variance")


if __name__ == "__main__":
    sys.exit(exit_code(main))
