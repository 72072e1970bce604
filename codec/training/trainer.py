"""The training loop: one readable step, logging, validation, exact resume, and a model directory at the end.

Phases, by step: up to `quantizer_start` the latent passes unquantized, so that it takes shape before codes are laid
over it; then the quantizer is matched to it and spectral losses train the codec; from `adversarial_start` on the
discriminators join. A model that training starts from (`init`) skips the first phase.

A step in which a loss or gradient is not finite leaves codec and discriminators as they were, but for what a codebook
that is no parameter has averaged from finite latents. After too many of them in a row, training returns to the last
good state with half the learning rate.
"""

import math
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from codec import __version__
from codec.errors import CodecError, ConfigError, ModelError
from codec.model import weights
from codec.model.catalogue import DISCRIMINATORS_CONFIG_NAME, DISCRIMINATORS_NAME
from codec.model.codec import Codec, CodecConfig
from codec.output import remove_leftovers, write_json
from codec.progress import CountLine
from codec.training.alarms import Watch, attainable_perplexity
from codec.training.cache import AudioCache, open_cache
from codec.training.capture import Recorded
from codec.training.counters import BrokenSteps, CodeUsage, Means
from codec.training.data import Batch, WindowSampler
from codec.training.distributed import Ranks
from codec.training.interruption import StopRequest, stop_requests
from codec.training.loader import Loader
from codec.training.losses import SpectralLoss, limit_band
from codec.training.memory import keep_freed_memory
from codec.training.monitor import Monitor
from codec.training.optimizer import adamw, set_rate
from codec.training.perception import Disturbance, Intelligibility
from codec.training.pitch import pitch_loss
from codec.training.run_files import CONFIG_NAME, PORTABLE_NAME, PREVIOUS_NAME, STATE_NAME, read_settings
from codec.training.settings import Config, check, defining_settings, differences
from codec.training.start import (
    adversarial_start,
    commitment_weight,
    derived,
    initial_adversary,
    initial_codec,
    surprises,
)
from codec.training.state import (
    ExponentialMovingAverage,
    Latest,
    check_portable,
    check_room,
    flatten_optimizer,
    like_flattened,
    load_latest,
    lock_run,
    restore_optimizer,
    save_portable,
    save_state,
)
from codec.training.validation import choose_clips, validate

STOP_EVERY = 10
"""Steps between two looks at whether another process was asked to stop."""


class Judgement(NamedTuple):
    """What a decoded batch is off by."""

    loss: Tensor  # a scalar, the weighted sum of what follows
    scalars: dict[str, Tensor]  # each loss by its full name
    heard: Tensor  # (B, 1, T), the original, and the decoded sound: both in the band that the recordings have
    fake: Tensor


