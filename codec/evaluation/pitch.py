"""Voicing and pitch: whether the voice sounds when it should, how clearly, and how high."""

import warnings
from typing import Any

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair, Settings, Undefined

SAMPLE_RATE = 16000
WINDOW, HOP = 1024, 160  # samples
LOWEST, HIGHEST = 50.0, 550.0  # Hz
SILENCE = -60.0  # dB
VOICED = 0.21  # periodicity
BATCH = 256  # frames; the network needs about a megabyte for each


class Pitch(Metric):
    """V/UV F1, periodicity and pitch error, from CREPE (`torchcrepe`, capacity "full") at 16 kHz.

    Frames of 64 ms every 10 ms, without padding; pitch between 50 and 550 Hz along the best path (Viterbi) through the
    whole utterance. Periodicity is the network's probability on that path; it is 0 in frames whose mean A-weighted
    level (1024-point Hann power spectrum, no more than 80 dB under the loudest value, minus 20 dB) is under -60 dB. A
    frame is voiced if its periodicity is at least 0.21.

    - `vuv_f1`: harmonic mean of precision and recall of "voiced".
    - `periodicity`: root mean square of the difference of both periodicities, over all frames.
    - `pitch`: root mean square of the difference in cents, over frames voiced in both.

    A pair without a frame that is voiced in both has no value. Pitch is the centre of CREPE's bins (20 cents apart),
    without the random dither that `torchcrepe` adds, so that identical signals have no error. Frames go through the
    network in batches, which changes nothing but the memory needed.
    Source: Morrison et al., CARGAN, arXiv:2110.10139; convention of vocos, WavTokenizer and SimVQ, which drop pairs
    without a value and average F1 only.
    """

    name = "pitch"
    columns = (
        Column("vuv_f1", "V/UV F1", "higher"),
        Column("periodicity", "periodicity error", "lower"),
        Column("pitch", "pitch error", "lower", "cents", digits=1),
    )
    packages = ("torch", "torchaudio", "librosa", "torchcrepe")

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from codec._torchaudio import import_torchaudio
        from codec.model.weights import choose_device

        import_torchaudio()
        self.device = choose_device(settings.device)

    def score(self, pair: Pair) -> dict[str, float]:
        reference, estimate = pair.at(SAMPLE_RATE)
        if len(reference) < WINDOW:
            raise Undefined(f"has {len(reference)} samples at 16 kHz, pitch needs {WINDOW}")
        (pitch, periodicity), (its_pitch, its_periodicity) = self.track(reference), self.track(estimate)
        voiced, its_voiced = periodicity >= VOICED, its_periodicity >= VOICED
        both = voiced & its_voiced
        if not both.any():
            raise Undefined("no frame is voiced in both")
        cents = 1200 * np.log2(its_pitch[both] / pitch[both])
        return {
            "vuv_f1": float(2 * both.sum() / (voiced.sum() + its_voiced.sum())),
            "periodicity": float(np.sqrt(np.square(its_periodicity - periodicity).mean())),
            "pitch": float(np.sqrt(np.square(cents).mean())),
        }

    def track(self, wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pitch in Hz and periodicity of every frame, (N,) float64 each, of a wave (T,) at 16 kHz."""
        import torch
        import torchcrepe

        frames = torchcrepe.preprocess(
            torch.from_numpy(wav)[None], SAMPLE_RATE, HOP, BATCH, device=self.device, pad=False
        )
        with torch.inference_mode():
            parts = [torchcrepe.infer(batch, "full", self.device) for batch in frames]  # (n, 360)
            probabilities = torch.cat(parts).T[None].cpu()  # (1, 360, N)
            bins, periodicity = torchcrepe.postprocess(
                probabilities, LOWEST, HIGHEST, decoder=_bins_of_best_path, return_periodicity=True
            )
        cents = torchcrepe.CENTS_PER_BIN * bins[0].double().numpy() + 1997.3794084376191  # above 10 Hz
        loud = perceived_level(wav) >= SILENCE
        return 10 * 2 ** (cents / 1200), np.where(loud, periodicity[0].double().numpy(), 0.0)


def _bins_of_best_path(probabilities: Any) -> tuple[Any, Any]:
    """Torchcrepe's Viterbi decoder; the bins stand in the place of the dithered pitch."""
    import torchcrepe

    bins, _ = torchcrepe.decode.viterbi(probabilities)
    return bins, bins


def perceived_level(wav: np.ndarray) -> np.ndarray:
    """Mean A-weighted level of every frame in dB, (N,), of a wave (T,) at 16 kHz."""
    import librosa

    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::HOP]
    power = np.square(np.abs(np.fft.rfft(frames * window))).T.astype(np.float32)  # (F, N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # log of 0 Hz, which is clipped afterwards
        weighted = librosa.perceptual_weighting(power, librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=WINDOW))
    return weighted.mean(axis=0) - 20.0
