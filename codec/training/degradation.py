"""Speech as it is recorded elsewhere: whispered, in a room, in noise, beside music, over a telephone, too loud or soft.

Corpora for training are clean and loud; what a codec is given is not. It has to keep whatever it hears, so a degraded
window is the target too. Plain functions of windows (T,), a sample rate in Hz and random numbers.
"""

from collections.abc import Callable

import numpy as np

from codec.training.voice import sound_of, spectrum_of, whisper

Degradation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

SMALLEST = 1e-7
"""Of powers that are divided by."""


def degrade(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Let a random choice of what can happen to a recording happen to it: (T,) float32 -> (T,) float32."""
    for degradation, probability in PROBABILITIES.items():
        if rng.random() < probability:
            wav = degradation(wav, sample_rate, rng)
    return wav.astype(np.float32)


def room(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Reverberation of 0.15 to 0.7 s, 0 to 12 dB softer than the direct sound; a decaying noise."""
    reverberation_time, level = rng.uniform(0.15, 0.7), -rng.uniform(0, 12)
    seconds = np.arange(int(reverberation_time * sample_rate)) / sample_rate
    response = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / reverberation_time)
    size = 1 << (len(wav) + len(response)).bit_length()
    reverberation = sound_of(spectrum_of(wav, size) * spectrum_of(response, size), size)[: len(wav)]
    return _mix(wav, reverberation, level)


def noise(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Steady noise between white and brown, 5 to 40 dB softer than the speech."""
    slope, level = rng.uniform(0, 1), -rng.uniform(5, 40)
    spectrum = spectrum_of(rng.standard_normal(len(wav)), len(wav))
    hz = np.arange(len(spectrum)) * (sample_rate / len(wav))
    return _mix(wav, sound_of(spectrum / np.maximum(hz, 50.0) ** slope, len(wav)), level)


def music(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One to twelve notes of one to eight partials, held or fading, together 5 to 35 dB softer than the speech."""
    level, seconds = -rng.uniform(5, 35), np.arange(len(wav), dtype=np.float32) / sample_rate
    notes = np.zeros(len(wav), dtype=np.float32)
    for _ in range(rng.integers(1, 13)):
        since = seconds - np.float32(rng.uniform(-1, len(wav) / sample_rate))
        phase = np.float32(2 * np.pi * 10 ** rng.uniform(*np.log10([80, 1500]))) * since
        note = sum(np.sin(partial * phase) / partial for partial in range(1, rng.integers(2, 10)))
        notes += note * np.exp(np.float32(-rng.uniform(0, 6)) * np.maximum(since, 0)) * (since >= 0)
    return _mix(wav, notes, level)


def band(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A high-pass at 30 to 400 Hz, a low-pass from 3 kHz on, and a tilt of at most 2 dB per octave."""
    low, high = 10 ** rng.uniform(*np.log10([30, 400])), 10 ** rng.uniform(*np.log10([3000, sample_rate / 2]))
    spectrum = spectrum_of(wav, len(wav))
    hz = np.maximum(np.arange(len(spectrum)) * (sample_rate / len(wav)), 1.0)
    slopes = (1 + (low / hz) ** 8) * (1 + (hz / high) ** 24)  # of power: Butterworth filters of order 4 and 12
    tilt = (hz / 1000) ** rng.uniform(-1 / 3, 1 / 3)
    return sound_of(spectrum * tilt / np.sqrt(slopes), len(wav))


def clip(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Too loud for full scale, by which 0.1 % to 5 % of the samples are cut off."""
    limit = max(float(np.quantile(np.abs(wav), 1 - 10 ** rng.uniform(-3, -1.3))), SMALLEST)
    return np.clip(wav / limit, -1, 1)


def soften(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Up to 40 dB softer."""
    return wav * 10 ** (rng.uniform(-40, 0) / 20)


def _mix(wav: np.ndarray, other: np.ndarray, level: float) -> np.ndarray:
    """Add something that has a level in dB relative to the speech."""
    ratio = np.square(wav).mean() / max(np.square(other).mean(), SMALLEST**2)
    return wav + np.sqrt(ratio) * 10 ** (level / 20) * other


PROBABILITIES: dict[Degradation, float] = {
    whisper: 0.1,
    room: 0.25,
    noise: 0.3,
    music: 0.15,
    band: 0.4,
    clip: 0.15,
    soften: 0.5,
}
"""In the order in which they happen between a mouth and a file."""
