"""The training loop: one readable step, logging, validation, exact resume, and a model directory at the end.

Phases, by step: up to `quantizer_start` the latent passes unquantized, so that it takes shape before codes are laid
over it; then the quantizer is matched to it and spectral losses train the codec; from `adversarial_start` on the
discriminators join.
"""

import dataclasses
import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.errors import ConfigError
from codec.model import weights
from codec.model.codec import Codec, CodecConfig
from codec.model.decoder import SpectralDecoder, Synthesis
from codec.training.adversary import Adversary, AdversaryConfig
from codec.training.data import AudioCache, DataConfig, WindowSampler, open_cache
from codec.training.distributed import Ranks
from codec.training.losses import MelLoss, MelLossConfig, stft_loss
from codec.training.monitor import CodeUsage, Monitor
from codec.training.pitch import pitch_loss
from codec.training.state import (
    ExponentialMovingAverage,
    flatten_optimizer,
    load_portable,
    load_state,
    restore_optimizer,
    save_portable,
    save_state,
)
from codec.training.validation import validate

STATE_NAME = "state.safetensors"
PORTABLE_NAME = "portable"
CONFIG_NAME = "config.json"
DISCRIMINATORS_NAME = "discriminators.safetensors"
STOP_EVERY = 10
"""Steps between two looks at whether another process was asked to stop."""


@dataclass
class TrainingConfig:
    """How to train. Steps count updates of the generator."""

    run: str = "runs/codec"  # folder of the run: state, logs, models
    init: str = ""  # model directory to start from, with its discriminators where it has them
    seed: int = 0
    device: str = "auto"
    precision: str = "bf16"  # of matrix products and convolutions; quantizer, spectra and losses stay in float32
    compile: bool = False  # torch.compile the codec

    steps: int = 200_000
    learning_rate: float = 5e-4
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_steps: int = 50_000  # length of the linear descent to `final_rate` at the end
    final_rate: float = 0.02  # of the learning rate
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    quantizer_start: int = 200
    adversarial_start: int = 20_000
    adversarial_seconds: float = 1.0  # of each window that the discriminators see

    mel_weight: float = 15.0
    convergence_weight: float = 7.5  # of the STFT spectral convergence
    commitment_weight: float = 10.0
    pitch_weight: float = 60.0  # of the pitch that the stream family's decoder states
    adversarial_weight: float = 1.0
    feature_matching_weight: float = 2.0

    log_every: int = 50
    validate_every: int = 2000
    save_every: int = 500
    portable: bool = False  # also keep a compact state, 16 bit and without optimizers, to go on with elsewhere

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "float32"):
            raise ConfigError(f"training.precision must be bf16 or float32, got {self.precision!r}")
        for name in ("steps", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"training.{name} must be positive, got {getattr(self, name)}")


