"""SimVQ inside a prediction loop: codes describe what the codes before them do not tell.

The latent of speech moves slowly: codes that describe each frame anew spend bits on what is already known. Here a frame
is predicted from the last few codes, and so is how far it may be from that prediction: the code is chosen for what
remains, in units of that distance. Within a vowel codes are thus fine corrections, at its end large ones. Both
predictions are moving averages over codes, not over reconstructions, so a code has no say beyond a few frames: sound
can be decoded from anywhere, a lost code is soon forgotten, and the decoder's side is a sum of table rows.

Since a code has a say in what follows, codes are chosen by what they lead to, a few frames later (`beam`).

Legend: B batch, N frames, D width of the latent, K codes, P frames that a prediction looks back.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError, ModelError
from codec.model import beam
from codec.model.layers import State
from codec.model.quantizer import QuantizerOutput, SimVQ, SimVQConfig

LARGEST_GAIN = 20.0
"""And 1 / it the smallest. Gains of speech lie well within; those of damaged codes stay harmless."""

SMALLEST_SPREAD = 1e-3
"""Of a latent's mean variance: what varies less along an axis is not relied on for prediction."""


@dataclass
class PredictiveSimVQConfig(SimVQConfig):
    """Settings of `PredictiveSimVQ`."""

    kind: str = "predictive"
    memory: int = 8  # frames that a prediction looks back
    gain_width: int = 64  # inner width of the network that says what a code means for the gains after it
    num_paths: int = 8  # sequences of codes that are followed at once
    delay: int = 3  # frames until a code is decided; 0 with one path: the nearest code

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"memory": 1, "gain_width": 1, "num_paths": 1, "delay": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"quantizer.{name} must be at least {least}, got {getattr(self, name)}")


