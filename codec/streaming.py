"""Encoding and decoding piece by piece: any chunk sizes, the codes and samples of the whole signal, bounded memory."""

import torch
from torch import Tensor

from codec.errors import AudioError, ModelError
from codec.model.codec import Codec
from codec.model.layers import State

MAX_FRAMES = 750
"""Frames handled at once; a larger chunk is cut, so that memory does not depend on how the caller feeds it."""


class StreamEncoder:
    """Turns sound that arrives in pieces into codes, each as soon as its lookahead has arrived.

    The same network as `Codec.encode`, driven with a state: all pieces together give the same ceil(T / hop_length)
    codes, up to the rounding of float32 arithmetic.

    Raises:
        ModelError: the model needs the whole clip at once.
    """

    def __init__(self, codec: Codec):
        _check_streamable(codec)
        self.codec = codec
        self._device = next(codec.parameters()).device
        self._reset()

    def _reset(self) -> None:
        self._state: State = {}
        self._waiting = torch.zeros(0, device=self._device)  # samples from the start of the next frame on
        self._num_samples = 0

    @torch.no_grad()
    def push(self, wav: Tensor) -> Tensor:
        """Feed samples, get the codes that are now certain.

        Args:
            wav: (T,) or (1, 1, T) float32 in [-1, 1], T >= 0.

        Returns:
            (n,) int64, n >= 0.

        Raises:
            AudioError: another shape, NaN or infinite samples.
        """
        if wav.shape[:-1] not in ((), (1, 1)) or wav.ndim == 0:
            raise AudioError(f"a stream takes audio of shape (T,) or (1, 1, T), got {tuple(wav.shape)}")
        if not torch.isfinite(wav).all():
            raise AudioError("the audio has NaN or infinite samples")
        self._num_samples += wav.shape[-1]
        return self._advance(wav.reshape(-1))

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the signal: the codes still due, (n,) int64. The encoder is then ready for another signal."""
        num_codes = self.codec.num_frames(self._num_samples)
        end = num_codes * self.codec.hop_length + self.codec.encoder.lookahead
        codes = self._advance(torch.zeros(end - self._num_samples))
        self._reset()
        return codes

    def _advance(self, wav: Tensor) -> Tensor:
        encoder, hop_length = self.codec.encoder, self.codec.hop_length
        self._waiting = torch.cat([self._waiting, wav.to(self._device, torch.float32)])
        codes = [torch.zeros(0, dtype=torch.int64)]
        while (num_frames := min((len(self._waiting) - encoder.lookahead) // hop_length, MAX_FRAMES)) > 0:
            ready = self._waiting[: num_frames * hop_length + encoder.lookahead]
            latent = encoder.encode_frames(ready[None, None], self._state)
            codes.append(self.codec.quantizer(latent).codes[0].cpu())
            self._waiting = self._waiting[num_frames * hop_length :]
        return torch.cat(codes)


class StreamDecoder:
    """Turns codes that arrive in pieces into sound: each code at once becomes hop_length samples.

    The same network as `Codec.decode`, driven with a state.

    Raises:
        ModelError: the model needs the whole clip at once.
    """

    def __init__(self, codec: Codec):
        _check_streamable(codec)
        self.codec = codec
        self._device = next(codec.parameters()).device
        self._state: State = {}

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """Feed codes (n,) int64, n >= 0, get their samples (n * hop_length,) float32.

        Raises:
            ModelError: a code outside [0, K), or another shape.
        """
        if codes.ndim != 1:
            raise ModelError(f"a stream takes codes of shape (n,), got {tuple(codes.shape)}")
        wav = [torch.zeros(0)]
        for some in codes.split(MAX_FRAMES):
            if len(some):
                latent = self.codec.quantizer.lookup(some.to(self._device)[None])
                wav.append(self.codec.decoder(latent, self._state)[0, 0].cpu())
        return torch.cat(wav)

    def flush(self) -> Tensor:
        """End the signal. Nothing is held back, so this is empty: (0,). The decoder is then ready for another one."""
        self._state = {}
        return torch.zeros(0)


def _check_streamable(codec: Codec) -> None:
    if not codec.is_streamable:
        raise ModelError("this model looks at whole clips and cannot stream; use Codec.encode and Codec.decode")