@dataclass
class Config:
    """The whole tree of settings of a run."""

    model: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mel: MelLossConfig = field(default_factory=MelLossConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


class Trainer:
    """Trains one codec in one run folder; created again on that folder, it goes on where the last state was saved."""

    def __init__(self, config: Config):
        self.config = config
        self.settings = config.training
        self.ranks = Ranks()
        self.run = Path(self.settings.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.device = weights.choose_device(self.settings.device)
        if self.device.type == "cuda" and self.ranks.size > 1:
            self.device = torch.device("cuda", self.ranks.local_rank)
            torch.cuda.set_device(self.device)
        torch.manual_seed(self.settings.seed)
        self.codec = self._initial_codec().to(self.device).train()
        sample_rate = self.codec.sample_rate
        self.sampler = WindowSampler(self._open_cache("train"), config.data, self.settings.seed)
        self.held_out = self._open_cache("validation") if config.data.validation else None
        self.mel_loss = MelLoss(config.mel, sample_rate).to(self.device)
        self.adversary = Adversary(config.adversary, self.device)
        if (Path(self.settings.init) / DISCRIMINATORS_NAME).is_file():
            self.adversary.load_weights(Path(self.settings.init) / DISCRIMINATORS_NAME)
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(),
            lr=self.settings.learning_rate,
            betas=(self.settings.betas[0], self.settings.betas[1]),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.ema = ExponentialMovingAverage(self.codec, self.settings.ema_decay)
        self.usage = CodeUsage(self.codec.codebook_size, self.device)
        self.step = 0
        self.skipped_steps = torch.zeros((), device=self.device)
        self.best_score = -math.inf
        self._resume()
        if self.ranks.is_first:
            self._save_config()
        self._encode = torch.compile(self.codec.encoder) if self.settings.compile else self.codec.encoder
        decoder = self.codec.decoder
        decode = decoder.synthesize if isinstance(decoder, SpectralDecoder) else decoder
        self._decode = torch.compile(decode) if self.settings.compile else decode

    def fit(self) -> Path:
        """Train to the last step and return the model directory. SIGTERM and Ctrl-C save the state first."""
        settings = self.settings
        monitor = Monitor(self.run, self.step, settings.steps) if self.ranks.is_first else None
        batches = self.sampler.batches(self.step, self.ranks.rank, self.ranks.size)
        with _stop_signals() as stop:
            while self.step < settings.steps and not self._should_stop(stop):
                scalars = self.train_step(next(batches).to(self.device, non_blocking=True))
                self.step += 1
                if self.step % settings.log_every == 0:
                    scalars = self.ranks.mean(scalars) | CodeUsage.summarise(self.ranks.sum(self.usage.counts))
                    if monitor:
                        monitor.log(self.step, scalars)
                if monitor and self.held_out is not None and self.step % settings.validate_every == 0:
                    self._validate(monitor)
                if self.step % settings.save_every == 0:
                    self.save()
        self.save()
        directory = self.save_model("last")
        if monitor:
            monitor.close()
        self.ranks.leave()
        return directory

    def _should_stop(self, stop: "_StopRequest") -> bool:
        """All processes must stop at the same step; asking them takes a message, so it is done every few steps."""
        if self.ranks.size == 1:
            return stop.requested
        return self.step % STOP_EVERY == 0 and self.ranks.any(stop.requested, self.device)

    def train_step(self, wav: Tensor) -> dict[str, Tensor]:
        """One update of the codec, and of the discriminators once they have joined: (B, 1, T) -> scalars to log."""
        settings = self.settings
        is_adversarial = self.step >= settings.adversarial_start
        rate = self._set_learning_rate()

        with self._autocast():
            latent = self._encode(wav)  # (B, 1, T) -> (B, D, N)
            quantized, quantizer_loss = self._quantize(latent)
            fake, log_pitch = self._synthesize(quantized)  # (B, D, N) -> (B, 1, N * hop)
            fake = fake[..., : wav.shape[-1]]
        mel = self.mel_loss(wav, fake)
        loss = settings.mel_weight * mel + settings.commitment_weight * quantizer_loss
        scalars = {"loss/mel": mel, "loss/quantizer": quantizer_loss}
        if log_pitch is not None:
            pitch = pitch_loss(log_pitch, wav, self.codec.decoder.config)
            loss = loss + settings.pitch_weight * pitch
            scalars["loss/pitch"] = pitch
        if settings.convergence_weight:
            convergence = stft_loss(wav, fake).convergence
            loss = loss + settings.convergence_weight * convergence
            scalars["loss/spectral_convergence"] = convergence
        if is_adversarial:
            with self._autocast():
                joint = self.adversary.joint_losses(
                    *self._crop(wav, fake), settings.adversarial_weight, settings.feature_matching_weight
                )
            loss = loss + joint.generator
            self.ranks.average_gradients(self.adversary.discriminators.parameters())
            scalars |= {
                "loss/adversarial": joint.adversarial,
                "loss/feature_matching": joint.feature_matching,
                "loss/discriminator": joint.discriminator,
                "gradient_norm/discriminators": self.adversary.step(),
            }
        scalars |= {"loss/total": loss, "gradient_norm/codec": self._update(loss)}
        scalars |= {"learning_rate": torch.tensor(rate * settings.learning_rate), "skipped_steps": self.skipped_steps}
        return {name: value.detach() for name, value in scalars.items()}

    def save(self) -> None:
        """Write the state from which the run goes on exactly; if configured, also the one that travels."""
        usage = self.ranks.sum(self.usage.counts)
        if not self.ranks.is_first:
            return
        parts = {
            "codec": self.codec.state_dict(),
            "ema": self.ema.shadow,
            "optimizer": flatten_optimizer(self.optimizer),
            "discriminators": self.adversary.discriminators.state_dict(),
            "discriminator_optimizer": flatten_optimizer(self.adversary.optimizer),
            "usage": {"counts": usage},
        }
        counters = {
            "step": self.step,
            "ema_updates": self.ema.num_updates,
            "skipped_steps": int(self.skipped_steps),
            "best_score": self.best_score,
        }
        save_state(self.run / STATE_NAME, parts, counters)
        if self.settings.portable:
            kept = {name: parts[name] for name in ("codec", "ema", "discriminators")}
            save_portable(self.run / PORTABLE_NAME, kept, counters)

    def save_model(self, name: str) -> Path:
        """Write the averaged weights as a model directory below the run, discriminators beside them."""
        directory = self.run / name
        if not self.ranks.is_first:
            return directory
        weights.save(self.averaged_codec(), directory, dtype=torch.float16)
        self.adversary.save_weights(directory / DISCRIMINATORS_NAME)
        return directory

    def averaged_codec(self) -> Codec:
        """A copy of the codec with the averaged weights, in eval mode."""
        codec = Codec(self.config.model).to(self.device)
        codec.load_state_dict(self.codec.state_dict())
        self.ema.copy_to(codec)
        return codec.eval()

    def _synthesize(self, quantized: Tensor) -> tuple[Tensor, Tensor | None]:
        """Waveform, and the pitch where the decoder states one."""
        # A decoder that draws random numbers draws those of the step, whether the run was interrupted or not.
        torch.manual_seed(self.settings.seed + self.step)
        result = self._decode(quantized)
        return result if isinstance(result, Synthesis) else (result, None)

    def _quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        if self.step < self.settings.quantizer_start:
            return latent.float(), latent.new_zeros((), dtype=torch.float32)
        if self.step == self.settings.quantizer_start and not self.settings.init:
            self.codec.quantizer.match(self.ranks.gather(latent.detach()))
        codes, quantized, loss = self.codec.quantizer(latent)
        self.usage.add(codes)
        return quantized, loss

    def _update(self, loss: Tensor) -> Tensor:
        """Step the codec and its average; returns the gradient's norm before clipping.

        If the norm is not finite, nothing is updated and the step is counted as skipped. That is decided on the
        device, so that no step waits for it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients(self.codec.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), self.settings.clip_norm, foreach=True)
        is_broken = (~norm.isfinite()).float()
        self.optimizer.found_inf = is_broken  # type: ignore[attr-defined]  # read by fused updates
        self.optimizer.step()
        self.skipped_steps += is_broken
        self.ema.update(self.codec)
        return norm

    def _crop(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The same random stretch of both, so that the discriminators, the costliest part, see less audio."""
        length = min(round(self.settings.adversarial_seconds * self.codec.sample_rate), real.shape[-1])
        generator = torch.Generator().manual_seed(self.settings.seed + self.step)
        start = int(torch.randint(real.shape[-1] - length + 1, (), generator=generator))
        return real[..., start : start + length], fake[..., start : start + length]

    def _set_learning_rate(self) -> float:
        """Linear warm-up, a plateau, and a linear descent over the last `decay_steps`; returns the factor."""
        settings = self.settings
        rise = min(1.0, (self.step + 1) / max(settings.warmup_steps, 1))
        left = (settings.steps - self.step) / max(min(settings.decay_steps, settings.steps), 1)
        rate = rise * max(min(left, 1.0), settings.final_rate)
        for optimizer, peak in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = rate * peak
        return rate

    def _optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Each optimizer and the peak of its learning rate."""
        return [
            (self.optimizer, self.settings.learning_rate),
            (self.adversary.optimizer, self.config.adversary.learning_rate),
        ]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _validate(self, monitor: Monitor) -> None:
        assert self.held_out is not None
        result = validate(self.averaged_codec(), self.held_out, self.mel_loss)
        monitor.log_validation(self.step, result)
        if result.score > self.best_score:
            self.best_score = result.score
            self.save_model("best")

    def _initial_codec(self) -> Codec:
        if not self.settings.init:
            return Codec(self.config.model)
        codec = weights.load(self.settings.init)
        if codec.config != self.config.model:
            raise ConfigError(f"training.init: {self.settings.init} has another configuration than `model`")
        return codec

    def _open_cache(self, split: str) -> AudioCache:
        data = self.config.data
        with self.ranks.first_alone():
            return open_cache(Path(getattr(data, split)), Path(data.cache) / split, self.codec.sample_rate)

    def _resume(self) -> None:
        if (self.run / STATE_NAME).exists():
            parts, counters = load_state(self.run / STATE_NAME)
        elif (self.run / PORTABLE_NAME).exists():
            parts, counters = load_portable(self.run / PORTABLE_NAME)
        else:
            return
        self.codec.load_state_dict(parts["codec"])
        self.ema.shadow = {name: tensor.to(self.device) for name, tensor in parts["ema"].items()}
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.adversary.discriminators.load_state_dict(parts["discriminators"])
        restore_optimizer(self.adversary.optimizer, parts.get("discriminator_optimizer", {}))
        if self.ranks.is_first and "usage" in parts:
            self.usage.counts.copy_(parts["usage"]["counts"])
        self.step = counters["step"]
        self.ema.num_updates = counters["ema_updates"]
        self.skipped_steps.fill_(counters["skipped_steps"])
        self.best_score = counters["best_score"]

    def _save_config(self) -> None:
        values = dataclasses.asdict(self.config)
        (self.run / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n")


class _StopRequest:
    requested = False


@contextmanager
def _stop_signals() -> Iterator[_StopRequest]:
    """Turn SIGTERM and Ctrl-C into a request that is met after the present step; a second one interrupts at once."""
    request = _StopRequest()

    def handle(number: int, frame: Any) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
