"""Codec(encoder, quantizer, decoder): the whole family of models, their settings and every derived rate."""

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from codec.errors import AudioError, ConfigError, ModelError
from codec.input import is_of
from codec.limits import MAX_MAGNITUDE, MAX_SAMPLE_RATE, refuse
from codec.model.decoder import SpectralDecoder, SpectralDecoderConfig
from codec.model.encoder import NO_SAMPLE, SpectralEncoder, SpectralEncoderConfig
from codec.model.layers import MAX_FRAMES
from codec.model.predictive import PredictiveSimVQ, PredictiveSimVQConfig
from codec.model.quantizer import VQ, Quantizer, SimVQ, SimVQConfig, VQConfig, are_integers, require_values
from codec.model.rivals import (
    EMAVQ,
    FSQ,
    LFQ,
    EMAVQConfig,
    FactorisedVQ,
    FactorisedVQConfig,
    FeatureVQ,
    FeatureVQConfig,
    FSQConfig,
    LFQConfig,
)
from codec.model.seanet import SEANetEncoder, SEANetEncoderConfig
from codec.model.timeconv import identities
from codec.model.vocos import VocosDecoder, VocosDecoderConfig
from codec.plugins import added
from codec.rates import Rates

ENCODERS: dict[str, tuple[type, type]] = {
    "spectral": (SpectralEncoderConfig, SpectralEncoder),
    "seanet": (SEANetEncoderConfig, SEANetEncoder),
}
QUANTIZERS: dict[str, tuple[type, type]] = {
    "simvq": (SimVQConfig, SimVQ),
    "predictive": (PredictiveSimVQConfig, PredictiveSimVQ),
    "vq": (VQConfig, VQ),
    "ema": (EMAVQConfig, EMAVQ),
    "fc": (FactorisedVQConfig, FactorisedVQ),
    "fsq": (FSQConfig, FSQ),
    "lfq": (LFQConfig, LFQ),
    "lc": (FeatureVQConfig, FeatureVQ),
}
ENTRY_POINTS = "codec.quantizers"
"""Group of entry points by which other packages add quantizers: pairs as in `QUANTIZERS`, named by their kind."""

DECODERS: dict[str, tuple[type, type]] = {
    "spectral": (SpectralDecoderConfig, SpectralDecoder),
    "vocos": (VocosDecoderConfig, VocosDecoder),
}

LARGEST_SETTING = 2**31
"""Of settings that are integers, either way: far beyond any use, and what is computed from them fits 64 bits or torch
says that it does not."""


@functools.cache
def add_quantizers_of_others() -> None:
    """Put those of other packages into `QUANTIZERS`; models that need none load without, as one may be broken.

    Raises:
        ConfigError: an entry point cannot be loaded, or is no such pair.
    """
    found = {}
    for name, where, pair in added(ENTRY_POINTS):
        config_class, quantizer_class = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
        is_config = isinstance(config_class, type) and is_dataclass(config_class)
        is_quantizer = isinstance(quantizer_class, type) and issubclass(quantizer_class, Quantizer)
        if not (is_config and is_quantizer) or getattr(config_class, "kind", None) != name or name in QUANTIZERS:
            raise ConfigError(
                f"{where}: must be a dataclass of settings whose kind is {name!r}, as no other's, and a class derived "
                "from codec.model.quantizer.Quantizer"
            )
        found[name] = pair
    QUANTIZERS.update(found)


@dataclass
class CodecConfig:
    """Everything that defines a model; written beside its weights as JSON."""

    sample_rate: int = 24000  # Hz
    encoder: Any = field(default_factory=SpectralEncoderConfig)
    quantizer: Any = field(default_factory=PredictiveSimVQConfig)
    decoder: Any = field(default_factory=SpectralDecoderConfig)

    def __post_init__(self) -> None:
        if type(self.sample_rate) is not int or not 1 <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise ConfigError(
                f"sample_rate must be a whole number of Hz from 1 to {MAX_SAMPLE_RATE}, got {self.sample_rate!r}"
            )

    @property
    def is_streamable(self) -> bool:
        """See `Codec.is_streamable`."""
        return isinstance(self.encoder, SpectralEncoderConfig) and isinstance(self.decoder, SpectralDecoderConfig)

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CodecConfig":
        """From nested plain values.

        Raises:
            ConfigError: parts are missing, of unknown kind, or have settings that are unknown, ill-typed or impossible;
                all of them are named.
        """
        if not isinstance(values, dict):
            raise ConfigError("a model's config must be a JSON object")
        parts: dict[str, Any] = {}
        mistakes: list[str] = []
        for part, kinds in (("encoder", ENCODERS), ("quantizer", QUANTIZERS), ("decoder", DECODERS)):
            try:
                parts[part] = _part_from_dict(part, values.get(part), kinds)
            except ConfigError as error:
                mistakes += error.args
        known = [setting.name for setting in fields(cls)]
        mistakes += [
            f"{name} is no part of a model, known are {', '.join(known)}" for name in values if name not in known
        ]
        try:
            config = cls(values.get("sample_rate"), **parts)  # type: ignore[arg-type]  # checks it
        except ConfigError as error:
            mistakes += error.args
        refuse(mistakes)
        return config