class PredictiveSimVQ(SimVQ):
    """SimVQ of the part of a latent (B, D, N) that its past codes do not predict, in units of a gain that they do.

    With e_n the effective code of frame n, a row of C W + b, and c_n the row of the frozen C that it is made of, the
    gain, the prediction, the code and the quantized latent of a frame are

        log g_n = sum_i f_i(c_{n-i}),   p_n = sum_i g_{n-i} e_{n-i} A_i,   i = 1 .. P,
        q_n = p_n + g_n e_n,            k_1 .. k_N = argmin sum_n ||z_n - q_n||^2 ,

    with f a small network. The minimum is sought among `num_paths` sequences, and a code is decided `delay` frames
    later; with one path and no delay it is the one nearest to (z_n - p_n) / g_n. The loss is that of `SimVQ` with q_n
    in the place of the code; it trains A_i and f too. Codes are found frame by frame, all else at once.

    Args:
        memory: P.
        gain_width: inner width of f.
        num_paths, delay: of the search; what codes mean does not depend on them.
        Others are as for `SimVQ`.

    Attributes:
        taps: (P, D, D), the A_i; zero at first.
        gain: f, (*, D) -> (*, P); zero at first. With both zero this is `SimVQ`.

    Source: moving-average predictive vector quantization as in ITU-T G.729, section 3.2.4, there of line spectra; gains
    told by past codes as in ITU-T G.728, section 3.8, there from the energy of the excitation.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        memory: int = 8,
        gain_width: int = 64,
        num_paths: int = 8,
        delay: int = 3,
        **settings: object,
    ):
        super().__init__(codebook_size, codebook_dim, **settings)  # type: ignore[arg-type]
        self.memory, self.num_paths, self.delay = memory, num_paths, delay
        self.taps = nn.Parameter(torch.zeros(memory, codebook_dim, codebook_dim))
        self.gain = nn.Sequential(nn.Linear(codebook_dim, gain_width), nn.GELU(), nn.Linear(gain_width, memory))
        self._forget_gains()

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """As `SimVQ.forward`, for (B, D, N)."""
        with torch.autocast(latent.device.type, enabled=False):
            vectors = self._checked(latent)  # (B, N, D)
            codes = self._choose(vectors)
            quantized = self._assemble(codes) if self.training else self._look_up(codes, self._past(None, len(codes)))
            loss = self._loss(vectors, quantized)
            if self.training:
                quantized = self._pass_gradient(vectors, quantized)
        return QuantizerOutput(codes, quantized.transpose(1, 2), loss)

    def encode(self, latent: Tensor, state: State | None = None, num_frames: list[int] | None = None) -> Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            return self._choose(self._checked(latent), state, num_frames)

    def finish(self, state: State) -> Tensor:
        if self not in state:
            return super().finish(state)
        paths, num_frames = state.pop(self)
        due = min(self.delay, num_frames)
        codes: Tensor = paths.undecided[:: self.num_paths, self.delay - due :]
        return codes.clone()

    def lookup(self, codes: Tensor, state: State | None = None) -> Tensor:
        """The quantized latent of codes: (B, N) integers in [0, K) -> (B, D, N) float32.

        With a state, of the frames after the last call's: bit for bit the same in whatever pieces codes arrive.

        Raises:
            ModelError: codes that are no integers, of another rank, or a code outside [0, K).
        """
        codes = self.checked_codes(codes)
        if codes.ndim != 2:
            raise ModelError(f"this quantizer takes codes of shape (B, N), got {tuple(codes.shape)}")
        past = self._past(state, len(codes))
        quantized = self._look_up(codes, past)
        self._remember(state, past, codes)
        return quantized.transpose(1, 2)

    def remainder(self, latent: Tensor, codes: Tensor) -> Tensor:
        """What is left of a latent (B, D, N) once its codes (B, N) have predicted it, in units of the gain."""
        with torch.no_grad():
            gains = self._gains(codes)
            predicted = self._predict(gains * F.embedding(codes, self.effective_codebook()))
        return (latent.float() - predicted.transpose(1, 2)) / gains.transpose(1, 2)

    def code_parameters(self) -> list[nn.Parameter]:
        others = {self.taps, *self.gain.parameters()}
        return [parameter for parameter in super().code_parameters() if parameter not in others]

    def _checked(self, latent: Tensor) -> Tensor:
        if latent.ndim != 3:
            raise ModelError(
                f"this quantizer takes latents of shape (B, {self.codebook_dim}, N), got {tuple(latent.shape)}"
            )
        return super()._checked(latent)

    @torch.no_grad()
    def _choose(self, vectors: Tensor, state: State | None = None, num_frames: list[int] | None = None) -> Tensor:
        """Codes of vectors (B, N, D), as `encode` gives them."""
        batch, length, _ = vectors.shape
        codebook = self.effective_codebook()
        tables = beam.Tables(
            self._derive("search", lambda: beam.search_table(codebook)),
            self._derive("search echoes", lambda: self._make_search_echoes(codebook)),
        )
        with torch.inference_mode():  # which makes the many small steps a fifth faster
            paths, num_before = (state or {}).get(self) or (beam.start(batch, self.num_paths, self.delay, tables), 0)
            paths, decided, pending = beam.follow(vectors, paths, tables, LARGEST_GAIN)
        decided = decided[:, max(self.delay - num_before, 0) :]
        if state is not None:
            state[self] = (paths, num_before + length)
            return decided.clone()
        codes = torch.zeros(batch, length, dtype=torch.int64, device=vectors.device)
        for item, end in enumerate(num_frames or [length] * batch):  # where the best path gives the codes still due
            due = min(self.delay, end)
            codes[item, : end - due] = decided[item, : end - due]
            codes[item, end - due : end] = pending[item, end - 1, self.delay - due :]
        return codes

    def _assemble(self, codes: Tensor) -> Tensor:
        """q of codes (B, N) with its gradient: (B, N, D)."""
        vectors = self._gains(codes) * self._project(F.embedding(codes, self.codebook).float())
        return vectors + self._predict(vectors)

    def _predict(self, vectors: Tensor) -> Tensor:
        """What the code vectors (B, N, D) before each frame, times their gains, say about it: (B, N, D)."""
        num_frames, memory = vectors.shape[1], self.memory
        before = F.pad(vectors, (0, 0, memory, 0))
        terms = [
            before[:, memory - i : memory - i + num_frames] @ self.taps[i - 1].float() for i in range(1, memory + 1)
        ]
        return torch.stack(terms).sum(0)

    def _gains(self, codes: Tensor) -> Tensor:
        """The gain of each frame of codes (B, N), with its gradient: (B, N, 1)."""
        num_frames, memory = codes.shape[1], self.memory
        before = F.pad(self._log_gain_echoes(F.embedding(codes, self.codebook)), (0, 0, memory, 0))  # (B, P + N, P)
        terms = [before[:, memory - i : memory - i + num_frames, i - 1] for i in range(1, memory + 1)]
        logs = torch.stack(terms).sum(0)
        return logs.clamp(-math.log(LARGEST_GAIN), math.log(LARGEST_GAIN)).exp().unsqueeze(-1)

    def _log_gain_echoes(self, rows: Tensor) -> Tensor:
        """What rows of C (*, D) mean for the logarithm of the P gains after them: (*, P)."""
        result: Tensor = self.gain(rows.float() * self.codebook_dim**0.5)  # the network sees unit variance
        return result

    def _look_up(self, codes: Tensor, past: Tensor) -> Tensor:
        """q of codes (B, N) after those in `past`, without gradient: (B, N, D).

        Sums and products of table rows, always in this order: a product of matrices would round differently for other
        numbers of frames.
        """
        memory, num_frames = self.memory, codes.shape[1]
        with torch.no_grad():
            codebook = self.effective_codebook()
            echoes, gain_echoes = self._echoes(codebook), self._gain_echoes()
            seen = torch.cat([past, codes], dim=1)  # (B, 2 P + N)
            gains = torch.ones(len(codes), memory + num_frames, 1).to(codebook)  # of all but the first P
            for i in range(1, memory + 1):
                gains *= F.embedding(seen[:, memory - i : 2 * memory - i + num_frames], gain_echoes[:, i - 1 : i])
            gains = gains.clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
            quantized = gains[:, memory:] * F.embedding(codes, codebook)
            for i in range(1, memory + 1):
                before = slice(2 * memory - i, 2 * memory - i + num_frames)
                gain = gains[:, memory - i : memory - i + num_frames]
                quantized = quantized + gain * F.embedding(seen[:, before], echoes[:, i - 1])
            return quantized

    def _echoes(self, codebook: Tensor) -> Tensor:
        """What each code says about the P frames after it: (K, D) -> (K + 1, P, D), zeros last, for no code."""

        def make() -> Tensor:
            taps = self.taps.float().transpose(0, 1).flatten(1)  # (D, P * D)
            return F.pad((codebook @ taps).unflatten(1, (self.memory, self.codebook_dim)), (0, 0, 0, 0, 0, 1))

        return self._derive("echoes", make)

    def _gain_echoes(self) -> Tensor:
        """The factors by which each code changes the P gains after it: (K + 1, P), ones last, for no code."""
        return self._derive("gain echoes", lambda: F.pad(self._log_gain_echoes(self.codebook), (0, 0, 0, 1)).exp())

    def _make_search_echoes(self, codebook: Tensor) -> Tensor:
        """What each code says about the P frames after it and about the logarithms of their gains: (K, P, D + 1)."""
        return torch.cat([self._echoes(codebook)[:-1], self._log_gain_echoes(self.codebook)[..., None]], dim=-1)

    def _forget_gains(self) -> None:
        nn.init.zeros_(self.gain[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.gain[-1].bias)  # type: ignore[arg-type]

    def _past(self, state: State | None, batch: int) -> Tensor:
        """The codes of the 2 P frames before, of which P decide the gains of the others: (B, 2 P), K for no code."""
        if state is not None and self in state:
            return state[self]
        return torch.full((batch, 2 * self.memory), self.codebook_size, device=self.taps.device)

    def _remember(self, state: State | None, past: Tensor, codes: Tensor) -> None:
        if state is not None:
            state[self] = torch.cat([past, codes], dim=1)[:, -2 * self.memory :]

    @torch.no_grad()
    def match(self, latent: Tensor) -> None:
        """Set taps and projection to what suits a latent (B, D, N), once, before training with them starts.

        The latent is taken for an autoregression z_n = m + (z_{n-1} - m) R + e_n: the taps become R, R^2, ..., the
        codes get the covariance of e, and all gains are 1. Items with NaN or infinity are left out; with too few frames
        nothing is changed.
        """
        frames = latent.double().transpose(1, 2)  # so that all processes find the same float32 values
        frames = frames[torch.isfinite(frames).all(dim=(1, 2))]  # (B, N, D)
        if frames[:, 1:].numel() < 2 * self.codebook_dim**2:
            return
        mean = frames.mean(dim=(0, 1))
        before, after = ((part - mean).flatten(0, 1) for part in (frames[:, :-1], frames[:, 1:]))
        covariance = before.T @ before
        ridge = SMALLEST_SPREAD * covariance.diagonal().mean() * torch.eye(len(mean)).to(mean)
        transition = torch.linalg.solve(covariance + ridge, before.T @ after)  # R
        powers = [transition]
        for _ in range(1, self.memory):
            powers.append(powers[-1] @ transition)
        taps = torch.stack(powers)
        self.taps.copy_(taps)
        self._forget_gains()
        # A latent that stays at m is made of codes that stay at m (1 + sum of the taps)^-1.
        offset = torch.linalg.solve((torch.eye(len(mean)).to(mean) + taps.sum(0)).T, mean)
        self._match((after - before @ transition + offset).float())
