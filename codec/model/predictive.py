"""SimVQ inside a prediction loop: codes describe what the codes before them do not tell.

The latent of speech moves slowly: codes that describe each frame anew spend bits on what is already known. Here the
last few codes say what to expect of a frame, and how far off each of its values may be: the code is chosen for what
remains, in units of that distance. Within a vowel codes are thus fine corrections, at its end large ones, and where
there is no voice none are spent on its pitch. All is told by a few codes, not by reconstructions, so a code has no say
beyond some frames, and sound can be decoded from anywhere. Where codes are lost, begin anew behind them: what others in
their place lead to may be far out of range.

Since a code has a say in what follows, codes are chosen by what they lead to, a few frames later (`beam`).

Legend: B batch, N frames, D width of the latent, K codes, P frames that a prediction looks back, H hidden width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ModelError
from codec.limits import LARGEST_COUNT, refuse, too_large, too_small
from codec.model import beam
from codec.model.layers import State, extend_left, where_float64_is
from codec.model.quantizer import QuantizerOutput, SimVQ, SimVQConfig, are_usable

LARGEST_GAIN = 20.0
"""And 1 / it the smallest. Gains of speech lie well within; those of damaged codes stay bounded."""

SMALLEST_SPREAD = 1e-3
"""Of a latent's mean variance: what varies less along an axis is not relied on for prediction."""


@dataclass
class PredictiveSimVQConfig(SimVQConfig):
    """Settings of `PredictiveSimVQ`."""

    kind: str = "predictive"
    memory: int = 8  # frames that a prediction looks back
    context_width: int = 64  # inner width of the network that hears the last codes
    num_paths: int = 8  # sequences of codes that are followed at once
    delay: int = 3  # frames until a code is decided; 0 with one path: the nearest code

    def _mistakes(self) -> list[str]:
        return [*super()._mistakes(), *_mistakes_in_prediction(self)]


def _mistakes_in_prediction(settings: object) -> list[str]:
    """A sentence about each setting, an attribute, that a quantizer has only with prediction and that is impossible."""
    least = {0: ("delay",), 1: ("memory", "context_width", "num_paths")}
    most = {"delay": LARGEST_COUNT, "num_paths": LARGEST_COUNT}
    return [*too_small(settings, "quantizer", least), *too_large(settings, "quantizer", most)]


