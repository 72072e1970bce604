"""Scores of a codec on held-out clips, whole files and always the same ones."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.errors import AudioError
from codec.evaluation.mel import MelDistance
from codec.evaluation.metric import Metric, Pair, Settings, Undefined
from codec.evaluation.pesq import WidebandPesq
from codec.evaluation.stoi import Stoi
from codec.evaluation.utilisation import CodeCounter
from codec.model.codec import Codec
from codec.training.cache import AudioCache

NUM_EXAMPLES = 3
MIN_SECONDS, MAX_SECONDS = 0.5, 20.0  # shorter clips are left out, longer ones cut


@dataclass
class ValidationResult:
    """Mean scores and a few pairs to hear and to see."""

    scores: dict[str, float]
    examples: list[tuple[Tensor, Tensor]]  # reference and estimate, (T,)
    sample_rate: int

    @property
    def score(self) -> float:
        """What decides which model is best: STOI, or the mel distance where that is not installed.

        Not PESQ, in which a hum without words scores higher than the first intelligible models.
        """
        return self.scores.get("stoi", -self.scores["mel"])


@torch.no_grad()
def validate(codec: Codec, clips: AudioCache, max_clips: int) -> ValidationResult:
    """Round-trip clips and average what can be computed, with the metrics of `codec evaluate`.

    A clip without a PESQ is left out of the PESQ mean.

    Args:
        codec: in eval mode.
        clips: held-out speech. Of more than `max_clips`, that many are taken at equal distances, always the same.
        max_clips: at least 1.

    Raises:
        AudioError: no clip is long enough.
    """
    rows: dict[str, list[float]] = {}
    metrics, examples = _metrics(), []
    counter = CodeCounter(codec.codebook_size)
    for number, index in enumerate(choose_clips(clips, max_clips)):
        samples = clips.clip(index)[: round(MAX_SECONDS * clips.sample_rate)].astype(np.float32) / 32768
        reference = torch.from_numpy(samples).to(codec.device)[None, None]  # (1, 1, T)
        output = codec(reference)
        estimate = output.wav.clamp(-1, 1)
        counter.add(output.codes.flatten().cpu().numpy())
        pair = Pair(samples, estimate[0, 0].cpu().numpy(), clips.sample_rate)
        for metric in metrics:
            with contextlib.suppress(Undefined):
                for name, value in metric.score(pair).items():
                    rows.setdefault(name, []).append(value)
        if number < NUM_EXAMPLES:
            examples.append((reference[0, 0].cpu(), estimate[0, 0].cpu()))
    scores = {name: float(np.mean(values)) for name, values in rows.items()}
    scores["perplexity"] = counter.statistics()["perplexity"]
    return ValidationResult(scores, examples, clips.sample_rate)


def choose_clips(clips: AudioCache, max_clips: int) -> list[int]:
    """The clips that `validate` scores, which raises AudioError where none is long enough."""
    usable = np.flatnonzero(clips.lengths >= MIN_SECONDS * clips.sample_rate)
    if not len(usable):
        raise AudioError(f"data.validation: no clip has at least {MIN_SECONDS} s")
    places = np.linspace(0, len(usable) - 1, min(max_clips, len(usable))).round().astype(int)
    return usable[places].tolist()


def _metrics() -> list[Metric]:
    """Log-mel distance, wide-band PESQ and STOI, each only where its package is installed."""
    settings = Settings()
    return [kind(settings) for kind in (MelDistance, WidebandPesq, Stoi) if kind.obstacle(settings) is None]
