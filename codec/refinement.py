"""Codes that sound better than the encoder's, found by listening to what they decode to.

An encoder states its latent at one glance. Here the latent goes on from there: it is quantized and decoded, the loss of
what is heard is followed back to it, and it takes a step against that slope. Codes stay codes: any decoder of the model
plays them, at the same bit rate.

Source: semi-amortized inference (Kim et al., arXiv:1802.02550), with the straight-through gradient of VQ-VAE
(arXiv:1711.00937).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import ModelError
from codec.limits import refining_steps
from codec.model.codec import Codec, require_refinable
from codec.model.encoder import NO_SAMPLE
from codec.model.layers import State
from codec.streaming import OfModel, checked_model, samples_of_piece
from codec.training.losses import MelLossConfig, SpectralLoss
from codec.training.perception import Disturbance, Intelligibility

SEGMENT_FRAMES = 384
"""Frames whose codes are refined, and then decided, together."""
FRAMES_AHEAD = 32
"""Further frames that are refined with them, as they sound different after other codes. They are decided later."""
FRAMES_BEFORE = 40
"""Frames before them whose sound is heard with theirs: spectra of the first look back so far."""

STEP_SIZE = 1.0  # of the first step, in rms errors of the quantizer; later ones are smaller
SMALLEST_SLOPE = 1e-12  # so that silence, which has none, stays as it is
PULL = 0.3  # share of the way back to the quantized latent after each step, so that it stays where codes are

MEL_WEIGHT, CONVERGENCE_WEIGHT, DISTURBANCE_WEIGHT, INTELLIGIBILITY_WEIGHT = 15.0, 30.0, 10.0, 60.0


class RefiningEncoder(OfModel):
    """Turns sound that arrives in pieces into codes, as `codec.StreamEncoder` does, but refines them first.

    With the boxed model codes come 5 s at a time, half a second after the last of their sound. Memory does not depend
    on the length of the signal. The codes depend on the device and the number of threads, as sums of floats do. It
    takes one signal, and has no `state_dict`.

    Args:
        codec: a model of the stream family.
        steps: in which codes are refined, 0 to `codec.limits.MOST_REFINING_STEPS`. The first few do most. Whatever
            they find, no stretch gets a larger loss than with the codes that the encoder would go on with.

    Raises:
        ModelError: the model is of another family, in training mode, or was made in inference mode.
        ConfigError: no such number of steps.
    """

    def __init__(self, codec: Codec, steps: SupportsIndex):
        require_refinable(checked_model(codec).config)
        if any(tensor.is_inference() for tensor in codec.state_dict().values()):
            raise ModelError("codes can be refined only for models that were made outside torch.inference_mode")
        if codec.training:  # where the decoder draws other noise each time
            raise ModelError("codes can be refined only for models in eval mode; call model.eval()")
        self.codec, self.steps = codec, refining_steps(steps)
        with _recording(), torch.device("cpu"):
            self.listener = Listener(codec.sample_rate).to(codec.device)
        self.reset()

    def reset(self) -> None:
        """Forget the signal, and the codes still due: the encoder is as new."""
        empty = torch.zeros(0, dtype=torch.float32, device=self.codec.device)
        self._wav = empty  # from the first frame on whose code is not decided
        self._before = empty, empty  # the last of what is decided, as it was and as it sounds
        self._encoding: State = {}
        self._decoding: State = {}

    def push(self, wav: Tensor) -> Tensor:
        """Feed samples (T,) or (1, 1, T) float32, T >= 0, get the codes that are now decided: (n,) int64.

        Whatever goes wrong leaves the encoder as it was.

        Raises:
            AudioError: no tensor of floating-point samples, another shape, NaN, infinity or values beyond +-100.
        """
        wav = samples_of_piece(wav).detach()
        going_on = copy.copy(self)
        with _recording():
            codes = going_on._push(wav)
        self.__dict__ = going_on.__dict__
        return codes

    def flush(self) -> Tensor:
        """End the signal: the codes still due, (n,) int64. The encoder is then ready for another signal."""
        with _recording():
            codes = self._end()
        self.reset()
        return codes

    def _push(self, wav: Tensor) -> Tensor:
        self._wav = torch.cat([self._wav, wav.to(self.codec.device, torch.float32)])
        hop, codes = self.codec.hop_length, [torch.zeros(0, dtype=torch.int64, device="cpu")]
        num_samples = (SEGMENT_FRAMES + FRAMES_AHEAD) * hop
        whole = num_samples + self.codec.encoder.lookahead_samples
        while len(self._wav) >= whole:
            decided = self._refined(self._wav[:whole], num_samples)[:, :SEGMENT_FRAMES]
            codes.append(decided[0].cpu())
            self._go_on(decided)
        return torch.cat(codes)

    def _end(self) -> Tensor:
        num_samples, num_frames = len(self._wav), self.codec.num_frames(len(self._wav))
        if not num_frames:
            return torch.zeros(0, dtype=torch.int64, device="cpu")
        end = num_frames * self.codec.hop_length + self.codec.encoder.lookahead_samples
        return self._refined(F.pad(self._wav, (0, end - num_samples), value=NO_SAMPLE), num_samples)[0].cpu()

    def _go_on(self, codes: Tensor) -> None:
        """Behind the frames that are decided by codes (1, n)."""
        codec, num_samples = self.codec, codes.shape[1] * self.codec.hop_length
        with torch.no_grad():
            quantized = codec.quantizer.lookup(codes, self._decoding)
            sound = codec.decoder(quantized, self._decoding)[0, 0]
            ahead = num_samples + codec.encoder.lookahead_samples
            codec.encoder(self._wav[None, None, :ahead], self._encoding)
            # The quantized latent makes the quantizer choose the same codes again, and remember them.
            codec.quantizer.encode(quantized, self._encoding)
            codec.quantizer.settle(self._encoding)
        reference, estimate = self._before
        kept = FRAMES_BEFORE * codec.hop_length
        decided, self._wav = self._wav[:num_samples], self._wav[num_samples:]
        self._before = torch.cat([reference, decided])[-kept:], torch.cat([estimate, sound])[-kept:]

    def _refined(self, wav: Tensor, num_samples: int) -> Tensor:
        """The codes (1, N) with the least loss of all that the latent of `wav` comes to on its way.

        Args:
            wav: what the encoder needs for N frames.
            num_samples: of it are heard; the others only lie ahead, or behind the signal's end.
        """
        reference = torch.cat([self._before[0], wav[:num_samples]])
        with torch.no_grad():
            latent = self.codec.encoder(wav[None, None], self._encoding.copy()).float()  # (1, D, N)
        found: list[tuple[float, Tensor]] = []
        error = 0.0
        for step in range(self.steps + 1):
            codes, quantized, sound = self._decoded(latent)
            loss = self.listener(reference, torch.cat([self._before[1], sound[:num_samples]]))
            found.append((loss.item(), codes))
            if step == self.steps:
                break
            (slope,) = torch.autograd.grad(loss, quantized)
            quantized = quantized.detach()
            if step == 0:
                error = (latent - quantized).square().mean().sqrt().item()
            # Slopes differ by orders of magnitude between loud frames and soft ones: their roots still say which
            # values matter most, and leave something to do for all.
            direction = slope.sign() * slope.abs().sqrt()
            size = STEP_SIZE * error * (1 - step / (self.steps + 1))
            scale = direction.square().mean().sqrt() + SMALLEST_SLOPE
            latent = (latent - size / scale * direction).lerp(quantized, PULL)
        return min(found, key=lambda each: each[0])[1]

    def _decoded(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (1, N), the quantized latent (1, D, N), and its sound (N * hop,), with its gradient."""
        encoding, decoding = self._encoding.copy(), self._decoding.copy()
        quantizer = self.codec.quantizer
        with torch.no_grad():
            codes = torch.cat([quantizer.encode(latent, encoding), quantizer.finish(encoding).to(latent.device)], dim=1)
            quantized = quantizer.lookup(codes, decoding)
        quantized.requires_grad_()
        return codes, quantized, self.codec.decoder(quantized, decoding)[0, 0]


@contextmanager
def _recording() -> Iterator[None]:
    """Follow losses back, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Listener(torch.nn.Module):
    """The loss of a sound: those of training without discriminators, in a mixture chosen on `dev` (recipes/stream).

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        self.spectral = SpectralLoss(MelLossConfig(), sample_rate)
        self.disturbance = Disturbance(sample_rate)
        self.intelligibility = Intelligibility(sample_rate)
        spectra = (size for size, *_ in MelLossConfig().resolutions)
        self.shortest = max(*spectra, Disturbance.shortest(sample_rate), Intelligibility.shortest(sample_rate))

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """(T,) twice -> scalar. What is too short to be judged is judged with silence behind it."""
        missing = max(self.shortest - len(reference), 0)
        reference, estimate = (F.pad(wav, (0, missing))[None] for wav in (reference, estimate))
        spectral = self.spectral(reference, estimate)
        return (
            MEL_WEIGHT * spectral.mel
            + CONVERGENCE_WEIGHT * spectral.convergence
            + DISTURBANCE_WEIGHT * self.disturbance(reference, estimate)
            + INTELLIGIBILITY_WEIGHT * self.intelligibility(reference, estimate)
        )