class PredictiveSimVQ(SimVQ):
    """SimVQ of the part of a latent (B, D, N) that its past codes do not predict, in units of gains that they tell.

    With e_n the effective code of frame n, a row of C W + b, and c_n the row of the frozen C that it is made of, a
    network hears the last codes. With it the gains, the prediction and the quantized latent of a frame are

        h_n = max(0, sum_i sqrt(D) c_{n-i} F_i + f),   (m_n, log g_n) = h_n G + b',
        v_n = g_n * e_n,   p_n = m_n W + sum_i v_{n-i} A_i,   q_n = p_n + v_n,   i = 1 .. P,

    each value of a frame with a gain of its own, between 1 / 20 and 20; before the first frame c and v are 0. The codes
    are those of the least sum_n ||z_n - q_n||^2. It is sought among `num_paths` sequences, and a code is decided
    `delay` frames later; with one path and no delay it is the one nearest to z_n - p_n. The loss is that of `SimVQ`
    with q_n in the place of the code; it trains A, F and G too. Codes are found frame by frame, all else at once.

    Args:
        memory: P.
        context_width: H, the width of h.
        num_paths, delay: of the search; what codes mean does not depend on them.
        Others are as for `SimVQ`.

    Attributes:
        taps: (P, D, D), the A_i; zero at first.
        hear: F and f, (*, P * D) -> (*, H), the last codes first.
        expect: G and b', (*, H) -> (*, 2 * D); zero at first. With it and the taps zero this is `SimVQ`.

    Source: moving-average predictive vector quantization as in ITU-T G.729, section 3.2.4, there of line spectra; gains
    told by past codes as in ITU-T G.728, section 3.8, there from the energy of the excitation. Means and scales told by
    a network, as in the entropy models of learned image compression (arXiv:1809.02736).
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        memory: int = 8,
        context_width: int = 64,
        num_paths: int = 8,
        delay: int = 3,
        **settings: object,
    ):
        super().__init__(codebook_size, codebook_dim, **settings)  # type: ignore[arg-type]
        self.memory, self.context_width, self.num_paths, self.delay = memory, context_width, num_paths, delay
        refuse(_mistakes_in_prediction(self))
        self.taps = nn.Parameter(torch.zeros(memory, codebook_dim, codebook_dim))
        self.hear = nn.Linear(memory * codebook_dim, context_width)
        self.expect = nn.Linear(context_width, 2 * codebook_dim)
        self._expect_nothing()

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """As `SimVQ.forward`, for (B, D, N)."""
        vectors = self._checked(latent)  # (B, N, D)
        with torch.autocast(latent.device.type, enabled=False):
            codes = self._choose(vectors)
            expected, innovations, _ = self._unroll(codes) if self.training else self._unroll_exactly(codes)
            quantized = expected + innovations
            loss = self.loss(vectors, quantized)
            if self.training:
                quantized = self._pass_gradient(vectors, quantized)
        return QuantizerOutput(codes, quantized.transpose(1, 2), loss)

    def encode(self, latent: Tensor, state: State | None = None, num_frames: list[int] | None = None) -> Tensor:
        vectors = self._checked(latent)
        with torch.autocast(latent.device.type, enabled=False):
            return self._choose(vectors, state, num_frames)

    def finish(self, state: State) -> Tensor:
        if self not in state:
            return super().finish(state)
        due = self.num_due(state)
        _, _, undecided, _ = state.pop(self)
        return undecided[:, 0, self.delay - due :].clone()

    def num_due(self, state: State) -> int:
        if self not in state:
            return 0
        *_, num_due = state[self]
        return int(num_due[0])

    def settle(self, state: State) -> None:
        if self in state:
            costs, *known, num_due = state[self]
            only_best = torch.full_like(costs, torch.inf)
            only_best[:, 0].zero_()
            state[self] = (only_best, *known, torch.zeros_like(num_due))

    def lookup(self, codes: Tensor, state: State | None = None) -> Tensor:
        """The quantized latent of codes: (B, N) integers in [0, K) -> (B, D, N) float32.

        With a state, of the frames after the last call's: bit for bit the same in whatever pieces codes arrive.

        Raises:
            ModelError: codes that are no integers, of another rank, or a code outside [0, K).
        """
        codes = self.checked_codes(codes)
        if codes.ndim != 2:
            raise ModelError(f"this quantizer takes codes of shape (B, N), got {tuple(codes.shape)}")
        expected, innovations, _ = self._unroll_exactly(codes, state)
        return (expected + innovations).transpose(1, 2)

    def remainder(self, latent: Tensor, codes: Tensor) -> Tensor:
        """What is left of a latent (B, D, N) once its codes (B, N) have predicted it, in units of the gains."""
        with torch.no_grad(), torch.autocast(latent.device.type, enabled=False):
            expected, _, gains = self._unroll(codes)
        return (latent.float() - expected.transpose(1, 2)) / gains.transpose(1, 2)

    def tables(self) -> beam.Tables:
        """What the search for codes needs of the weights."""
        return self._derive("tables", self._make_tables)

    def code_parameters(self) -> list[nn.Parameter]:
        others = {self.taps, *self.hear.parameters(), *self.expect.parameters()}
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
        tables = self.tables()
        with torch.inference_mode():  # which makes the many small steps a fifth faster
            if state is not None and self in state:
                costs, *of_paths, _ = state[self]
                paths = beam.Paths(costs, *(each.flatten(0, 1) for each in of_paths))
            else:
                paths = beam.start(batch, self.num_paths, self.delay, tables)
            (costs, *of_paths), decided, pending = beam.follow(vectors, paths, tables, LARGEST_GAIN)
        if state is not None:
            due = self.num_due(state)
            num_due = torch.full((batch,), min(due + length, self.delay), dtype=torch.int64, device="cpu")
            state[self] = (costs, *(each.unflatten(0, (batch, -1)) for each in of_paths), num_due)
            return decided[:, self.delay - due :].clone()
        codes = torch.zeros(batch, length, dtype=torch.int64, device=vectors.device)
        for item, end in enumerate(num_frames or [length] * batch):  # where the best path gives the codes still due
            due = min(self.delay, end)
            codes[item, : end - due] = decided[item, self.delay : end]
            codes[item, end - due : end] = pending[item, end - 1, self.delay - due :]
        return codes

    def _unroll(
        self, codes: Tensor, dtype: torch.dtype = torch.float32, state: State | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions p, innovations v and gains g of codes (B, N), each (B, N, D) with its gradient.

        With a state, of the codes after the last call's.
        """

        def like(parameter: Tensor) -> Tensor:  # to the device first: not all have float64
            return parameter.to(codes.device).to(dtype)

        def apply(layer: nn.Module, x: Tensor) -> Tensor:
            return F.linear(x, *map(like, layer.parameters()))

        rows = F.embedding(codes, self.codebook.to(codes.device)).to(dtype)
        past = self._past_of(self.hear, rows, state)
        hidden = F.relu(apply(self.hear, past * self.codebook_dim**0.5))  # it hears unit variance
        mean, log_gains = apply(self.expect, hidden).chunk(2, dim=-1)
        gains = log_gains.clamp(-math.log(LARGEST_GAIN), math.log(LARGEST_GAIN)).exp()
        innovations = gains * apply(self.projection, rows)
        past = self._past_of(self, innovations, state)
        predictions = mean @ like(self.projection.weight).T + past @ like(self.taps).flatten(0, 1)
        return predictions, innovations, gains

    def _past_of(self, module: nn.Module, x: Tensor, state: State | None) -> Tensor:
        """The P frames before each frame, the last one first, zeros before the first: (B, N, D) -> (B, N, P * D)."""
        memory, num_frames = self.memory, x.shape[1]
        before = extend_left(module, x, memory, state)
        return torch.cat([before[:, memory - i : memory - i + num_frames] for i in range(1, memory + 1)], dim=2)

    @torch.no_grad()
    def _unroll_exactly(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `_unroll`, without gradient.

        Matrix products round differently for other numbers of frames; computed in float64 and then rounded, frames are
        the same in whatever pieces codes arrive (a value in some hundred million may differ in its last bit). Codes
        before the last 2 P have no say: P of them decide the gains of the other P.
        """
        exact = self._unroll(where_float64_is(codes), torch.float64, state)
        predictions, innovations, gains = (part.float().to(codes.device) for part in exact)
        return predictions, innovations, gains

    def _make_tables(self) -> beam.Tables:
        dim, hidden = self.codebook_dim, self.hear.out_features
        hear, expect, projection = self.hear.weight.float(), self.expect.weight.float(), self.projection.weight.float()
        codebook = self.effective_codebook()
        of_rows = hear.T.unflatten(0, (self.memory, dim)).transpose(0, 1)  # (D, P, H)
        of_innovations = self.taps.float().transpose(0, 1)  # (D, P, D)
        means, log_gains = expect.T.chunk(2, dim=1)  # (H, D) each
        mean, log_gain = self.expect.bias.float().chunk(2)
        passed_on = torch.eye(dim, 2 * dim, dtype=torch.float32, device=means.device)
        return beam.Tables(
            search=beam.search_table(codebook),
            codes=torch.cat([codebook, self.codebook.float() * dim**0.5], dim=1),
            echoes=torch.cat([F.pad(of_innovations, (hidden, 0)), F.pad(of_rows, (0, dim))]).flatten(1),
            silence=F.pad(self.hear.bias.float(), (0, dim)),
            expectation=torch.cat([torch.cat([means @ projection.T, log_gains], dim=1), passed_on]),
            offset=torch.cat([mean @ projection.T, log_gain]),
        )

    def _expect_nothing(self) -> None:
        nn.init.zeros_(self.expect.weight)
        nn.init.zeros_(self.expect.bias)

    def _match_latent(self, latent: Tensor) -> None:
        """Set taps and projection to what suits a latent (B, D, N).

        The latent is taken for an autoregression z_n = m + (z_{n-1} - m) R + e_n: the taps become R, R^2, ..., the
        codes get the covariance of e, and the network expects nothing. Items with NaN, or values too large to be
        squared, are left out; with too few frames, or if all are the same, nothing is changed.
        """
        # In float64, so that all processes find the same float32 values; on the CPU, as not all devices have that.
        frames = latent.cpu().double().transpose(1, 2)
        frames = frames[are_usable(frames).all(dim=(1, 2))]  # (B, N, D)
        if frames[:, 1:].numel() < 2 * self.codebook_dim**2:
            return
        mean = frames.mean(dim=(0, 1))
        before, after = ((part - mean).flatten(0, 1) for part in (frames[:, :-1], frames[:, 1:]))
        covariance = before.T @ before
        if not covariance.any():
            return
        ridge = SMALLEST_SPREAD * covariance.diagonal().mean() * torch.eye(len(mean)).to(mean)
        transition = torch.linalg.solve(covariance + ridge, before.T @ after)  # R
        powers = [transition]
        for _ in range(1, self.memory):
            powers.append(powers[-1] @ transition)
        taps = torch.stack(powers)
        self.taps.copy_(taps)
        self._expect_nothing()
        # A latent that stays at m is made of codes that stay at m (1 + sum of the taps)^-1.
        offset = torch.linalg.solve((torch.eye(len(mean)).to(mean) + taps.sum(0)).T, mean)
        self.match_vectors((after - before @ transition + offset).float().to(latent.device))