def _part_from_dict(part: str, values: Any, kinds: dict[str, tuple[type, type]]) -> Any:
    kind = values.get("kind") if isinstance(values, dict) else values
    if kinds is QUANTIZERS and kind not in list(kinds):
        add_quantizers_of_others()
    if not isinstance(values, dict) or kind not in list(kinds):
        raise ConfigError(f"{part}.kind must be one of {', '.join(kinds)}, got {kind!r}")
    config_class = kinds[kind][0]
    types = get_type_hints(config_class)
    known = {setting.name: types[setting.name] for setting in fields(config_class)}
    mistakes = []
    for name, value in values.items():
        integers = [each for each in (value if type(value) is list else [value]) if type(each) is int]
        if (expected := known.get(name)) is None:
            listed = ", ".join(sorted(known))
            mistakes.append(f"{part}.{name} is not a setting of the {kind} {part}, known are {listed}")
        elif not is_of(value, expected):
            called = expected if get_args(expected) else expected.__name__
            mistakes.append(f"{part}.{name} must be of type {called}, got {value!r}")
        elif any(abs(integer) > LARGEST_SETTING for integer in integers):
            mistakes.append(f"{part}.{name} must lie within +-2**31, got {value}")
    refuse(mistakes)
    return config_class(**values)


class CodecOutput(NamedTuple):
    """What a forward round trip yields."""

    wav: Tensor  # (B, 1, T)
    codes: Tensor  # (B, N) int64
    latent: Tensor  # (B, D, N)
    quantized: Tensor  # (B, D, N)
    quantizer_loss: Tensor  # scalar
    log_pitch: Tensor | None  # (B, N), that the stream family's decoder states; else None
    """The sound has no gradient to it: in training it learns from `codec.training.pitch.pitch_loss`, or not at all."""


