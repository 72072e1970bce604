"""Encoding and decoding piece by piece: any chunk sizes, the codes and samples of the whole signal, bounded memory.

Only `WindowDecoder`, for decoders that look at whole clips, gives samples that are close to those of the whole signal
and not equal.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor

from codec.errors import AudioError, ModelError
from codec.model.codec import Codec, check_samples
from codec.model.decoder import SpectralDecoderConfig
from codec.model.encoder import NO_SAMPLE
from codec.model.layers import MAX_FRAMES, State, join_rows, select_rows
from codec.model.seanet import SEANetEncoder, SEANetStream
from codec.model.vocos import VocosDecoderConfig, VocosStream
from codec.pipeline import in_two_stages

MAX_ENCODED_FRAMES = 768
"""Frames encoded at once: fewer, so that a search for codes soon runs beside the network."""
LEAST_FRAMES = 96
"""Of a signal: pieces of fewer are rounded otherwise."""


class OfModel:
    """What goes on with a model that is not its own: copies go on by themselves, all with that model."""

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        # What is in a state is replaced and never changed, so copies share it.
        states = {name: value.copy() for name, value in self.__dict__.items() if isinstance(value, dict)}
        copied.__dict__ = self.__dict__ | states
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.copy(self)

    def __reduce__(self) -> Any:
        name = type(self).__name__
        advice = f"; send its state_dict() to another {name}" if hasattr(self, "state_dict") else ""
        raise TypeError(f"a {name} cannot be pickled, since its model would go along{advice}")


class _Stream(OfModel):
    """What encoders and decoders share: mostly a state with which another can go on elsewhere."""

    codec: Codec
    _state: State

    def __init__(self, codec: Codec):
        self.codec = checked_model(codec)
        self.reset()

    def reset(self) -> None:
        """Forget all: the stream is as new."""
        self._state = {}

    def state_dict(self) -> dict[str, tuple[Tensor, ...]]:
        """What is remembered, to go on elsewhere: name of each module of the model -> tensors.

        With the boxed model some 0.9 MB for each signal that is decoded, and 0.07 MB for one that is encoded;
        torch.save and torch.load take it.

        Raises:
            ModelError: streams of published models, which have none.
        """
        names = {module: name for name, module in self.codec.named_modules()}
        return {names[module]: tuple(map(torch.clone, memory)) for module, memory in self._portable().items()}

    def load_state_dict(self, state: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Go on where a stream of the same kind and model was, in another process or on another device.

        Args:
            state: its `state_dict`. The weights that it was made with are not in it, and cannot be checked.

        Raises:
            ModelError: not the state of such a stream, or an encoder that has none.
        """
        example = type(self)(self.codec)
        fresh = example.state_dict()
        example._begin()
        begun = example.state_dict()
        try:
            fits = self._form(state) in (self._form(fresh), self._form(begun))
        except (AttributeError, TypeError):
            fits = False
        if not fits:
            name = type(self).__name__
            raise ModelError(f"this is not the state of a stream of this model; {name}.state_dict gives one")
        modules = dict(self.codec.named_modules())
        self.reset()
        with torch.inference_mode():  # as in `push`: a compiled step takes other tensors for another program
            self._state = {
                modules[name]: tuple(
                    # The search takes no 16 bits.
                    kept.to(like.device, torch.promote_types(kept.dtype, like.dtype), copy=True)
                    for kept, like in zip(memory, begun[name], strict=True)
                )
                for name, memory in state.items()
            }

    def _portable(self) -> State:
        """The state, which does not depend on this stream."""
        return self._state

    def _begin(self) -> None:
        """Take in what makes every module remember something."""
        raise NotImplementedError

    @staticmethod
    def _form(state: Mapping[str, tuple[Tensor, ...]]) -> object:
        """What is alike in all states of a model's streams once they have begun: types and shapes."""

        def shape(name: str, kept: Tensor) -> tuple[int, ...]:  # however many samples wait, which are the whole model's
            return kept.shape[1:] if name else (kept.ndim, *kept.shape[2:])

        shapes = {name: [(_type(kept), shape(name, kept)) for kept in memory] for name, memory in state.items()}
        numbers = {len(kept) for memory in state.values() for kept in memory}
        return shapes, len(numbers), len(state) > 1 and 0 in numbers  # all of as many signals, of some where it began


