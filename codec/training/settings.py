"""All settings of a training run, and whether they fit together: every mistake is found before anything is built."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from codec.errors import ConfigError, first_line
from codec.limits import not_positive, refuse, too_large, too_small
from codec.model import catalogue, weights
from codec.model.codec import ENCODERS, CodecConfig
from codec.model.correlation import DECIMATION
from codec.training.adversary import AdversaryConfig
from codec.training.data import LONGEST_WINDOW, DataConfig
from codec.training.discriminators import PeriodConfig, SpectrumConfig
from codec.training.losses import MelLossConfig
from codec.training.optimizer import wrong_betas
from codec.training.perception import LEAST_RATE, Disturbance, Intelligibility

PARTS = ("encoder", "quantizer", "decoder")
MAX_BATCH_SECONDS = 24 * 3600.0
"""Of speech in a step: 8 GB of samples."""


@dataclass
class TrainingConfig:
    """How to train. Steps count updates of the generator."""

    run: str = "runs/codec"  # folder of the run: state, logs, models
    init: str = ""  # model to start from: name, directory or Hub id; with its discriminators where it has them
    freeze: list[str] = field(default_factory=list)  # parts of `init` to leave alone: encoder, quantizer, decoder
    seed: int = 0
    device: str = "auto"
    precision: str = "bf16"  # of matrix products and convolutions; quantizer, spectra and losses stay in float32
    record: bool = False  # on an NVIDIA GPU: record a step as a CUDA graph, and replay it from then on

    steps: int = 200_000
    learning_rate: float = 5e-4
    quantizer_rate: float = 40.0  # its learning rate / that of the rest; its few weights must follow all latents
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    weight_decay: float = 0.01
    warmup_steps: int = 100  # also when a portable state without optimizers is gone on with
    decay_steps: int = 50_000  # length of the linear descent to `final_rate` at the end
    final_rate: float = 0.02  # of the learning rate
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    standardize_encoder: bool = False  # scale and shift its convolutions by the first batch; not with `init`
    quantizer_start: int = 200  # -1: no phase without quantizer, and it is not matched; no such phase with `init`
    adversarial_start: int | None = None  # null: at once with discriminators from `init`, else at step 20,000
    adversarial_seconds: float = 1.0  # of each window that the discriminators see

    mel_weight: float = 15.0
    loudness_weight: float = 30.0  # of the difference in loudness
    convergence_weight: float = 7.5  # of the spectral convergence
    disturbance_weight: float = 5.0  # of what a model of the ear hears of the difference
    intelligibility_weight: float = 60.0  # of the loss in short-time objective intelligibility
    # Of the quantizer's whole loss, commitment and codebook; null: 20, or 1000 where it is absolute (`relative_loss`).
    commitment_weight: float | None = None
    usage_weight: float = 4.0  # of the loss that draws latents and codes towards an even use of all codes
    pitch_weight: float = 600.0  # of the pitch that the stream family's decoder states
    adversarial_weight: float = 1.0
    feature_matching_weight: float = 2.0

    log_every: int = 50
    validate_every: int = 2000  # and after the last step
    validation_clips: int = 100  # at most, always the same
    save_every: int = 500
    portable: bool = False  # also keep a compact state, 16 bit and without optimizers, to go on with elsewhere
    portable_optimizers: bool = False  # with optimizers, which makes it three times as large

    max_skipped_in_a_row: int = 20  # steps with values that are not finite, before training returns to its last state
    max_returns: int = 4  # before it gives up; each halves the learning rate

    def __post_init__(self) -> None:
        self.betas, self.freeze = list(self.betas), list(self.freeze)
        for name in ("run", "init"):
            setattr(self, name, os.path.expanduser(getattr(self, name) or ""))  # as shells do not behind "="
        mistakes = too_small(self, "training", _LEAST)
        mistakes += not_positive(
            self, "training", ("learning_rate", "quantizer_rate", "clip_norm", "adversarial_seconds")
        )
        mistakes += wrong_betas(self.betas, "training.betas")
        if self.precision not in ("bf16", "float32"):
            mistakes.append(f"training.precision must be bf16 or float32, got {self.precision!r}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value >= 1 << 32:
                mistakes.append(f"training.{name} must be below 2 ** 32, got {value}")
        mistakes += too_large(self, "training", {"adversarial_seconds": LONGEST_WINDOW})
        if not self.run:
            mistakes.append("training.run must name a folder, it is empty")
        if not 0 <= self.ema_decay < 1:
            mistakes.append(f"training.ema_decay must be in [0, 1), got {self.ema_decay}")
        if not set(map(str, self.freeze)) < set(PARTS):  # a list in the list has no hash
            mistakes.append(f"training.freeze takes at most two of {', '.join(PARTS)}, got {self.freeze}")
        if self.freeze and not self.init:
            mistakes.append("training.freeze needs training.init, a model whose parts are worth keeping")
        refuse(mistakes)


_LEAST = {
    -1: ("quantizer_start",),
    0: (
        *("seed", "warmup_steps", "decay_steps", "adversarial_start", "max_returns", "final_rate", "weight_decay"),
        *("mel_weight", "loudness_weight", "convergence_weight", "disturbance_weight", "intelligibility_weight"),
        *("commitment_weight", "usage_weight", "pitch_weight"),
        *("adversarial_weight", "feature_matching_weight"),
    ),
    1: ("steps", "log_every", "validate_every", "validation_clips", "save_every", "max_skipped_in_a_row"),
}
"""The least value of each number in `TrainingConfig`."""


@dataclass
class Config:
    """The whole tree of settings of a run."""

    model: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mel: MelLossConfig = field(default_factory=MelLossConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def check(config: Config, num_processes: int = 1, *, is_here: bool = True) -> None:
    """Refuse settings that do not fit together.

    Args:
        config: all settings.
        num_processes: that share a batch.
        is_here: whether this machine is to train, so that it must have the device.

    Raises:
        ConfigError: names all mistakes at once.
    """
    mistakes = [
        *_of_data(config, num_processes),
        *misfits(config),
        *(_of_device(config.training, num_processes) if is_here else ()),
    ]
    refuse(mistakes)


def misfits(config: Config) -> list[str]:
    """A sentence about each thing that does not fit together, whatever the speech and the machine."""
    return [*_of_model(config), *_of_pitch(config), *_of_spectra(config), *_of_perception(config)]


def _of_data(config: Config, num_processes: int) -> Iterator[str]:
    data = config.data
    if not data.sources:
        yield "data.train must name a manifest or a folder of sound files, it is empty"
    for name, places in (("train", data.sources), ("validation", [Path(data.validation)] if data.validation else [])):
        yield from (f"data.{name}: there is no {place}" for place in places if not place.exists())
    run = Path(config.training.run)
    if run.exists() and not run.is_dir():
        yield f"training.run must name a folder, {run} is a file"
    above = next((folder for folder in (run, *run.absolute().parents) if folder.exists()), run)
    if above.is_dir() and not os.access(above, os.W_OK):  # told before speech is decoded for hours
        yield f"training.run: {above} cannot be written to"
    if (run / catalogue.WEIGHTS_NAME).exists():
        yield f"training.run: {run} holds a model, which training would damage; choose another folder"
    if data.batch_size % num_processes:
        yield f"data.batch_size must be a multiple of the {num_processes} processes, got {data.batch_size}"
    if (seconds := data.batch_size * data.window_seconds) > MAX_BATCH_SECONDS:
        yield (
            f"data.batch_size {data.batch_size} of data.window_seconds {data.window_seconds:g} are "
            f"{seconds / 3600:.0f} hours of speech in a step, more than {MAX_BATCH_SECONDS / 3600:.0f}"
        )


def _of_model(config: Config) -> Iterator[str]:
    encoder = config.model.encoder.kind
    if config.training.standardize_encoder and not hasattr(ENCODERS[encoder][1], "standardize"):
        yield f"training.standardize_encoder is for a seanet encoder, model.encoder.kind is {encoder}"
    try:
        hop_length = weights.blank(config.model).hop_length
    except ConfigError as error:
        yield from map(model_sentence, error.args)
        return
    except RuntimeError as error:
        yield f"no model of these sizes can be made here ({first_line(error)})"
        return
    except TypeError as error:  # of a class of another package, which lacks a method
        yield f"model: {first_line(error)}"
        return
    window = _samples(config, config.data.window_seconds)
    if window < hop_length:
        yield (
            f"data.window_seconds {config.data.window_seconds:g} is {window} samples, shorter than a frame, "
            f"which has {hop_length}"
        )


def model_sentence(mistake: str) -> str:
    """What a model says of its settings, as they are called here: there they are those of its own config.json."""
    return re.sub(r"(?<![\w.])((encoder|quantizer|decoder)[.:]|sample_rate (must|and))", r"model.\1", mistake)


def _of_pitch(config: Config) -> Iterator[str]:
    """What the encoder hears of the pitch that the decoder is to state; a model to start from is as it is."""
    model = config.model
    if config.training.init or not model.is_streamable:
        return
    lowest, num_lags = model.decoder.lowest_pitch, model.encoder.num_lags
    least = math.ceil(model.sample_rate / (DECIMATION * lowest)) + 1
    if num_lags < least:
        yield (
            f"model.encoder.num_lags must be at least {least} for a period of model.decoder.lowest_pitch {lowest:g} Hz "
            f"at {model.sample_rate} Hz, got {num_lags}"
        )


def _of_spectra(config: Config) -> Iterator[str]:
    """A centred STFT reflects n_fft / 2 samples at either end, and mel filters need a bin each."""
    window = _samples(config, config.data.window_seconds)
    crop = min(window, _samples(config, config.training.adversarial_seconds))
    for n_fft, hop_length, num_mels in config.mel.resolutions:
        name = f"mel.resolutions [{n_fft}, {hop_length}, {num_mels}]"
        if n_fft % 2:
            yield f"{name}: the length of an STFT must be even, it is {n_fft}"
        if window <= n_fft // 2:
            yield f"{name} needs more than {n_fft // 2} samples, data.window_seconds gives {window}"
        if hop_length > n_fft:
            yield f"{name}: the hop leaves out samples between STFTs of {n_fft}"
        if num_mels > n_fft // 2 + 1:
            yield f"{name}: an STFT of {n_fft} has only {n_fft // 2 + 1} bins for {num_mels} mel bands"
    for name, group in config.adversary.discriminators.groups().items():
        try:
            with torch.device("meta"):  # shapes only
                group.build()
        except (ValueError, ArithmeticError, RuntimeError) as error:
            yield f"adversary.discriminators.{name}: cannot be built ({first_line(error)})"
            continue
        shortest = 0
        if isinstance(group, SpectrumConfig):
            shortest = max(group.n_ffts) // 2
        elif isinstance(group, PeriodConfig):
            shortest = max(group.periods)
        if crop <= shortest:
            yield (
                f"adversary.discriminators.{name} needs more than {shortest} samples, the shorter of "
                f"data.window_seconds and training.adversarial_seconds gives {crop}"
            )


def _of_perception(config: Config) -> Iterator[str]:
    rate = config.model.sample_rate
    if rate < LEAST_RATE:
        yield f"model.sample_rate must be at least {LEAST_RATE} Hz, so that losses can tell what is heard, got {rate}"
        return
    for name, loss in (("disturbance_weight", Disturbance), ("intelligibility_weight", Intelligibility)):
        shortest = loss.shortest(rate)
        if getattr(config.training, name) and _samples(config, config.data.window_seconds) < shortest:
            yield (
                f"training.{name} needs windows of at least {shortest / rate:g} s, data.window_seconds gives "
                f"{config.data.window_seconds:g}"
            )


def _of_device(training: TrainingConfig, num_processes: int) -> Iterator[str]:
    try:
        device = weights.choose_device(training.device)
    except ConfigError as error:
        yield f"training.device: {error}"
        return
    if training.record and (device.type != "cuda" or num_processes > 1):
        yield "training.record needs an NVIDIA GPU and a single process, set it to false"


def _samples(config: Config, seconds: float) -> int:
    return round(min(seconds, LONGEST_WINDOW) * config.model.sample_rate)  # also where more were asked for


def defining_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which tensors a state has, so that it fits no others."""
    return {
        "model": config.model.to_dict(),
        "adversary": {"discriminators": asdict(config.adversary.discriminators)},
        "training": {"freeze": config.training.freeze},
    }


def differences(saved: Any, present: Any, name: str = "") -> list[str]:
    """`name was A and is B` for each setting of both trees that differs; what only one of them knows is left out."""
    if isinstance(saved, dict) and isinstance(present, dict):
        shared = [key for key in saved if key in present]
        return [line for key in shared for line in differences(saved[key], present[key], f"{name}.{key}".strip("."))]
    return [] if saved == present else [f"{name} was {_brief(saved)} and is {_brief(present)}"]


def _brief(value: Any) -> str:
    """A value, or for a whole group of settings only that it is set."""
    return "set" if isinstance(value, dict) else "null" if value is None else str(value) or "empty"