class Codec(Rates, nn.Module):
    """Speech to one stream of codes and back.

    Source: WavTokenizer (arXiv:2408.16532) for the single-codebook design, SimVQ (arXiv:2411.02038) for the quantizer.
    """

    encoder: Any
    quantizer: Quantizer
    decoder: Any
    _fingerprint: str = ""
    _named: tuple[Any, ...] = ()  # the weights that have this name, see `identities`

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder.kind][1](config.encoder)
        self.quantizer = _build_quantizer(config.quantizer)
        self.decoder = DECODERS[config.decoder.kind][1](config.decoder)
        mistakes = []
        if self.encoder.hop_length != self.decoder.hop_length:
            mistakes.append(
                f"encoder and decoder must have the same hop length, "
                f"got {self.encoder.hop_length} and {self.decoder.hop_length}"
            )
        if getattr(config.decoder, "sample_rate", config.sample_rate) != config.sample_rate:
            mistakes.append(
                f"sample_rate and decoder.sample_rate must be equal, "
                f"got {config.sample_rate} and {config.decoder.sample_rate}"
            )
        widths = (self.encoder.latent_dim, self.quantizer.codebook_dim, self.decoder.latent_dim)
        if len(set(widths)) > 1:
            mistakes.append(
                f"encoder.latent_dim, quantizer.codebook_dim and decoder.latent_dim must be equal, got {widths}"
            )
        refuse(mistakes)

    if TYPE_CHECKING:  # what torch calls is `forward`, but it says nothing of its types

        def __call__(self, wav: Tensor) -> CodecOutput: ...

    @property
    def fingerprint(self) -> str:
        """Names configuration and weights; set by `weights.load`. Empty for a model that was never saved, and for one
        whose weights were changed or replaced since; what fused optimizers and `.data` change in place is not seen."""
        return self._fingerprint if self._identities() == self._named else ""

    @fingerprint.setter
    def fingerprint(self, name: str) -> None:
        self._fingerprint, self._named = name, self._identities()

    def _identities(self) -> tuple[Any, ...]:
        return identities((*self.parameters(), *self.buffers()))

    def _apply(self, *arguments: Any, **options: Any) -> "Codec":
        """What moves weights to another device makes new tensors; their values stay, unless their type is another."""
        name, types = self.fingerprint, [parameter.dtype for parameter in self.parameters()]
        super()._apply(*arguments, **options)
        self.fingerprint = name if types == [parameter.dtype for parameter in self.parameters()] else ""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_fingerprint": self.fingerprint, "_named": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._named = self._identities()

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.encoder.hop_length

    @property
    def codebook_size(self) -> int:
        """K, the number of different codes."""
        return self.quantizer.codebook_size

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def is_streamable(self) -> bool:
        """Whether every code and sample depends on a bounded future, so that streaming is exact and memory bounded."""
        return self.config.is_streamable

    def num_frames(self, num_samples: int) -> int:
        """Codes of a signal: N = ceil(T / hop_length)."""
        return -(-num_samples // self.hop_length)

    def forward(self, wav: Tensor) -> CodecOutput:
        """The round trip: (B, 1, T) -> wav (B, 1, T), with all that happens between.

        Raises:
            AudioError, ModelError: as for `encode`. In training with the quantizer's `checks_values` off, samples are
                not looked at.
        """
        self._check(wav, checks_values=not self.training or self.quantizer.checks_values)
        latent = self.encoder(wav.float())  # (B, 1, T) -> (B, D, N)
        codes, quantized, loss = self.quantizer(latent)
        decoded, log_pitch = self.decoder.synthesize(quantized)  # (B, D, N) -> (B, 1, N * hop), (B, N)
        return CodecOutput(decoded[..., : wav.shape[-1]], codes, latent, quantized, loss, log_pitch)

    @torch.no_grad()
    def encode(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn speech into codes.

        Args:
            wav: (B, 1, T) float32 in [-1, 1] at `sample_rate` Hz, T >= 1. Up to +-100 is taken, but sound far beyond
                full scale comes back softer.
            lengths: (B,) int64, samples of each item when they differ; what lies beyond is ignored, if within +-100.

        Returns:
            (B, N) int64 in [0, K), N = ceil(T / hop_length); -1 beyond the end of an item. The codes of an item do
            not depend on the others.

        Raises:
            AudioError: no tensor of floating-point samples, wrong rank, no samples, NaN, infinity or values beyond
                +-100, or lengths that do not fit.
            ModelError: the weights are not float32.
        """
        self._check(wav)
        wav = wav.float()
        if lengths is None:
            return self.quantizer.encode(self.encoder(wav))
        ends = self._ends(lengths, len(wav), wav.shape[-1], smallest=1)
        num_frames = list(map(self.num_frames, ends))
        if self.is_streamable:
            inside = torch.arange(wav.shape[-1], device=wav.device) < torch.tensor(ends, device=wav.device)[:, None]
            latent = self.encoder(wav.where(inside[:, None], NO_SAMPLE))
            found = list(self.quantizer.encode(latent, num_frames=num_frames))
        else:  # whole-clip layers would let the padding change the codes: one item at a time
            items = zip(wav.split(1), ends, strict=True)
            found = [self.quantizer.encode(self.encoder(item[..., :end]))[0] for item, end in items]
        codes = wav.new_full((len(wav), self.num_frames(wav.shape[-1])), -1, dtype=torch.int64)
        for item, row in enumerate(found):
            codes[item, : num_frames[item]] = row[: num_frames[item]]
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn codes into speech.

        Args:
            codes: (B, N) integers in [0, K), N >= 1; beyond the end of an item anything.
            lengths: (B,) int64, samples of each item, at most N * hop_length.

        Returns:
            (B, 1, T) float32, T = N * hop_length, or the largest of `lengths`; zeros beyond the end of an item. Mostly
            within +-1; but codes that no speech has may go far beyond: `.clamp(-1, 1)` before it is played.

        Raises:
            ModelError: wrong rank or type, no codes, a code outside [0, K), or weights that are not float32.
            AudioError: lengths that do not fit.
        """
        if not isinstance(codes, Tensor):
            raise ModelError(f"decode takes a torch.Tensor, got {type(codes).__name__}")
        if codes.ndim != 2 or codes.numel() == 0:
            raise ModelError(f"decode takes codes of shape (B, N) with at least one code, got {tuple(codes.shape)}")
        require_values(codes, "codes", ModelError)
        self.require_float32()
        if lengths is None:
            return self.decoder(self.quantizer.lookup(codes))
        ends = self._ends(lengths, len(codes), codes.shape[1] * self.hop_length, smallest=0)
        wav = torch.zeros(len(codes), 1, max(ends), dtype=torch.float32, device=codes.device)
        num_frames = list(map(self.num_frames, ends))
        for items in self._decoded_together(num_frames):
            own = pad_sequence([codes[item, : num_frames[item]] for item in items], batch_first=True)
            for item, sound in zip(items, self.decoder(self.quantizer.lookup(own)), strict=True):
                wav[item, :, : ends[item]] = sound[:, : ends[item]]
        return wav

    def _check(self, wav: Tensor, checks_values: bool = True) -> None:
        """Refuse what cannot be encoded; looking at values waits for the device."""
        check_samples(wav, checks_values)
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[0] == 0 or wav.shape[-1] == 0:
            raise AudioError(f"a codec takes audio of shape (B, 1, T) with at least one sample, got {tuple(wav.shape)}")
        self.require_float32()

    def _decoded_together(self, num_frames: list[int]) -> Iterator[list[int]]:
        """The items that have frames, in groups that are decoded at once, the longest of each group first.

        Beginning a pass takes as long as some 64 frames of it: more padding than that saves no time. Decoders that look
        at whole clips would let padding change the sound.
        """
        is_causal = isinstance(self.config.decoder, SpectralDecoderConfig)
        waiting = sorted((item for item, frames in enumerate(num_frames) if frames), key=num_frames.__getitem__)
        while waiting:
            items = [waiting.pop()]
            longest = num_frames[items[0]]
            room = MAX_FRAMES // longest if is_causal else 1
            while waiting and len(items) < room and longest - num_frames[waiting[-1]] < 64:
                items.append(waiting.pop())
            yield items

    def require_float32(self) -> None:
        """Raises ModelError where the weights were brought to another type, in which the parts do not fit together."""
        for dtype in {parameter.dtype for parameter in self.parameters()} - {torch.float32}:
            raise ModelError(f"the weights must be float32, got {dtype}; use torch.autocast for 16-bit arithmetic")

    def _ends(self, lengths: Tensor, num_items: int, longest: int, smallest: int) -> list[int]:
        if not isinstance(lengths, Tensor):
            raise AudioError(f"lengths must be a torch.Tensor, got {type(lengths).__name__}; use torch.tensor(...)")
        if lengths.ndim != 1 or not are_integers(lengths):
            raise AudioError(f"lengths must be integers of shape (B,), got {lengths.dtype} {tuple(lengths.shape)}")
        ends = [int(length) for length in lengths]
        if len(ends) != num_items or min(ends) < smallest or max(ends) > longest:
            raise AudioError(
                f"lengths must be {num_items} numbers of samples between {smallest} and {longest}, got {ends}"
            )
        return ends


def require_refinable(config: CodecConfig) -> None:
    """Refuse a model whose codes `codec.refinement` cannot refine.

    Raises:
        ModelError: it looks at whole clips.
    """
    if not config.is_streamable:
        raise ModelError("codes can be refined only for models that stream, such as the boxed one")


def check_samples(wav: Tensor, checks_values: bool = True) -> None:
    """Refuse what cannot be audio: other things than tensors, integers, and if values are looked at, tensors without
    any and sparse ones, values beyond +-100 (their scale is unknown), NaN and infinity.

    Raises:
        AudioError: says which.
    """
    if not isinstance(wav, Tensor):
        raise AudioError(f"audio must be a torch.Tensor, got {type(wav).__name__}; of an array: torch.from_numpy(...)")
    if not wav.is_floating_point():
        raise AudioError(
            f"audio must be floating-point samples in [-1, 1], got {wav.dtype}; divide by its largest value"
        )
    if not checks_values:
        return
    require_values(wav, "audio", AudioError)
    if not (wav.abs() <= MAX_MAGNITUDE).all():
        if not torch.isfinite(wav).all():
            raise AudioError("the audio has NaN or infinite samples")
        raise AudioError(f"the audio has samples of {wav.abs().max():g}, full scale is 1; divide by its largest value")


def _build_quantizer(config: Any) -> Quantizer:
    settings = {setting.name: getattr(config, setting.name) for setting in fields(config) if setting.name != "kind"}
    if config.kind not in QUANTIZERS:
        add_quantizers_of_others()
    quantizer: Quantizer = QUANTIZERS[config.kind][1](**settings)
    return quantizer