Signals = TypeVar("Signals", bound="_Signals")


class _Signals(_Stream):
    """Streams of B signals that go forward together: every tensor of the state has a row for each."""

    @property
    def num_signals(self) -> int:
        """B, signals that go forward together; 0 before the first push, and for a decoder before the first code."""
        return len(next(iter(self._state.values()))[0]) if self._state else 0

    def select(self: Signals, rows: Iterable[SupportsIndex]) -> Signals:
        """A stream that goes on with the signals `rows`, in this order; this one stays as it is.

        Rows that are left out leave. One that is named several times branches off: each copy goes on by itself. With
        none it is a stream without signals.

        Args:
            rows: ints in [0, B), or a mask: B bools, which say of each signal whether it goes on. A list, a tensor or
                an array.

        Raises:
            ModelError: a row outside [0, B), or a mask of another length.
        """
        try:
            listed: list[Any] = [row.tolist() if isinstance(row, Tensor | np.generic) else row for row in rows]
            if len(listed) == self.num_signals and all(isinstance(row, bool) for row in listed):
                listed = list(compress(range(len(listed)), listed))
            numbers = [-1 if isinstance(row, bool) else operator.index(row) for row in listed]
        except TypeError:
            numbers = [-1]
        if not all(0 <= number < self.num_signals for number in numbers):
            raise ModelError(
                f"rows must be ints from 0 on, below the {self.num_signals} signals there are, or a bool for each, "
                f"got {rows}"
            )
        selected = copy.copy(self)
        if numbers:
            with torch.inference_mode():  # as in `push`: a compiled step takes other tensors for another program
                selected._state = select_rows(self._portable(), numbers)
        else:
            selected.reset()
        return selected

    def join(self: Signals, *others: "Signals") -> Signals:
        """A stream that goes on with the signals of this one and of `others`, in this order; they stay as they are.

        Decoded signals may be of any age. Those that are encoded must be in step, so that each piece gives as many
        codes of all: push whole hops, and join a signal once it has given a code. A stream without signals adds none:
        give a new signal's first piece to a stream of its own, or those of k signals that begin together to one, as
        (k, n), which takes far less time than k streams.

        Raises:
            ModelError: another kind of stream, or one of another model, where one that was loaded twice counts as two;
                signals that are encoded and not in step.
        """
        for other in others:
            if type(other) is not type(self):
                raise ModelError(f"a {type(self).__name__} is joined by others, got {type(other).__name__}")
            if other.codec is not self.codec:
                raise ModelError(
                    "streams of different models, or of one that was loaded twice, cannot go forward together; make "
                    "all of them from the same loaded model"
                )
        streams = [stream for stream in (self, *others) if stream.num_signals]
        if len({(stream._num_waiting(), frozenset(stream._state)) for stream in streams}) > 1:
            raise ModelError(
                "signals cannot be encoded together where different numbers of samples wait; push whole hops, and join "
                "a signal once it has given a code"
            )
        joined = copy.copy(self)
        if streams:
            with torch.inference_mode():  # see `select`
                joined._state = join_rows([stream._portable() for stream in streams])
        return joined

    def _checked_number(self, signals: Tensor) -> Tensor:
        """What is pushed, (B, n), or a ModelError if there are signals, and not as many."""
        if not len(signals):
            raise ModelError("a stream takes at least one signal, got none; once all have left, push nothing")
        if self.num_signals not in (0, len(signals)):
            raise ModelError(f"the stream has {self.num_signals} signals, got {len(signals)}")
        return signals

    def _num_waiting(self) -> int:
        """Samples of each signal that have not become codes."""
        return 0


