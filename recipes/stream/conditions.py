"""How a model fares with what it was not trained on: the same speech, as recorded and spoilt in several ways.

    python recipes/stream/conditions.py ../shared/data/dev [--model stream]

Each condition is made from all files of the folder, with the same random numbers every time, and not as training
makes its own (codec/training/degradation.py). What is decoded is compared with the spoilt speech: a codec keeps the
telephone and the noise. Then what should be silent is measured: silence alone, and pauses before and behind each file.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import scipy.signal
import soxr
import torch

import codec
from codec import audio
from codec.cli import exit_code
from codec.errors import ConfigError
from codec.evaluation.mel import MelDistance
from codec.evaluation.metric import Pair, Settings
from codec.evaluation.pesq import WidebandPesq
from codec.evaluation.stoi import Stoi
from codec.model.codec import Codec

RATE = 24000
PAUSE = RATE // 2  # samples
GUARD = RATE // 10  # samples of a pause next to the speech: an analysis window reaches so far, and breath may


def main() -> None:
    """Print a table of conditions, then the levels in silence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of speech")
    parser.add_argument("--model", default="stream", help="boxed name or directory of a 24 kHz model")
    arguments = parser.parse_args()
    model = codec.load(arguments.model)
    if model.sample_rate != RATE:
        raise ConfigError(f"{arguments.model}: takes {model.sample_rate} Hz, and the conditions are made at {RATE} Hz")
    speech = [audio.read(path, RATE)[0][0] for path in audio.find_sounds(arguments.folder)]
    print("| condition | PESQ-wb | STOI | log-mel L1 |\n| --- | ---: | ---: | ---: |")
    for name, spoil in CONDITIONS.items():
        rows = [score(spoil(wav, np.random.default_rng(i)), model) for i, wav in enumerate(speech)]
        print(
            f"| {name} | " + " | ".join(f"{mean(row[key] for row in rows):.3f}" for key in rows[0]) + " |", flush=True
        )
    print_silence(speech, model)


def score(wav: np.ndarray, model: Codec) -> dict[str, float]:
    """Scores of the round trip of (T,)."""
    wav = wav.astype(np.float32)
    pair, settings = Pair(wav, round_trip(wav, model), RATE), Settings()
    return WidebandPesq(settings).score(pair) | Stoi(settings).score(pair) | MelDistance(settings).score(pair)


def round_trip(wav: np.ndarray, model: Codec) -> np.ndarray:
    """What (T,) becomes, (T,), cut to full scale as in a file."""
    codes = model.encode(torch.from_numpy(wav.astype(np.float32))[None, None])
    return model.decode(codes)[0, 0, : len(wav)].clamp(-1, 1).numpy()


def print_silence(speech: list[np.ndarray], model: Codec) -> None:
    """Peaks of what is decoded where nothing was said."""
    silence = round_trip(np.zeros(4 * RATE), model)
    print(f"silence: peak {decibels(np.abs(silence).max()):.0f} dBFS")
    before, behind = [], []
    for wav in speech:
        decoded = round_trip(np.pad(wav, PAUSE), model)
        before.append(np.abs(decoded[: PAUSE - GUARD]).max())
        behind.append(np.abs(decoded[-PAUSE + GUARD :]).max())
    for name, peaks in {"before": before, "behind": behind}.items():
        print(f"pauses {name} speech: peak {decibels(np.median(peaks)):.0f} dBFS in the median file, ", end="")
        print(f"{decibels(max(peaks)):.0f} dBFS in the worst")


def decibels(amplitude: float) -> float:
    """Level of an amplitude, 0 dB at full scale."""
    return 20 * math.log10(max(float(amplitude), 1e-9))


# -------------------------------------------------------------------- conditions: speech (T,) and randomness -> (T,)


def as_recorded(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing is done."""
    return wav


def quiet(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """30 dB softer."""
    return wav * 10 ** (-30 / 20)


def offset(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An offset of a hundredth of full scale, as cheap sound cards add it."""
    return wav + 0.01


def clipped(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So loud that 2 % of the samples were cut off."""
    limit = np.quantile(np.abs(wav), 0.98)
    return 0.99 * np.clip(wav / limit, -1, 1)


def telephone(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """300 to 3400 Hz, 8 kHz, 8 bits of mu-law."""
    band = scipy.signal.butter(4, (300, 3400), "bandpass", fs=RATE, output="sos")
    narrow = np.clip(soxr.resample(scipy.signal.sosfilt(band, wav), RATE, 8000), -1, 1)
    bits = np.round(127 * np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256))
    back = np.sign(bits) * (256 ** np.abs(bits / 127) - 1) / 255
    wide = soxr.resample(back, 8000, RATE)
    return np.pad(wide, (0, max(len(wav) - len(wide), 0)))[: len(wav)]


def noisy(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pink noise, 20 dB softer than the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(len(wav)))
    return mix(wav, np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(wav)), -20)


def with_music(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plucked chords, 15 dB softer than the speech."""
    seconds = np.arange(len(wav)) / RATE
    music = np.zeros(len(wav))
    for start in np.arange(0, seconds[-1], 0.6):
        since = np.maximum(seconds - start, 0)
        for note in 220 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12], 3, replace=False) / 12):
            partials = sum(np.sin(2 * np.pi * k * note * since) / k for k in range(1, 7))
            music += (seconds >= start) * np.exp(-3 * since) * partials
    return mix(wav, music, -15)


def reverberant(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room of 0.5 s reverberation time, as strong as the direct sound."""
    seconds = np.arange(RATE // 2) / RATE
    room = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / 0.5)
    room /= np.sqrt(np.square(room).sum())
    return 0.7 * (wav + scipy.signal.fftconvolve(wav, room)[: len(wav)])


def whispered(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same spectral envelopes without a voice: linear prediction of order 24, excited by noise."""
    import librosa

    size, hop = 960, 480
    window = scipy.signal.windows.hann(size, sym=False)
    result = np.zeros(len(wav) + size)
    padded = np.pad(wav, (0, size)).astype(np.float64)
    for start in range(0, len(wav), hop):
        frame = padded[start : start + size] * window + 1e-6 * rng.standard_normal(size)
        filter = librosa.lpc(frame, order=24)
        energy = np.sqrt(np.square(scipy.signal.lfilter(filter, [1], frame)).mean())
        noise = energy * rng.standard_normal(2 * size)
        result[start : start + size] += window * scipy.signal.lfilter([1], filter, noise)[size:]
    return result[: len(wav)]


def mix(wav: np.ndarray, other: np.ndarray, level: float) -> np.ndarray:
    """Add something at a level in dB relative to the speech, no louder together than full scale."""
    gain = np.sqrt(np.square(wav).mean() / np.square(other).mean()) * 10 ** (level / 20)
    both = wav + gain * other
    return both / max(1, np.abs(both).max())


CONDITIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "as recorded": as_recorded,
    "30 dB softer": quiet,
    "offset of 1 % of full scale": offset,
    "2 % clipped": clipped,
    "telephone, 8 kHz mu-law": telephone,
    "pink noise at -20 dB": noisy,
    "music at -15 dB": with_music,
    "room of 0.5 s": reverberant,
    "whispered": whispered,
}

if __name__ == "__main__":
    sys.exit(exit_code(main))
