"""What one sees of a run: a terminal line with the time left; TensorBoard scalars, histograms, audio and pictures."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from codec.errors import CodecError
from codec.progress import duration
from codec.training.alarms import Watch
from codec.training.counters import perplexity
from codec.training.run_files import LOG_NAME, append_record
from codec.training.validation import ValidationResult

SHOWN = {
    "loss/mel": "mel",
    "loss/adversarial": "adversarial",
    "discriminators/lead": "lead",
    "codes/perplexity": "perplexity",
}
"""What the terminal line shows, and how it is called there; everything else is in the logs."""


class Monitor:
    """Writes logs below a run folder: `log.jsonl` for programs, TensorBoard events, a line on stderr for people.

    Logs are written as well as possible: a full disk costs lines, not the run.

    Args:
        run: the run folder; None makes a monitor that keeps silent, for all processes but the first.
        first_step: where this process starts.
        last_step: where the run ends.
        watch: looks for alarming values.
    """

    def __init__(self, run: Path | None, first_step: int, last_step: int, watch: Watch):
        self.run, self.last_step, self.watch = run, last_step, watch
        self._started = self._last_time = time.monotonic()
        self._last_step, self._num_steps = first_step, 0
        self._writer: SummaryWriter | None = None
        self._has_references = False
        self._is_complaining = False

    def __enter__(self) -> "Monitor":
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_dying_thread
        return self

    def __exit__(self, *_: object) -> None:
        with self._as_well_as_possible():
            if self._writer:
                self._writer.close()
        threading.excepthook = self._excepthook

    def log(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Record values of a step by their full names: scalars on the device, and plain numbers."""
        if self.run is None:
            return
        together = torch.stack([value.float() for value in tensors.values()]).tolist()  # waits for the device, once
        values = {**dict(zip(tensors, together, strict=True)), **numbers}
        values |= self.watch.derive(values)
        now = time.monotonic()
        num_steps = step - self._last_step
        self._num_steps += num_steps
        values["steps_per_second"] = num_steps / max(now - self._last_time, 1e-9)
        self._record(step, values)
        self._last_step, self._last_time = step, now
        seconds_left = (self.last_step - step) * (now - self._started) / max(self._num_steps, 1)
        print(terminal_line(step, self.last_step, seconds_left, values), file=sys.stderr, flush=True)
        for sentence in self.watch.alarms(values):
            self.event(step, "alarm", sentence)

    def go_back(self, step: int) -> None:
        """The run is at an earlier step again, from which those to come are counted."""
        self._last_step = step

    def event(self, step: int, kind: str, sentence: str) -> None:
        """Record and show in words that something happened: an alarm, skipped steps, a return to an earlier state."""
        if self.run is None:
            return
        print(f"step {step}  {kind}: {sentence}", file=sys.stderr, flush=True)
        with self._as_well_as_possible():
            append_record(self.run / LOG_NAME, {"step": step, "event": kind, "text": sentence})
            self._tensorboard().add_text(f"events/{kind}", sentence, step)

    def log_codebook(self, step: int, counts: Tensor, projection: Tensor | None) -> None:
        """Record how often the codes (K,) were used of late, and the effective rank of W if there is one."""
        if self.run is None:
            return
        if projection is not None:
            self._record(step, {"codes/effective_rank": effective_rank(projection)})
        used = counts[counts > 0].cpu()
        if len(used):
            with self._as_well_as_possible():
                self._tensorboard().add_histogram("codes/log10_share", (used / used.sum()).log10(), step)

    def log_validation(self, step: int, result: ValidationResult) -> None:
        """Record validation scores, and the first clips as sound and as spectrogram pairs."""
        if self.run is None:
            return
        self._record(step, {f"validation/{name}": value for name, value in result.scores.items()})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
        print(f"step {step}  validation  {shown}", file=sys.stderr, flush=True)
        with self._as_well_as_possible():
            writer = self._tensorboard()
            for index, (reference, estimate) in enumerate(result.examples):
                if not self._has_references:  # always the same
                    writer.add_audio(f"reference/{index}", reference, step, result.sample_rate)
                writer.add_audio(f"estimate/{index}", estimate, step, result.sample_rate)
                writer.add_image(f"reference above estimate/{index}", spectrogram_pair(reference, estimate), step)
            self._has_references = True

    @contextmanager
    def surviving(self, step: int, task: str) -> Iterator[None]:
        """In this block what goes wrong, such as a full disk, is an event and not the end of the run."""
        try:
            yield
        except (OSError, SafetensorError, CodecError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            kind = "failure" if isinstance(error, OSError | SafetensorError) else "trouble"
            self.event(step, kind, f"{task} failed: {reason}; what was written before stays, training goes on")

    def _record(self, step: int, values: dict[str, float]) -> None:
        assert self.run is not None
        with self._as_well_as_possible():
            append_record(self.run / LOG_NAME, {"step": step} | values)
            for name, value in values.items():
                self._tensorboard().add_scalar(name, value, step)

    def _tensorboard(self) -> SummaryWriter:
        """The writer; opened late, and again after it failed."""
        if self._writer is None:
            assert self.run is not None
            self._writer = SummaryWriter(self.run / "tensorboard", purge_step=self._last_step + 1)
        return self._writer

    def _on_dying_thread(self, death: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread dies of a full disk. Whoever writes next is told so, and no traceback is needed."""
        is_expected = issubclass(death.exc_type, OSError) and type(death.thread).__module__.startswith("tensorboard")
        if not is_expected:
            self._excepthook(death)

    @contextmanager
    def _as_well_as_possible(self) -> Iterator[None]:
        try:
            yield
            self._is_complaining = False
        except OSError as error:
            self._writer = None
            if not self._is_complaining:
                print(f"codec: the logs cannot be written ({error.strerror or error})", file=sys.stderr, flush=True)
            self._is_complaining = True


def terminal_line(step: int, last_step: int, seconds_left: float, values: Mapping[str, float]) -> str:
    """The state of a run in one line of at most 120 characters."""
    words = [f"step {step}/{last_step}", f"{duration(seconds_left)} left"]
    words += [f"{short} {_short(values[name])}" for name, short in SHOWN.items() if name in values]
    words.append(f"{_short(values['steps_per_second'])} steps/s")
    if values.get("skipped_steps"):
        words.append(f"{values['skipped_steps']:.0f} skipped")
    return "  ".join(words)


def _short(value: float) -> str:
    """Three digits, more before the point where there are more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def effective_rank(matrix: Tensor) -> float:
    """Perplexity of the singular values: in how many directions a matrix really acts.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    return float(perplexity(torch.linalg.svdvals(matrix.detach().float().cpu())))


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