class StreamEncoder(_Signals):
    """Turns sound that arrives in pieces into codes, each as soon as what it depends on has arrived.

    The same network as `Codec.encode`, driven with a state: all pieces together give the same ceil(T / hop_length)
    codes, up to the rounding of float32 arithmetic. Pieces of less than some 96 frames round differently, which can
    decide between two codes that are equally near. Works with every model.

    Several signals can be encoded together, which takes a fraction of the time where little arrives at once. With
    `select` and `join`, signals can leave, branch off and join those that they are in step with. An encoder that
    mirrors the signal at its ends takes one.
    """

    def reset(self) -> None:
        """Forget the signal, and the codes still due: the encoder is as new."""
        encoder = self.codec.encoder
        # An encoder that mirrors the signal at its ends keeps its own state.
        self._mirroring = SEANetStream(encoder) if isinstance(encoder, SEANetEncoder) else None
        # What the model as a whole remembers is the samples from the start of the next frame on, (B, T).
        self._state = {self.codec: (torch.zeros(0, 0, dtype=torch.float32, device=self.codec.device),)}
        self._in_rows = False  # whether what was last pushed was (B, T)

    def __copy__(self) -> "StreamEncoder":
        copied: StreamEncoder = super().__copy__()
        copied._mirroring = copy.copy(self._mirroring)
        return copied

    def push(self, wav: Tensor) -> Tensor:
        """Feed samples, get the codes that are now certain.

        The more at once, the less work: 100 ms take a fifth of what they take hop by hop. Whatever goes wrong leaves
        the encoder as it was.

        Args:
            wav: (T,) or (1, 1, T) float32 in [-1, 1], T >= 0; or (B, T) for B >= 1 signals that go forward together.

        Returns:
            (n,) int64, n >= 0; or (B, n).

        Raises:
            AudioError: no tensor of floating-point samples, another shape, NaN, infinity or values beyond +-100.
            ModelError: another number of signals than there are, or several for an encoder that mirrors the signal at
                its ends.
        """
        if isinstance(wav, Tensor) and wav.ndim == 2:
            check_samples(wav)
            return self._encode(wav, in_rows=True)
        return self._encode(samples_of_piece(wav, "(T,), (1, 1, T) or (B, T)")[None], in_rows=False)[0]

    def _encode(self, wav: Tensor, in_rows: bool) -> Tensor:  # (B, T) -> (B, n)
        wav = self._checked_number(wav)
        if self._mirroring is not None and len(wav) > 1:
            raise ModelError(f"an encoder that mirrors the signal at its ends takes one signal, got {len(wav)}")
        going_on = copy.copy(self)  # so that this one stays as it was if anything goes wrong
        with torch.inference_mode():
            codes = going_on._advance(wav)
        going_on._in_rows = in_rows
        codes = codes.clone()  # outside, which makes it a tensor like any other
        self.__dict__ = going_on.__dict__
        return codes

    def flush(self) -> Tensor:
        """End the signal: the codes still due, (n,) int64. The encoder is then ready for another signal.

        All signals end that go forward together, (B, n); `select` gives a stream of those that do. Whether one signal
        came in rows, (1, n), is not in a state: between `load_state_dict` and the next push it counts as (n,).
        """
        ending = copy.copy(self)
        with torch.inference_mode():
            codes = ending._end()
        due = self.codec.quantizer.finish(ending._state).cpu()
        codes = torch.cat([codes, due.expand(len(codes), -1)], dim=1)
        in_rows = self._in_rows or len(codes) > 1
        self.reset()
        return codes if in_rows else codes.flatten()

    def _portable(self) -> State:
        if self._mirroring is not None:
            raise ModelError("a stream of an encoder that mirrors the signal at its ends cannot go on elsewhere")
        return super()._portable()

    def _num_waiting(self) -> int:
        (waiting,) = self._state[self.codec]
        return waiting.shape[1] + self.codec.quantizer.num_due(self._state) * self.codec.hop_length

    def _begin(self) -> None:
        samples = self.codec.hop_length + self.codec.encoder.lookahead_samples
        self.push(torch.zeros(samples, dtype=torch.float32, device=self.codec.device))

    def _advance(self, wav: Tensor) -> Tensor:
        """(B, T) -> (B, n)."""
        hop_length = self.codec.hop_length
        wav = wav.to(self.codec.device, torch.float32)
        num_frames = max(MAX_ENCODED_FRAMES // max(len(wav), 1), LEAST_FRAMES)
        if self._mirroring is not None:
            parts = wav[:, None].split(num_frames * hop_length, dim=2)
            codes = [self._quantize(self._mirroring.push(part)) for part in parts]
            self._state[self.codec] = (wav.new_zeros(len(wav), 0),)
        else:
            (waiting,) = self._state[self.codec]
            wav = torch.cat([waiting, wav], dim=1) if len(waiting) else wav
            lookahead = self.codec.encoder.lookahead_samples
            ready = max(wav.shape[1] - lookahead, 0) // hop_length * hop_length
            self._state[self.codec] = (wav[:, ready:].clone(),)
            starts = range(0, ready, num_frames * hop_length)
            # Copies, as views of more than that would each be another program where the encoder is compiled.
            sizes = [min(starts.step, ready - start) + lookahead for start in starts]
            pieces = [wav.narrow_copy(1, start, size) for start, size in zip(starts, sizes, strict=True)]
            codes = in_two_stages(pieces, self._analyse, self._quantize)
        return torch.cat([torch.zeros(len(wav), 0, dtype=torch.int64, device="cpu"), *codes], dim=1)

    def _end(self) -> Tensor:
        if self._mirroring is not None:
            return self._quantize(self._mirroring.flush())
        (waiting,) = self._state[self.codec]
        num_signals, num_samples = waiting.shape
        end = self.codec.num_frames(num_samples) * self.codec.hop_length + self.codec.encoder.lookahead_samples
        return self._advance(waiting.new_full((num_signals, end - num_samples), NO_SAMPLE))

    def _analyse(self, wav: Tensor) -> Tensor:
        """(B, n * hop + lookahead) -> (B, D, n)."""
        return self.codec.encoder(wav[:, None], self._state)

    @torch.inference_mode()  # again, as it may be called in a thread of its own
    def _quantize(self, latent: Tensor) -> Tensor:
        """(B, D, n) -> (B, n)."""
        if not latent.shape[-1]:
            return torch.zeros(len(latent), 0, dtype=torch.int64, device="cpu")
        return self.codec.quantizer.encode(latent, self._state).cpu()


class StreamDecoder(_Signals):
    """Turns codes that arrive in pieces into sound: each code becomes hop_length samples at once.

    The same network as `Codec.decode`, driven with a state. Several signals can be decoded together, which takes a
    fraction of the time where few codes arrive at once. With `select` and `join`, signals can leave, branch off and
    join at any code, and each sounds as it would alone.

    Keep the decoder as long as its signal lasts. The phase of the voice and the position in the noise are counted from
    the first code: a piece decoded afresh sounds like the whole after some 128 codes, but its samples never match, so
    pieces joined end to end click.

    Raises:
        ModelError: the model's decoder looks at the whole clip.
    """

    def __init__(self, codec: Codec):
        super().__init__(codec)
        if not isinstance(codec.config.decoder, SpectralDecoderConfig):
            raise ModelError("this model's decoder looks at whole clips; use Codec.decode, or WindowDecoder")

    def push(self, codes: Tensor) -> Tensor:
        """Feed codes (n,) integers, n >= 0, get their samples (n * hop_length,) float32.

        B >= 1 signals go forward together as codes (B, n) -> (B, n * hop_length). Samples are mostly within +-1; but
        codes that no speech has may go far beyond: `.clamp(-1, 1)` before they are played.

        Raises:
            ModelError: a code outside [0, K), another shape, or another number of signals than there are.
        """
        if isinstance(codes, Tensor) and codes.ndim == 2:
            return self._decode(codes)
        return self._decode(_checked_stream(codes)[None])[0]

    def _decode(self, codes: Tensor) -> Tensor:  # (B, n) -> (B, n * hop_length)
        codes, state = self._checked_number(codes), self._state.copy()
        wav = _decode(codes, self.codec, state, lambda latent: self.codec.decoder(latent, state))
        self._state = state
        return wav

    def _begin(self) -> None:
        self.push(torch.zeros(1, dtype=torch.int64, device=self.codec.device))

    def flush(self) -> Tensor:
        """End the signal. Nothing is held back, so this is empty: (0,). The decoder is then ready for another one."""
        self.reset()
        return torch.zeros(0, dtype=torch.float32, device="cpu")


class WindowDecoder(_Stream):
    """Turns codes that arrive in pieces into nearly the sound of `Codec.decode`, for decoders that look at whole clips.

    Each pass sees a window and some frames on either side; neighbouring windows are faded into each other. Memory is
    that of one pass. A signal of up to `window + overlap` codes is decoded whole, and then equals `Codec.decode`.

    Args:
        codec: a model of the reference family.
        window: codes whose sound each pass yields, at once.
        overlap: further codes that it sees on either side.

    Raises:
        ModelError: the model's decoder streams exactly.
        ConfigError: window or overlap is too small, or no integer.
    """

    def __init__(self, codec: Codec, window: int = 1500, overlap: int = 150):
        if not isinstance(checked_model(codec).config.decoder, VocosDecoderConfig):
            raise ModelError("this model's decoder streams exactly; use StreamDecoder")
        self._sizes = window, overlap
        super().__init__(codec)

    def reset(self) -> None:
        """Forget the signal, and the samples still due: the decoder is as new."""
        super().reset()
        self._windows = VocosStream(self.codec.decoder, *self._sizes)

    def __copy__(self) -> "WindowDecoder":
        copied: WindowDecoder = super().__copy__()
        copied._windows = copy.copy(self._windows)
        return copied

    def _portable(self) -> State:
        raise ModelError("a stream of a decoder that looks at whole clips cannot go on elsewhere")

    def push(self, codes: Tensor) -> Tensor:
        """Feed codes (n,) integers, n >= 0, get the samples that are complete: (m * hop_length,) float32.

        Whatever goes wrong leaves the decoder as it was.

        Raises:
            ModelError: a code outside [0, K), or another shape.
        """
        going_on = copy.copy(self)
        wav = _decode(_checked_stream(codes)[None], self.codec, going_on._state, going_on._windows.push)[0]
        self.__dict__ = going_on.__dict__
        return wav

    def flush(self) -> Tensor:
        """End the signal: the samples still due. The decoder is then ready for another one."""
        with torch.inference_mode():
            wav = self._windows.flush()
        self.reset()
        return wav[0, 0].cpu().clone()


def samples_of_piece(wav: Tensor, shapes: str = "(T,) or (1, 1, T)") -> Tensor:
    """(T,) or (1, 1, T) -> (T,), or an AudioError that names what is taken."""
    check_samples(wav)
    if wav.shape[:-1] not in ((), (1, 1)) or wav.ndim == 0:
        raise AudioError(f"a stream takes audio of shape {shapes}, got {tuple(wav.shape)}")
    return wav.reshape(-1)


def checked_model(codec: Codec) -> Codec:
    """A model as it is, or a ModelError."""
    if not hasattr(codec, "require_float32"):  # which one around a model, such as torch.compile makes, has too
        raise ModelError(f"a stream takes a model as codec.load gives it, got {type(codec).__name__}")
    codec.require_float32()
    return codec


def _type(kept: Tensor) -> torch.dtype:
    """Type of what is remembered; 16 bits, which autocast keeps, count as float32: a stream goes on from either."""
    return torch.float32 if kept.dtype in (torch.bfloat16, torch.float16) else kept.dtype


def _checked_stream(codes: Tensor) -> Tensor:
    """Codes (n,) as they are, or a ModelError."""
    if not isinstance(codes, Tensor):
        raise ModelError(f"a stream takes codes as a torch.Tensor, got {type(codes).__name__}")
    if codes.ndim != 1:
        raise ModelError(f"a stream takes codes of shape (n,), got {tuple(codes.shape)}")
    return codes


def _decode(codes: Tensor, codec: Codec, state: State, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Codes (B, n) -> samples (B, m) on the CPU; `decode` turns latents (B, D, n) into sound (B, 1, m)."""
    codes = codec.quantizer.checked_codes(codes)  # all of them, before the first changes the state
    wav = [torch.zeros(len(codes), 0, dtype=torch.float32, device="cpu")]
    with torch.inference_mode():  # a tenth faster for a single code
        # Cut, so that memory does not depend on how the caller feeds it.
        for some in codes.split(max(MAX_FRAMES // len(codes), 1), dim=1):
            if some.numel():
                wav.append(decode(codec.quantizer.lookup(some.to(codec.device), state))[:, 0].cpu())
    return torch.cat(wav, dim=1)  # outside, which makes it a tensor like any other
