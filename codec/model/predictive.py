"""SimVQ inside a prediction loop: codes describe what the codes before them do not tell.

The latent of speech moves slowly: codes that describe each frame anew spend bits on what is already known. Here a frame
is predicted from the code vectors of the last few frames, and the code is chosen for what remains. The prediction is a
moving average of code vectors, not of reconstructions, so a code has no say beyond those few frames: sound can be
decoded from anywhere, a lost code is soon forgotten, and the decoder's side is one short filter.

Legend: B batch, N frames, D width of the latent, K codes, P frames that a prediction looks back.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError, ModelError
from codec.model.layers import State
from codec.model.quantizer import QuantizerOutput, SimVQ, SimVQConfig
from codec.model.search import half_squared_norms
from codec.model.timeconv import DerivedWeight

if TYPE_CHECKING:
    from typing_extensions import Self

SMALLEST_SPREAD = 1e-3
"""Of a latent's mean variance: what varies less along an axis is not relied on for prediction."""


@dataclass
class PredictiveSimVQConfig(SimVQConfig):
    """Settings of `PredictiveSimVQ`."""

    kind: str = "predictive"
    memory: int = 4  # frames that a prediction looks back

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ConfigError(f"quantizer.memory must be at least 1, got {self.memory}")


class PredictiveSimVQ(SimVQ):
    """SimVQ of the part of a latent (B, D, N) that its past codes do not predict.

    With e_n the effective code of frame n, a row of C W + b, the quantized latent and the code are

        q_n = e_n + sum_i e_{n-i} A_i,  i = 1 .. P,      k_n = argmin_k ||z_n - sum_i e_{n-i} A_i - (C W + b)_k||^2 ,

    so the error of a frame is that of one vector quantization, and errors do not add up. The loss is that of `SimVQ`
    with q_n in the place of the code; it trains the taps A_i too. Codes are found frame by frame, all else at once.

    Args:
        memory: P.
        Others are as for `SimVQ`.

    Attributes:
        taps: (P, D, D), the A_i; zero at first, which is `SimVQ`.

    Source: moving-average predictive vector quantization as in ITU-T G.729, section 3.2.4, there of line spectra.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, *, memory: int = 4, **settings: object):
        super().__init__(codebook_size, codebook_dim, **settings)  # type: ignore[arg-type]
        self.memory = memory
        self.taps = nn.Parameter(torch.zeros(memory, codebook_dim, codebook_dim))
        self._kept_echoes = DerivedWeight()

    def forward(self, latent: Tensor, state: State | None = None) -> QuantizerOutput:
        """As `SimVQ.forward`, for (B, D, N); with a state, of the frames after the last call's."""
        with torch.autocast(latent.device.type, enabled=False):
            vectors = self._checked(latent)  # (B, N, D)
            past = self._past(state, len(vectors))
            codes = self._choose(vectors, past)
            quantized = self._assemble(codes) if self.training else self._look_up(codes, past)
            self._remember(state, past, codes)
            loss = self._loss(vectors, quantized)
            if self.training:
                quantized = self._pass_gradient(vectors, quantized)
        return QuantizerOutput(codes, quantized.transpose(1, 2), loss)

    def lookup(self, codes: Tensor, state: State | None = None) -> Tensor:
        """The quantized latent of codes: (B, N) integers in [0, K) -> (B, D, N) float32.

        With a state, of the frames after the last call's: bit for bit the same in whatever pieces codes arrive.

        Raises:
            ModelError: codes that are no integers, of another rank, or a code outside [0, K).
        """
        self._check_codes(codes)
        if codes.ndim != 2:
            raise ModelError(f"this quantizer takes codes of shape (B, N), got {tuple(codes.shape)}")
        past = self._past(state, len(codes))
        quantized = self._look_up(codes.long(), past)
        self._remember(state, past, codes.long())
        return quantized.transpose(1, 2)

    def remainder(self, latent: Tensor, codes: Tensor) -> Tensor:
        """What is left of a latent (B, D, N) once the codes (B, N) before each frame have had their say."""
        with torch.no_grad():
            predicted = self._predict(F.embedding(codes, self.effective_codebook()))
        return latent.float() - predicted.transpose(1, 2)

    def code_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in super().code_parameters() if parameter is not self.taps]

    def _checked(self, latent: Tensor) -> Tensor:
        if latent.ndim != 3:
            raise ModelError(
                f"this quantizer takes latents of shape (B, {self.codebook_dim}, N), got {tuple(latent.shape)}"
            )
        return super()._checked(latent)

    @torch.no_grad()
    def _choose(self, vectors: Tensor, past: Tensor) -> Tensor:
        """Codes (B, N) of vectors (B, N, D), one frame after the other; `past` as `_past` gives it."""
        (batch, num_frames, width), memory = vectors.shape, self.memory
        codebook = self.effective_codebook()
        half_norms, echoes = half_squared_norms(codebook), self._echoes(codebook)
        # What the frames so far say about each frame, from the first of the past on.
        predicted = vectors.new_zeros(batch, memory + num_frames + memory, width)
        for n in range(memory):
            predicted[:, n + 1 : n + 1 + memory] += echoes[past[:, n]]
        codes = torch.empty(num_frames, batch, dtype=torch.int64, device=vectors.device)
        for n in range(num_frames):
            rest = vectors[:, n] - predicted[:, memory + n]  # (B, D)
            code = codes[n] = torch.addmm(half_norms, rest, codebook.T, alpha=-1).argmin(1)
            predicted[:, memory + n + 1 : memory + n + 1 + memory] += echoes[code]
        return codes.T.contiguous()

    def _assemble(self, codes: Tensor) -> Tensor:
        """q of codes (B, N) with its gradient: (B, N, D)."""
        vectors = self._project(F.embedding(codes, self.codebook).float())
        return vectors + self._predict(vectors)

    def _predict(self, vectors: Tensor) -> Tensor:
        """What the code vectors (B, N, D) before each frame say about it: (B, N, D)."""
        num_frames, memory = vectors.shape[1], self.memory
        before = F.pad(vectors, (0, 0, memory, 0))
        return torch.stack(
            [before[:, memory - i : memory - i + num_frames] @ self.taps[i - 1].float() for i in range(1, memory + 1)]
        ).sum(0)

    def _look_up(self, codes: Tensor, past: Tensor) -> Tensor:
        """q of codes (B, N) after those in `past`, without gradient: (B, N, D)."""
        num_frames, memory = codes.shape[1], self.memory
        with torch.no_grad():
            codebook = self.effective_codebook()
            quantized, echoes = F.embedding(codes, codebook), self._echoes(codebook)
            before = torch.cat([past, codes], dim=1)
            # Sums of table rows, always in this order: a product of matrices would round differently for other lengths.
            for i in range(1, memory + 1):
                quantized = quantized + F.embedding(before[:, memory - i : memory - i + num_frames], echoes[:, i - 1])
            return quantized

    def _echoes(self, codebook: Tensor) -> Tensor:
        """What each code says about the P frames after it: (K, D) -> (K + 1, P, D), zeros last, for no code."""
        with torch.no_grad():
            if self.training:
                return self._make_echoes(codebook)
            return self._kept_echoes.get(self._sources(), lambda: self._make_echoes(codebook))

    def _make_echoes(self, codebook: Tensor) -> Tensor:
        taps = self.taps.float().transpose(0, 1).flatten(1)  # (D, P * D)
        echoes = (codebook @ taps).unflatten(1, (self.memory, self.codebook_dim))
        return F.pad(echoes, (0, 0, 0, 0, 0, 1))

    def _past(self, state: State | None, batch: int) -> Tensor:
        """The codes of the P frames before, (B, P); K where there were none."""
        if state is not None and self in state:
            return state[self]
        return torch.full((batch, self.memory), self.codebook_size, device=self.taps.device)

    def _remember(self, state: State | None, past: Tensor, codes: Tensor) -> None:
        if state is not None:
            state[self] = torch.cat([past, codes], dim=1)[:, -self.memory :]

    @torch.no_grad()
    def match(self, latent: Tensor) -> None:
        """Set taps and projection to what suits a latent (B, D, N), once, before training with them starts.

        The latent is taken for an autoregression z_n = m + (z_{n-1} - m) R + e_n: the taps become R, R^2, ..., and the
        codes get the covariance of e. Items with NaN or infinity are left out; with too few frames nothing is changed.
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
        # A latent that stays at m is made of codes that stay at m (1 + sum of the taps)^-1.
        offset = torch.linalg.solve((torch.eye(len(mean)).to(mean) + taps.sum(0)).T, mean)
        self._match((after - before @ transition + offset).float())

    def train(self, mode: bool = True) -> "Self":
        self._kept_echoes.clear()
        return super().train(mode)
