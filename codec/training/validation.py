"""Scores of a codec on held-out clips, whole files and always the same ones."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.evaluation.metric import Pair, Settings, Undefined
from codec.evaluation.pesq import WidebandPesq
from codec.evaluation.stoi import Stoi
from codec.model.codec import Codec
from codec.training.data import AudioCache
from codec.training.losses import MelLoss

NUM_EXAMPLES = 3
MAX_SECONDS = 20.0


@dataclass
class ValidationResult:
    """Mean scores and a few pairs to hear and to see."""

    scores: dict[str, float]
    examples: list[tuple[Tensor, Tensor]]  # reference and estimate, (T,)
    sample_rate: int

    @property
    def score(self) -> float:
        """What decides which model is best: wide-band PESQ, or the mel distance where PESQ is not installed."""
        return self.scores.get("pesq_wb", -self.scores["mel"])


@torch.no_grad()
def validate(codec: Codec, clips: AudioCache, mel_loss: MelLoss) -> ValidationResult:
    """Round-trip every clip and average what can be computed; a clip without a PESQ is left out of the PESQ mean."""
    device = next(codec.parameters()).device
    rows: dict[str, list[float]] = {}
    examples = []
    counts = torch.zeros(codec.codebook_size)
    for index in range(len(clips)):
        samples = clips.clip(index)[: round(MAX_SECONDS * clips.sample_rate)].astype(np.float32) / 32768
        reference = torch.from_numpy(samples).to(device)[None, None]  # (1, 1, T)
        output = codec(reference)
        estimate = output.wav.clamp(-1, 1)
        counts += torch.bincount(output.codes.flatten().cpu(), minlength=codec.codebook_size)
        rows.setdefault("mel", []).append(float(mel_loss(reference, estimate)))
        for name, value in _intrusive_scores(samples, estimate[0, 0].cpu().numpy(), clips.sample_rate).items():
            rows.setdefault(name, []).append(value)
        if index < NUM_EXAMPLES:
            examples.append((reference[0, 0].cpu(), estimate[0, 0].cpu()))
    scores = {name: float(np.mean(values)) for name, values in rows.items()}
    probability = counts / counts.sum()
    scores["perplexity"] = float(torch.exp(-torch.special.xlogy(probability, probability).sum()))
    return ValidationResult(scores, examples, clips.sample_rate)


def _intrusive_scores(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Wide-band PESQ and STOI, each only where its package is installed and it is defined."""
    pair = Pair(reference, estimate, sample_rate)
    scores: dict[str, float] = {}
    for metric in (WidebandPesq, Stoi):
        if metric.obstacle(Settings()) is None:
            with contextlib.suppress(Undefined):
                scores |= metric(Settings()).score(pair)
    return scores
