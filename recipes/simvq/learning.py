"""One quantizer learns on fixed latents, and is measured: what the experiments on speech share."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from speech import BATCH, SpeechLatents

from codec.model.quantizer import Quantizer
from codec.model.rivals import FeatureVQ, ProjectedQuantizer
from codec.training.counters import perplexity

LEARNING_RATE = 1e-2
FRAMES_PER_CODE = 32
"""What utilisation is counted over. At 65,536 codes 1.76 million frames are 27, at 262,144 they are 7 each."""


def learn(
    quantizer: Quantizer,
    speech: SpeechLatents,
    num_steps: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Minimise the quantizer's own loss, and for those between two projections also the error of the latent.

    Quantizers begin as they are drawn, but for the frozen features of VQGAN-LC, which are latents by definition, and
    EMA VQ, which begins with k-means on the first batch by itself.
    """
    latents = speech.latents
    if isinstance(quantizer, FeatureVQ):
        quantizer.match(latents[-quantizer.codebook_size :])  # not the first, of which errors are measured
    weights = list(quantizer.parameters())
    optimizer = torch.optim.Adam(weights or [torch.zeros(1)], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=num_steps)
    for step in range(num_steps):
        on_step(step)
        batch = latents[torch.randint(len(latents), (BATCH,))]
        output = quantizer.train()(batch)
        loss = output.loss
        if isinstance(quantizer, ProjectedQuantizer):
            loss = loss + F.mse_loss(output.quantized, batch)
        optimizer.zero_grad()
        if weights:
            loss.backward()
        optimizer.step()
        schedule.step()
    on_step(num_steps)


@torch.no_grad()
def measure(quantizer: Quantizer, speech: SpeechLatents, most_frames: int) -> dict[str, Any]:
    """Utilisation, perplexity and errors over `most_frames`, or all where there are fewer."""
    size, started = quantizer.codebook_size, perf_counter()
    torch.empty(6 << 20)  # 24 MiB, freed at once: from then on glibc keeps smaller blocks for the search to use again
    latents = speech.latents[:most_frames]
    counts = torch.zeros(size, dtype=torch.int64)
    latent_error, frame_error = 0.0, 0.0
    quantizer.eval()
    for first in range(0, len(latents), 8192):
        batch = latents[first : first + 8192]
        output = quantizer(batch)
        counts += torch.bincount(output.codes, minlength=size)
        latent_error += (output.quantized - batch).square().sum().item()
        frame_error += speech.frame_error(output.quantized, first) * len(batch)
    return {
        "frames": len(latents),
        "utilisation %": 100 * (counts > 0).float().mean().item(),
        "perplexity": perplexity(counts).item(),
        "latent error": latent_error / latents.square().sum().item(),
        "frame error": frame_error / len(latents),
        "measured s": perf_counter() - started,
    }
