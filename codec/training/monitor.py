"""What one sees of a run: a terminal line with the time left; TensorBoard scalars, audio and spectrogram pictures."""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from codec.training.validation import ValidationResult


class CodeUsage:
    """Utilisation and perplexity of the codes of recent batches, counted on the device without waiting for it."""

    def __init__(self, codebook_size: int, device: torch.device, memory: float = 0.98):
        self.counts = torch.zeros(codebook_size, device=device)
        self.memory = memory

    def add(self, codes: Tensor) -> None:
        """Count the codes of a batch; older batches fade by `memory` each time."""
        self.counts.mul_(self.memory).add_(torch.bincount(codes.flatten(), minlength=len(self.counts)))

    @staticmethod
    def summarise(counts: Tensor) -> dict[str, Tensor]:
        """Share of the codebook in use, and exp of the entropy of its use, from counts (K,)."""
        probability = counts / counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(probability, probability).sum()
        return {"codes/utilisation": (counts > 1e-3).float().mean(), "codes/perplexity": entropy.exp()}


class Monitor:
    """Writes logs below a run folder: `log.jsonl` for programs, TensorBoard events, a line on stderr for people."""

    def __init__(self, run: Path, first_step: int, last_step: int):
        self.writer = SummaryWriter(run / "tensorboard", purge_step=first_step)
        self.log_file = open(run / "log.jsonl", "a", buffering=1)
        self.first_step, self.last_step = first_step, last_step
        self.started = time.monotonic()

    def log(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Record scalars of a step by their full names."""
        values = {name: float(value) for name, value in scalars.items()}
        elapsed = time.monotonic() - self.started
        values["steps_per_second"] = (step - self.first_step) / elapsed
        self._write(step, values)
        left = (self.last_step - step) / values["steps_per_second"]
        shown = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in values.items())
        print(f"step {step}/{self.last_step}  {left / 3600:.1f} h left  {shown}", file=sys.stderr, flush=True)

    def log_validation(self, step: int, result: ValidationResult) -> None:
        """Record validation scores, and the first clips as sound and as spectrogram pairs."""
        self._write(step, {f"validation/{name}": value for name, value in result.scores.items()})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
        print(f"step {step}  validation  {shown}", file=sys.stderr, flush=True)
        for index, (reference, estimate) in enumerate(result.examples):
            self.writer.add_audio(f"reference/{index}", reference, step, result.sample_rate)
            self.writer.add_audio(f"estimate/{index}", estimate, step, result.sample_rate)
            self.writer.add_image(f"reference above estimate/{index}", spectrogram_pair(reference, estimate), step)

    def close(self) -> None:
        """Flush and close the logs."""
        self.writer.close()
        self.log_file.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.log_file.write(json.dumps({"step": step} | values) + "\n")


def spectrogram_pair(reference: Tensor, estimate: Tensor) -> Tensor:
    """Log-magnitude spectrograms of two signals (T,), one above the other, as an image (3, height, width) in [0, 1]."""
    from matplotlib import colormaps

    window = torch.hann_window(1024)
    panels = []
    for wav in (reference, estimate):
        magnitude = torch.stft(wav.cpu().float(), 1024, 256, window=window, return_complex=True).abs()
        panels.append((magnitude.clamp(min=1e-4).log10() / 6 + 2 / 3).clamp(0, 1).flip(0))  # -80 .. +40 dB
    gap = torch.ones(4, panels[0].shape[1])
    image = torch.cat([panels[0], gap, panels[1]])
    return torch.from_numpy(colormaps["magma"](image.numpy())[..., :3]).permute(2, 0, 1)