class Trainer:
    """Trains one codec in one run folder; created again on that folder, it goes on where the last state was saved."""

    def __init__(self, config: Config):
        self.config = config
        self.settings = settings = config.training
        self.ranks = Ranks(settings.device)
        check(config, self.ranks.size)
        self.device = self.ranks.device(weights.choose_device(settings.device))
        self.run = Path(settings.run)
        # At once, before memory is taken and speech decoded; but a run that is refused leaves no folder behind.
        self.lock = lock_run(self.run) if self.ranks.is_first and self.run.exists() else None
        torch.manual_seed(settings.seed)
        self.codec = initial_codec(config).to(self.device).train()
        self.codec.quantizer.checks_values = False  # the loss tells, and without waiting for the device
        frozen = [getattr(self.codec, part).requires_grad_(False) for part in settings.freeze]
        self.frozen_buffers = [(buffer, buffer.clone()) for part in frozen for buffer in part.buffers()]
        self.trained = [parameter for parameter in self.codec.parameters() if parameter.requires_grad]
        if not self.trained:
            raise ConfigError(f"training.freeze [{', '.join(settings.freeze)}] leaves nothing to train")
        self.sampler = WindowSampler(self._open_cache("train", config.data.sources), config.data, settings.seed)
        validation = config.data.validation
        self.held_out = self._open_cache("validation", [Path(validation)]) if validation else None
        if self.held_out is not None:
            choose_clips(self.held_out, settings.validation_clips)  # refuses those that are all too short
        self.spectral_loss = SpectralLoss(config.mel, self.codec.sample_rate).to(self.device)
        self.disturbance = Disturbance(self.codec.sample_rate).to(self.device)
        self.intelligibility = Intelligibility(self.codec.sample_rate).to(self.device)
        self.adversary = initial_adversary(config, self.device)
        self.adversarial_start = adversarial_start(config)
        self.commitment_weight = commitment_weight(config)
        self.optimizer = self._optimizer_of_codec()
        if settings.portable:
            check_portable(
                {"codec": self.codec.state_dict(), "discriminators": self.adversary.discriminators.state_dict()}
            )
        self.ema = ExponentialMovingAverage(self.codec, settings.ema_decay)
        self.usage = CodeUsage(self.codec.codebook_size, self.device)
        self.means = Means()
        self.broken = BrokenSteps(self.device)
        self.quantizer_start = -1 if settings.init else settings.quantizer_start
        self.step = 0
        self.optimizer_start = 0  # the step at which the optimizers began without any memory
        self.num_returns = 0  # to an earlier state
        self.best_score = -math.inf
        self.run.mkdir(parents=True, exist_ok=True)
        if self.ranks.is_first and self.lock is None:
            self.lock = lock_run(self.run)  # as long as this trainer lives
        if self.ranks.is_first:
            for folder in (self.run, *(self.run / name for name in ("last", "best", PORTABLE_NAME))):
                remove_leftovers(folder)
        self.recorded = Recorded(self._update, self.codec.sample_rate / 2) if settings.record else None
        self.resumed_from = self._resume()

    def _optimizer_of_codec(self) -> torch.optim.AdamW:
        settings, of_codes = self.settings, set(self.codec.quantizer.code_parameters())
        groups = [
            {"params": [p for p in self.trained if p not in of_codes], "factor": 1.0},
            # What decays in the codes, a later layer would make up for: only their scale would drift.
            {
                "params": [p for p in self.trained if p in of_codes],
                "factor": settings.quantizer_rate,
                "weight_decay": 0.0,
            },
        ]
        return adamw(groups, settings.learning_rate, settings.betas, settings.weight_decay, settings.record)

    def fit(self) -> Path:
        """Train to the last step, or until Ctrl-C, SIGTERM or SIGUSR1; save, and return the model directory.

        Raises:
            CodecError: training breaks down again and again, or audio cannot be read.
            OSError: the first or the last state cannot be written.
        """
        settings = self.settings
        if self.device.type == "cpu":
            keep_freed_memory()
        with self._monitor() as monitor, self._loader(monitor) as loader, stop_requests() as stop, self.stream():
            self._begin(monitor)
            save_is_due = False
            while self.step < settings.steps and not self._should_stop(stop):
                self.means.add(self.train_step(loader.batch(self.step)))
                self.step += 1
                if self.step % settings.log_every == 0:
                    self._log(monitor, loader)
                    if self.broken.skipped_in_a_row >= settings.max_skipped_in_a_row:
                        self._return(monitor)
                        loader.restart()
                        continue
                is_due = self.step % settings.validate_every == 0 or self.step == settings.steps
                if is_due and self.ranks.is_first:
                    self._validate(monitor)
                save_is_due |= self.step % settings.save_every == 0
                if save_is_due and self._is_good():
                    with monitor.surviving(self.step, "saving the state"):
                        self.save()
                    save_is_due = False
            if self._is_good():
                self.save()
            elif not self._is_usable():
                self._end_with_last_good_state(monitor)
            if settings.steps <= self.quantizer_start:
                at = f"training.steps {settings.steps} end before training.quantizer_start {self.quantizer_start}"
                monitor.event(self.step, "quantizer", f"{at}: nothing was quantized, codes of this model mean nothing")
            directory = self.save_model("last")
        self.ranks.leave()
        return directory

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the codec, and of the discriminators once they have joined; returns scalars to log."""
        self._set_learning_rate()
        if self.step == 0 and self.settings.standardize_encoder and not self.settings.init:
            self.codec.encoder.standardize(self.ranks.gather(batch.wav))
        # What is random in a step depends on its number, whether the run was interrupted or not.
        torch.manual_seed(self.settings.seed + self.step)
        if self.recorded is None or self.step == self.quantizer_start:
            scalars = self._update(batch)
        else:
            scalars = self.recorded((self.step > self.quantizer_start, self.step >= self.adversarial_start), batch)
        self.ema.update(self.codec)
        scalars = dict(scalars)
        self.broken.add(scalars.pop("skipped"), scalars)
        return scalars

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """The part of a step that is the same for all steps of a phase."""
        settings = self.settings
        with self._autocast():
            latent = self.codec.encoder(batch.wav)  # (B, 1, T) -> (B, D, N)
            quantized, quantizer_loss, usage_loss = self._quantize(latent)
        loss, scalars, heard, fake = self.judge(quantized, batch)  # (B, D, N) -> (B, 1, T)
        loss = loss + self.commitment_weight * quantizer_loss
        scalars = {"batch/peak": batch.wav.abs().amax(), "loss/quantizer": quantizer_loss, **scalars}
        if settings.usage_weight and usage_loss is not None:
            loss = loss + settings.usage_weight * usage_loss
            scalars["loss/usage"] = usage_loss
        has_joined = self.step >= self.adversarial_start
        if has_joined:
            with self._autocast():
                joint = self.adversary.joint_losses(
                    *self._crop(heard, fake), settings.adversarial_weight, settings.feature_matching_weight
                )
            loss = loss + joint.generator
            self.ranks.average_gradients(self.adversary.discriminators.parameters())
            scalars |= {
                "loss/adversarial": joint.adversarial,
                "loss/feature_matching": joint.feature_matching,
                "loss/discriminator": joint.discriminator,
            }
        norms = {"gradient_norm/codec": self._backward(loss)}
        if has_joined:
            norms["gradient_norm/discriminators"] = self.adversary.clip_gradients()
        # Decided on the device, so that no step waits for it.
        is_skipped = (~torch.stack(list(norms.values())).isfinite().all()).float()
        self._descend(is_skipped)
        if has_joined:
            self.adversary.step(is_skipped)
        scalars |= {"loss/total": loss, **norms, "skipped": is_skipped}
        return {name: value.detach() for name, value in scalars.items()}

    def _quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Quantized latent and the quantizer's losses, the second where it has a weight."""
        if self.step < self.quantizer_start:
            return latent.float(), latent.new_zeros((), dtype=torch.float32), None
        if self.step == self.quantizer_start:
            self.codec.quantizer.match(self.ranks.gather(latent.detach()))
        codes, quantized, loss = self.codec.quantizer(latent)
        self.usage.add(codes, latent.isfinite().all())
        if not self.settings.usage_weight:
            return quantized, loss, None
        coded = self.codec.quantizer.remainder(latent, codes)
        return quantized, loss, self.codec.quantizer.usage_loss(coded, self.ranks.average)

    def judge(self, quantized: Tensor, batch: Batch) -> Judgement:
        """Decode the quantized latent (B, D, N) of a batch; all losses of its sound but the discriminators'."""
        settings, wav = self.settings, batch.wav
        with self._autocast():
            fake, log_pitch = self.codec.decoder.synthesize(quantized)  # (B, 1, N * hop), (B, N)
            fake = fake[..., : wav.shape[-1]]
        heard = wav
        if batch.bandwidth is not None:  # what a recording cannot tell is not judged
            heard, fake = (limit_band(sound, batch.bandwidth, self.codec.sample_rate) for sound in (wav, fake))
        spectral = self.spectral_loss(heard, fake)
        loss, scalars = settings.mel_weight * spectral.mel, {"loss/mel": spectral.mel}
        for name, weight, value_of in (
            ("pitch", settings.pitch_weight, lambda: self._pitch_loss(log_pitch, wav)),
            ("loudness", settings.loudness_weight, lambda: spectral.loudness),
            ("convergence", settings.convergence_weight, lambda: spectral.convergence),
            ("disturbance", settings.disturbance_weight, lambda: self.disturbance(heard, fake)),
            ("intelligibility", settings.intelligibility_weight, lambda: self.intelligibility(heard, fake)),
        ):
            if weight and (value := value_of()) is not None:
                loss = loss + weight * value
                scalars[f"loss/{name}"] = value
        return Judgement(loss, scalars, heard, fake)

    def _pitch_loss(self, log_pitch: Tensor | None, wav: Tensor) -> Tensor | None:
        """Of the pitch that the decoder states (B, N), where it states one."""
        return None if log_pitch is None else pitch_loss(log_pitch, wav, self.codec.decoder.config)

    def _crop(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The same random stretch of both, so that the discriminators, the costliest part, see less audio."""
        length = min(round(self.settings.adversarial_seconds * self.codec.sample_rate), real.shape[-1])
        start = torch.randint(real.shape[-1] - length + 1, (), device=real.device)
        samples = start + torch.arange(length, device=real.device)
        return real.index_select(-1, samples), fake.index_select(-1, samples)

    def _backward(self, loss: Tensor) -> Tensor:
        """Set and clip the codec's gradients; returns their norm before, which is NaN if the loss is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(1 + 0 * loss.detach())  # times 1; NaN if the loss is not finite, in all processes then
        self.ranks.average_gradients(self.trained)
        return torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm, foreach=True)

    def _descend(self, is_skipped: Tensor) -> None:
        """Update the codec, unless a scalar on its device is 1."""
        self.optimizer.found_inf = is_skipped  # type: ignore[attr-defined]  # read by fused updates
        self.optimizer.step()
        for buffer, original in self.frozen_buffers:  # such as the running means of a codebook
            buffer.copy_(original)

    def _set_learning_rate(self) -> None:
        factor = self._learning_rate_factor()
        for group in self.optimizer.param_groups:
            set_rate(group, factor * group["factor"] * self.settings.learning_rate)
        for group in self.adversary.optimizer.param_groups:
            set_rate(group, factor * self.config.adversary.learning_rate)

    def _learning_rate_factor(self) -> float:
        """Linear warm-up, a plateau, and a linear descent over the last `decay_steps`; half of it after each return."""
        settings = self.settings
        rise = min(1.0, (self.step - self.optimizer_start + 1) / max(settings.warmup_steps, 1))
        left = (settings.steps - self.step) / max(min(settings.decay_steps, settings.steps), 1)
        return rise * max(min(left, 1.0), settings.final_rate) * 0.5**self.num_returns

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # ------------------------------------------------------------------------------------------- watching and stopping

    def _begin(self, monitor: Monitor) -> None:
        """Say where the run stands, and write its state if it has none that is whole, which shows that one can."""
        latest, self.resumed_from = self.resumed_from, None  # its tensors are not needed any more
        monitor.event(self.step, "started", self._machine())
        if latest is None:
            for sentence in surprises(self.config):
                monitor.event(self.step, "discriminators", sentence)
        else:
            damage = f"{latest.damage}; " if latest.damage else ""
            monitor.event(self.step, "resumed", f"{damage}going on from {latest.name}, step {self.step}")
        if latest is None or latest.name != STATE_NAME:
            self.save(keep_previous=False)
        if self.ranks.is_first:
            check_room(self.run, self._num_state_bytes())
            settings = asdict(derived(self.config))
            if changes := differences(read_settings(self.run), settings):
                monitor.event(self.step, "settings", "; ".join(changes))
            write_json(self.run / CONFIG_NAME, settings)

    def _machine(self) -> str:
        """What trains, in words."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return (
            f"codec {__version__}, torch {torch.__version__}, Python {platform.python_version()}, processes: "
            f"{self.ranks.size}, device: {device}, threads: {torch.get_num_threads()}"
        )

    def _num_state_bytes(self) -> int:
        """Of a state once the optimizers have their two moments of everything that is trained."""
        codec, discriminators, trained = (
            sum(tensor.nbytes for tensor in tensors)
            for tensors in (
                self.codec.state_dict().values(),
                self.adversary.discriminators.state_dict().values(),
                self.trained,
            )
        )
        will_join = self.adversarial_start < self.settings.steps
        return codec + 3 * trained + (3 if will_join else 1) * discriminators  # the average counts like a moment

    def _monitor(self) -> Monitor:
        frames = self.config.data.batch_size * self.codec.num_frames(self.sampler.num_samples)
        attainable = attainable_perplexity(len(self.usage.counts), frames)
        watch = Watch(attainable, self.adversary.undecided_loss())
        return Monitor(self.run if self.ranks.is_first else None, self.step, self.settings.steps, watch)

    def _loader(self, monitor: Monitor) -> Loader:
        def warn(text: str) -> None:
            monitor.event(self.step, "data", text)

        return Loader(self.sampler, self.ranks, self.device, warn, self.config.data.workers)

    def stream(self) -> AbstractContextManager[object]:
        """Where steps are recorded, which cannot be the default stream."""
        if not self.settings.record:
            return nullcontext()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def _log(self, monitor: Monitor, loader: Loader) -> None:
        tensors = self.ranks.mean(self.means.take())
        if self.step > self.quantizer_start:  # before, nothing is quantized
            tensors |= CodeUsage.summarise(self.ranks.sum(self.usage.counts))
        rate = float(self.optimizer.param_groups[0]["lr"])
        numbers = {"learning_rate": rate, "data/waiting": loader.waiting()}
        monitor.log(self.step, tensors | {"skipped_steps": self.broken.skipped}, numbers)
        if explanation := self.broken.explain(self.ranks.sum(self.broken.counts)):
            monitor.event(self.step, "skipped", explanation)

    def _validate(self, monitor: Monitor) -> None:
        projection = getattr(self.codec.quantizer, "projection", None)  # W, where the codebook is C W
        monitor.log_codebook(self.step, self.usage.counts, None if projection is None else projection.weight)
        with monitor.surviving(self.step, "validation"):
            if not self._is_usable():
                raise CodecError("the last steps were skipped, and the model gives no sound")
            self.save_model("last")
            if self.held_out is None or self.step <= self.quantizer_start:  # its codes mean nothing before
                return
            result = validate(self.averaged_codec(), self.held_out, self.settings.validation_clips)
            monitor.log_validation(self.step, result)
            if result.score > self.best_score:
                self.save_model("best")
                self.best_score = result.score

    def _should_stop(self, stop: StopRequest) -> bool:
        """All processes must stop at the same step; asking them takes a message, so it is done every few steps."""
        if self.ranks.size == 1:
            return stop.is_made
        return self.step % STOP_EVERY == 0 and self.ranks.any(stop.is_made, self.device)

    def _is_good(self) -> bool:
        """Whether the last step was not skipped, so that its state is worth returning to. Waits for the device."""
        return not self.broken.skipped_in_a_row

    def _is_usable(self) -> bool:
        """Whether the last step was good, or skipped for another reason than weights that give no sound."""
        if self._is_good():
            return True
        samples = self.sampler.cache.clip(0)[: self.sampler.num_samples]
        wav = torch.tensor(samples / 32768, dtype=torch.float32, device=self.device)[None, None]
        try:
            with torch.no_grad():
                return bool(self.averaged_codec()(wav).wav.isfinite().all())
        except ModelError:  # of a latent or codes that are no numbers
            return False

    def _return(self, monitor: Monitor) -> None:
        """Go back to the last good state, with half the learning rate and other windows."""
        step, num_skipped = self.step, int(self.broken.skipped_in_a_row)
        if self.num_returns == self.settings.max_returns:
            raise CodecError(
                f"{self.run}: {num_skipped} steps in a row up to step {step} were skipped, and training has already "
                f"returned to an earlier state {self.num_returns} times; codec doctor {self.run} says more"
            )
        self.num_returns += 1
        self._resume()
        monitor.go_back(self.step)
        monitor.event(
            step,
            "return",
            f"{num_skipped} steps in a row were skipped; back to the state of step {self.step}, "
            f"with {0.5**self.num_returns:g} of the learning rate",
        )

    # ---------------------------------------------------------------------------------------------- saving and resuming

    def save(self, keep_previous: bool = True) -> None:
        """Write the state from which the run goes on exactly; if configured, also the one that travels.

        Args:
            keep_previous: keep the state before this one too.

        Raises:
            OSError: the system refuses; the state before stays.
        """
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
            "optimizer_start": self.optimizer_start,
            "num_returns": self.num_returns,
            "skipped_steps": int(self.broken.skipped),
            "best": self.best_score,  # another name than up to 0.16, where it was a PESQ
            "settings": defining_settings(self.config),
        }
        save_state(self.run / STATE_NAME, parts, counters, self.run / PREVIOUS_NAME if keep_previous else None)
        if self.settings.portable:
            kept = ["codec", "ema", "discriminators"]
            kept += ["optimizer", "discriminator_optimizer"] if self.settings.portable_optimizers else []
            save_portable(self.run / PORTABLE_NAME, {name: parts[name] for name in kept}, counters)

    def _end_with_last_good_state(self, monitor: Monitor) -> None:
        """Go back to it, for its model."""
        step = self.step
        self._resume()
        if self.step == 0:
            raise CodecError(
                f"{self.run}: the last steps were skipped, their model gives no sound, and no state but the first was "
                f"good; codec doctor {self.run} says more"
            )
        sentence = f"the last steps were skipped, and their model gives no sound; it is that of step {self.step}"
        monitor.event(step, "end", sentence)

    def save_model(self, name: str) -> Path:
        """Write the averaged weights as a model directory below the run, discriminators beside them if they learned."""
        directory = self.run / name
        if self.ranks.is_first:
            weights.save(self.averaged_codec(), directory)
            if self.adversary.has_learned or self.step > self.adversarial_start:
                self.adversary.save_weights(directory / DISCRIMINATORS_NAME)
                write_json(directory / DISCRIMINATORS_CONFIG_NAME, asdict(self.config.adversary.discriminators))
            else:  # what there is belonged to other weights
                for file in (DISCRIMINATORS_NAME, DISCRIMINATORS_CONFIG_NAME):
                    (directory / file).unlink(missing_ok=True)
        return directory

    def averaged_codec(self) -> Codec:
        """A copy of the codec with the averaged weights as they are stored, in eval mode.

        They are rounded to 16 bit, unless some are too large for that, or frozen parts, and with them the codes, would
        change.
        """
        codec = Codec(self.config.model).to(self.device)
        codec.load_state_dict(self.codec.state_dict())
        self.ema.copy_to(codec)
        numbers = [tensor for tensor in codec.state_dict().values() if tensor.is_floating_point()]
        frozen = [tensor for part in self.settings.freeze for tensor in getattr(codec, part).state_dict().values()]
        kept = [tensor for tensor in frozen if tensor.is_floating_point()]
        are_kept = all(torch.equal(tensor.half().to(tensor.dtype), tensor) for tensor in kept)
        if are_kept and all(tensor.half().isfinite().all() for tensor in numbers):
            for tensor in numbers:
                tensor.copy_(tensor.half())
        return codec.eval()

    def _resume(self) -> Latest | None:
        """Take over the run's newest whole state and return it; None if it has none."""
        latest = load_latest(self.run)
        if latest is None:
            return None
        self._require_own(latest)
        parts, counters = latest.parts, latest.counters
        if self.recorded is not None:
            self.recorded.forget()
        of_codec = parts["codec"]
        if latest.name == PORTABLE_NAME:  # whose 16 bits are not quite what the frozen parts have
            frozen = tuple(f"{part}." for part in self.settings.freeze)
            of_codec |= {name: value for name, value in self.codec.state_dict().items() if name.startswith(frozen)}
        self.codec.load_state_dict(of_codec)
        self.ema.shadow = {name: tensor.to(self.device) for name, tensor in parts["ema"].items()}
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.adversary.discriminators.load_state_dict(parts["discriminators"])
        restore_optimizer(self.adversary.optimizer, parts.get("discriminator_optimizer", {}))
        self.usage.counts.zero_()
        if self.ranks.is_first and "usage" in parts:  # where all processes' counts are together
            self.usage.counts.copy_(parts["usage"]["counts"])
        self.step = counters["step"]
        self.ema.num_updates = counters["ema_updates"]
        self.optimizer_start = counters.get("optimizer_start", 0) if "optimizer" in parts else self.step
        self.num_returns = max(self.num_returns, counters.get("num_returns", 0))
        self.sampler.seed = self.settings.seed + self.num_returns
        self.broken.skipped.fill_(max(int(self.broken.skipped), counters["skipped_steps"]))
        self.broken.skipped_in_a_row.zero_()
        # Without one, as up to 0.16, the next model validated is the best. After a return `best` stays what it is.
        self.best_score = max(self.best_score, counters.get("best", -math.inf))
        return latest

    def _require_own(self, latest: Latest) -> None:
        """Refuse a state of other settings, or one that lacks something that this run has, or has it otherwise."""
        saved = latest.counters.get("settings", {})
        if isinstance(saved, dict) and "model" in saved:  # by an older version perhaps, with fewer settings
            saved["model"] = CodecConfig.from_dict(saved["model"]).to_dict()
        if changes := differences(saved, defining_settings(self.config)):
            raise ConfigError(
                f"{self.run}: its state was made with other settings, {'; '.join(changes)}; "
                "go back to those, or choose another training.run"
            )
        complaint = f"{self.run / latest.name}: is not a state of this run (delete it, or choose another training.run)"
        for name in ("step", "ema_updates", "skipped_steps"):
            if not isinstance(latest.counters.get(name), int):
                raise ModelError(f"{complaint}: lacks {name}")
        ours = {
            "codec": self.codec.state_dict(),
            "ema": self.ema.shadow,
            "discriminators": self.adversary.discriminators.state_dict(),
        }
        optimizers = {"optimizer": self.optimizer, "discriminator_optimizer": self.adversary.optimizer}
        for part, optimizer in optimizers.items():  # whose state may lack any parameter
            theirs = latest.parts.get(part, {})
            ours[part] = {name: like for name, like in like_flattened(optimizer).items() if name in theirs}
        expected, found = (
            {f"{part}/{name}": tensor for part in ours for name, tensor in parts.get(part, {}).items()}
            for parts in (ours, latest.parts)
        )
        weights.check_fit(expected, found, complaint)

    def _open_cache(self, split: str, sources: list[Path]) -> AudioCache:
        with self.ranks.first_alone(), CountLine(self.ranks.is_first) as progress:
            return open_cache(sources, Path(self.config.data.cache) / split, self.codec.sample_rate, progress)
