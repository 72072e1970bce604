"""Sound files <-> files of codes, in blocks: the memory needed does not depend on the length of a recording.

Here sound files, models and code files meet. What the command line does, these functions do.
"""

import dataclasses
import errno
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from codec.audio import SoundReader, SoundWriter, output_format, require_regular
from codec.bitstream import Block, CodesReader, Header, fit_name, packed_size
from codec.code_files import CodeReader, code_format, open_code_reader, open_code_writer
from codec.errors import CodecError, ConfigError, FormatError, ModelError
from codec.limits import refining_steps
from codec.model import catalogue, weights
from codec.model.codec import Codec, check_samples
from codec.model.layers import MAX_FRAMES
from codec.output import check_output, is_stream, shown
from codec.progress import SecondsProgress
from codec.streaming import StreamDecoder, StreamEncoder, WindowDecoder

if TYPE_CHECKING:
    from codec.refinement import RefiningEncoder

DEFAULT_MODEL = "stream"
PRECISIONS = ("float32", "bf16")
MAX_WHOLE_SECONDS = 300.0
"""Up to this length models that look at whole clips do so. Longer recordings are encoded piece by piece, which gives
the same codes, and decoded in overlapping windows (`WindowDecoder`), which gives nearly the same sound."""
MAX_AT_ONCE = 8
"""Recordings that are encoded at once: the search for codes takes hardly longer for so many than for one."""
MAX_SECONDS_AT_ONCE = 60.0
"""Of recordings that are encoded at once, with their padding; more would only take more memory."""

_READ_SECONDS = 60.0  # of a file at once, so that encoding always has several pieces to work on
_REFINE_SECONDS = 5.0  # where that takes as long, so that progress is seen
_LIVE_BLOCK_FRAMES = 64  # from pipe to pipe a block leaves every 0.85 s, unless codes are refined
_FILE_BLOCK_FRAMES = 256


@dataclass(frozen=True)
class EncodeReport:
    """What `encode_file` did."""

    source: str
    target: str
    model: str
    fingerprint: str
    seconds: float  # of audio
    num_samples: int  # at the model's sample rate
    num_frames: int
    peak: float  # largest magnitude of what is encoded, mono at the model's sample rate; full scale is 1
    channels_cancel: bool  # so that little is left of them in the mean, which is encoded
    num_bytes: int | None  # of the target; None where it is a pipe, or was moved at once
    payload_bitrate: float  # of the codes alone, kbit/s
    bitrate: float | None  # of the whole file, kbit/s
    elapsed_seconds: float


@dataclass(frozen=True)
class DecodeReport:
    """What `decode_file` did."""

    source: str
    target: str
    model: str
    fingerprint: str
    seconds: float  # of audio
    num_samples: int
    num_frames: int
    num_saturated: int  # samples beyond +-1
    num_lost_frames: int  # silent in the target
    damage: str | None  # in words, None where there is none
    elapsed_seconds: float


def encode_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Codec = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    refine: int = 0,
    format: str | None = None,
    overwrite: bool = False,
    progress: SecondsProgress | None = None,
) -> EncodeReport:
    """Turn a sound file into a file of codes.

    Args:
        source: any sample rate and number of channels; "-" for standard input.
        target: .codes, .npy, .json or .txt; "-" for standard output. It appears when it is complete.
        model: name of a boxed model, directory, Hub id, or a loaded model. The last one loaded by name is kept; a
            process that is forked then may hang in it, see `codec.load`.
        device: "cpu", "cuda", "mps" or "auto"; of no meaning for a loaded model.
        precision: of the network's large products, "float32" or "bf16": faster where the processor has instructions
            for it. Most codes differ then, as each depends on those before it.
        refine: steps in which the codes are made to sound better, see `codec.refinement`; 0: as the encoder gives them.
        format: "codes", "npy", "json" or "txt", where the suffix of `target` does not say it.
        overwrite: allow replacing `target`.
        progress: see `codec.progress.SecondsProgress`.

    Raises:
        CodecError: the sound, the model or the target cannot be used; nothing is written.
        OSError: the target exists or cannot be written.
    """
    start = time.perf_counter()
    format = code_format(target, format)
    _check_places(source, target, overwrite)
    refine = refining_steps(refine)
    with SoundReader(source, block_seconds=_REFINE_SECONDS if refine else _READ_SECONDS) as sound:
        codec, name = load_model(model, device)
        arithmetic = _arithmetic(codec, precision)
        sound.sample_rate = codec.sample_rate
        is_live = sound.is_live and is_stream(target)
        encoder = _encoder_of(codec, refine, is_live)
        block_frames = _LIVE_BLOCK_FRAMES if is_live else _FILE_BLOCK_FRAMES
        header = dataclasses.replace(header_of(codec, name), block_frames=block_frames)
        total = None if sound.num_samples is None else sound.num_samples / codec.sample_rate
        counted = _Counted(sound, codec.sample_rate, total, progress)
        num_frames = 0
        with open_code_writer(target, header, format, overwrite) as writer, arithmetic:
            for codes in _encode_blocks(encoder, counted):
                num_frames += len(codes)
                writer.write(codes)
            writer.close(counted.num_samples)
    seconds = counted.num_samples / codec.sample_rate
    num_bytes = None
    if not is_stream(target):
        with suppress(FileNotFoundError):  # whoever waited for it may have moved it
            num_bytes = os.path.getsize(target)
    return EncodeReport(
        source=os.fspath(source),
        target=os.fspath(target),
        model=name,
        fingerprint=codec.fingerprint,
        seconds=seconds,
        num_samples=counted.num_samples,
        num_frames=num_frames,
        peak=counted.peak,
        channels_cancel=sound.channels_cancel,
        num_bytes=num_bytes,
        payload_bitrate=packed_size(num_frames, header.bits_per_code) * 8 / seconds / 1000,
        bitrate=None if num_bytes is None else num_bytes * 8 / seconds / 1000,
        elapsed_seconds=time.perf_counter() - start,
    )


def encode_sounds(
    sources: Sequence[str | os.PathLike[str]], codec: Codec, precision: str = "float32", refine: int = 0
) -> list[tuple[np.ndarray, int] | CodecError | OSError]:
    """The codes that `encode_file` would write of each file, up to rounding; short recordings are encoded at once.

    Args:
        sources: regular files of any sample rates and numbers of channels. Few, as all short ones are read before any
            is encoded.
        codec: a loaded model.
        precision: see `encode_file`.
        refine: see `encode_file`; one recording after the other then.

    Returns:
        In the same order codes (N,) int64 and the number of samples at the model's sample rate, or the error of a sound
        that cannot be used.
    """
    results: list[Any] = []
    with _arithmetic(codec, precision):
        for source in sources:
            try:
                results.append(_read_or_encode(source, codec, refine))
            except (CodecError, OSError) as error:
                results.append(error)
        short = [place for place, result in enumerate(results) if isinstance(result, Tensor)]
        for group in group_alike([len(results[place]) / codec.sample_rate for place in short]):
            places = [short[number] for number in group]
            wavs = [results[place] for place in places]
            lengths = torch.tensor([len(wav) for wav in wavs], device="cpu")
            padded = pad_sequence(wavs, batch_first=True)[:, None]  # (B, 1, T)
            batch = codec.encode(padded.to(codec.device), lengths).cpu().numpy()
            for place, wav, codes in zip(places, wavs, batch, strict=True):
                results[place] = codes[: codec.num_frames(len(wav))], len(wav)
    return results


def group_alike(seconds: Sequence[float], most: int = MAX_AT_ONCE) -> list[list[int]]:
    """Which of several recordings to encode at once: those of like length, as padding takes time; the longest first.

    Args:
        seconds: of each.
        most: in a group.

    Returns:
        Groups of places in `seconds`. One of several recordings has at most `MAX_SECONDS_AT_ONCE` with its padding.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(seconds)), key=lambda place: -seconds[place]):
        if groups and len(groups[-1]) < most and (len(groups[-1]) + 1) * seconds[groups[-1][0]] <= MAX_SECONDS_AT_ONCE:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _read_or_encode(source: str | os.PathLike[str], codec: Codec, refine: int) -> Tensor | tuple[np.ndarray, int]:
    """The samples (T,) of a sound that can be encoded with others, else its codes and the number of its samples."""
    is_alone = bool(refine) or not codec.is_streamable
    require_regular(Path(source))
    with SoundReader(source, codec.sample_rate) as sound:
        counted = _Counted(sound, codec.sample_rate, None, None)
        blocks, start = iter(counted), list[np.ndarray]()
        while not is_alone and sum(map(len, start)) <= MAX_SECONDS_AT_ONCE / 2 * codec.sample_rate:
            block = next(blocks, None)
            if block is None:
                wav = torch.from_numpy(np.concatenate(start))
                check_samples(wav)  # which resampling may have put out of range: no fault of the others
                return wav
            start.append(block)
        encoder = _encoder_of(codec, refine, is_live=False)
        codes = np.concatenate(list(_encode_blocks(encoder, chain(start, blocks))))
        return codes, counted.num_samples


def decode_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Codec | None = None,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    format: str | None = None,
    overwrite: bool = False,
    recover: bool = False,
    force: bool = False,
    progress: SecondsProgress | None = None,
) -> DecodeReport:
    """Turn a file of codes into a sound file: from .codes and .json of exactly the length of the recording, from .npy
    and .txt, which do not know it, of whole frames.

    Args:
        source: .codes, .npy, .json or .txt; "-" for standard input.
        target: .wav, .flac or .ogg; "-" for standard output. It appears when it is complete.
        model: name of a boxed model, directory, Hub id, or a loaded model; None takes the boxed one that made the
            codes, or the default where the file does not tell. The last one loaded by name is kept.
        device: "cpu", "cuda", "mps" or "auto"; of no meaning for a loaded model.
        precision: of the network's large products, "float32" or "bf16": faster where the processor has instructions
            for it. Sound decodes a little less exactly then.
        format: "wav", "flac", "ogg" or "wav-float", where the suffix of `target` does not say it.
        overwrite: allow replacing `target`.
        recover: keep what is intact of a damaged file, with silence in the holes. Decoding begins anew behind each.
        force: decode with a model that did not make the codes.
        progress: see `codec.progress.SecondsProgress`.

    Raises:
        CodecError: the codes, the model or the target cannot be used, or do not fit each other; nothing is written.
        OSError: the source cannot be opened, the target exists or cannot be written.
    """
    output_format(target, format)
    _check_places(source, target, overwrite)
    with open_code_reader(source, recover) as reader:
        return decode_codes(
            reader,
            os.fspath(source),
            target,
            model=model,
            device=device,
            precision=precision,
            format=format,
            overwrite=overwrite,
            force=force,
            is_live=not os.path.isfile(source),
            seconds=_estimate_seconds(source, reader),
            progress=progress,
        )


def decode_codes(
    reader: CodeReader,
    source: str,
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Codec | None = None,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    format: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    is_live: bool = False,
    seconds: float | None = None,
    progress: SecondsProgress | None = None,
) -> DecodeReport:
    """Turn codes from anywhere into a sound file; see `decode_file` for all but these arguments.

    Args:
        reader: gives the codes.
        source: what the report and errors call them.
        is_live: decode each block when it comes, instead of as many as are decoded fastest together.
        seconds: about how long the sound is, where that is known, for `progress`.
    """
    start = time.perf_counter()
    name = shown(source, "standard input")
    codec, model_name = load_for(reader.header, model, device, force, name)
    arithmetic = _arithmetic(codec, precision)
    with SoundWriter(target, codec.sample_rate, format=format, overwrite=overwrite) as sound, arithmetic:
        num_frames = 0
        held = np.zeros(0, np.float32)  # the last frame: it may have to be cut, or to fade into a hole
        after_hole = False
        for wav, is_hole in _decode_blocks(codec, _checked(reader, codec.codebook_size, name), is_live):
            _fade(held, wav, after_hole, is_hole)
            num_frames += len(wav) // codec.hop_length
            sound.write(np.concatenate([held, wav[: -codec.hop_length]]))
            held, after_hole = wav[-codec.hop_length :], is_hole
            if progress is not None:
                progress(num_frames / codec.frame_rate, seconds)
        if num_frames == 0:
            raise FormatError(f"{name}: holds no codes, so there is nothing to hear")
        num_samples = reader.num_samples
        if num_samples is None:
            num_samples = num_frames * codec.hop_length
        sound.write(held[: num_samples - sound.num_samples])
    damage = reader.damage.describe(codec.frame_rate) if reader.damage else None
    return DecodeReport(
        source=source,
        target=os.fspath(target),
        model=model_name,
        fingerprint=codec.fingerprint,
        seconds=sound.num_samples / codec.sample_rate,
        num_samples=sound.num_samples,
        num_frames=num_frames,
        num_saturated=sound.num_saturated,
        num_lost_frames=reader.damage.lost_frames,
        damage=damage,
        elapsed_seconds=time.perf_counter() - start,
    )


def roundtrip_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Codec = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    refine: int = 0,
    format: str | None = None,
    overwrite: bool = False,
    progress: SecondsProgress | None = None,
) -> tuple[EncodeReport, DecodeReport]:
    """Sound file -> codes -> sound file, through a temporary `.codes` file; arguments as for the two steps."""
    output_format(target, format)
    _check_places(source, target, overwrite)

    def half(share: float) -> SecondsProgress | None:
        return progress and (lambda done, total: progress(done / 2 + share * (total or 0.0), total))

    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        codes = Path(folder) / "roundtrip.codes"
        encoded = encode_file(
            source, codes, model=model, device=device, precision=precision, refine=refine, progress=half(0.0)
        )
        decoded = decode_file(
            codes,
            target,
            model=model,
            device=device,
            precision=precision,
            format=format,
            overwrite=overwrite,
            progress=half(0.5),
        )
    return encoded, decoded


def _check_places(source: str | os.PathLike[str], target: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a target that cannot be meant.

    Raises:
        OSError: see `check_output`; the target is the source.
    """
    check_output(target, overwrite=overwrite)
    is_path = isinstance(source, str | os.PathLike)  # else whoever opens it will say so
    if is_path and os.path.isfile(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise FileExistsError(errno.EEXIST, "would be replaced by what is made of it; choose another name", target)


def _encoder_of(codec: Codec, refine: int, is_live: bool) -> "StreamEncoder | RefiningEncoder | _WholeIfShort":
    """What turns a signal, piece by piece, into codes, refined in so many steps."""
    if refine:
        from codec.refinement import RefiningEncoder  # with the losses of training, which nothing else here needs

        return RefiningEncoder(codec, refine)
    stream = StreamEncoder(codec)
    if codec.is_streamable or is_live:
        return stream
    limit = round(MAX_WHOLE_SECONDS * codec.sample_rate)
    return _WholeIfShort(lambda wav: codec.encode(wav.to(codec.device)[None, None])[0].cpu(), stream, limit)


def _encode_blocks(
    encoder: "StreamEncoder | RefiningEncoder | _WholeIfShort", blocks: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Samples (T,) as they come -> codes (n,) as they are certain."""
    for block in blocks:
        yield encoder.push(torch.from_numpy(block)).numpy()
    yield encoder.flush().numpy()


def _decode_blocks(codec: Codec, blocks: Iterable[Block], is_live: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks of codes -> pieces of sound, whole frames each, and whether they are in a hole, which is silent.

    Behind a hole decoding begins anew, as at the start of a recording: whatever codes stood in for those that are lost,
    a predictive quantizer could be driven far out of range by them, and the decoder would attend to that for a while.
    """
    for is_hole, run in groupby(blocks, key=lambda block: block.is_hole):
        if is_hole:
            yield from ((np.zeros(block.num_frames * codec.hop_length, np.float32), True) for block in run)
        else:
            codes = (block.codes for block in run if block.codes is not None)
            yield from ((wav, False) for wav in _decode_codes(codec, codes, is_live) if len(wav))


def _decode_codes(codec: Codec, blocks: Iterable[np.ndarray], is_live: bool) -> Iterator[np.ndarray]:
    """Codes (n,) as they come -> samples (n * hop_length,), n >= 0.

    Live, every block is decoded when it comes; otherwise as many as are decoded fastest together.
    """
    decoder: StreamDecoder | _WholeIfShort
    if codec.is_streamable:
        decoder = StreamDecoder(codec)
    else:
        limit = round(MAX_WHOLE_SECONDS * codec.frame_rate)
        stream = WindowDecoder(codec)
        decoder = _WholeIfShort(lambda codes: codec.decode(codes.to(codec.device)[None])[0, 0].cpu(), stream, limit)
    waiting = np.zeros(0, np.int64)
    for codes in blocks:
        waiting = np.concatenate([waiting, codes])
        if is_live or len(waiting) >= MAX_FRAMES:
            yield decoder.push(torch.from_numpy(waiting)).numpy()
            waiting = waiting[:0]
    yield decoder.push(torch.from_numpy(waiting)).numpy()
    yield decoder.flush().numpy()


class _WholeIfShort:
    """Gathers pieces and handles all of them at once; with more than `limit` elements it goes over to a stream."""

    def __init__(self, whole: Callable[[Tensor], Tensor], stream: StreamEncoder | WindowDecoder, limit: int):
        self._whole, self._stream, self._limit = whole, stream, limit
        self._parts: list[Tensor] = []
        self._num_elements = 0

    def push(self, piece: Tensor) -> Tensor:
        """Feed (n,), get what the stream gives, as long as it is not in use nothing."""
        self._parts.append(piece)
        self._num_elements += len(piece)
        if self._num_elements <= self._limit:
            return self._stream.push(piece[:0])
        everything, self._parts = torch.cat(self._parts), []
        return self._stream.push(everything)

    def flush(self) -> Tensor:
        """End the signal: all of it if it is short, else what the stream still gives."""
        return self._whole(torch.cat(self._parts)) if self._parts else self._stream.flush()


def _fade(before: np.ndarray, after: np.ndarray, before_is_hole: bool, after_is_hole: bool) -> None:
    """Let sound end before a hole, and begin behind it, within a frame and not with a click."""
    if after_is_hole and not before_is_hole:
        before *= np.linspace(1.0, 0.0, len(before), dtype=np.float32)
    elif before_is_hole and not after_is_hole:
        after[: len(before)] *= np.linspace(0.0, 1.0, len(before), dtype=np.float32)


def _checked(reader: CodeReader, codebook_size: int, name: str) -> Iterator[Block]:
    """The blocks, refusing codes that the model does not have (plain integers were not checked before)."""
    for block in reader:
        if block.codes is not None and block.codes.max(initial=0) >= codebook_size:
            wrong = int(np.argmax(block.codes >= codebook_size))
            raise FormatError(
                f"{name}: code {block.codes[wrong]} at frame {block.start + wrong} is not one of the model's "
                f"{codebook_size}; cut off ids that a language model has added, or decode with the model that made it"
            )
        yield block


class _Counted:
    """Blocks of samples as they are, counted, measured and reported."""

    def __init__(
        self, blocks: Iterable[np.ndarray], sample_rate: int, total: float | None, progress: SecondsProgress | None
    ):
        self.num_samples = 0
        self.peak = 0.0
        self._blocks, self._sample_rate, self._total, self._progress = blocks, sample_rate, total, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            yield block
            self.num_samples += len(block)
            self.peak = max(self.peak, float(np.abs(block).max()))
            if self._progress is not None:
                self._progress(self.num_samples / self._sample_rate, self._total)


# ----------------------------------------------------------------------------------------------------------- models


def header_of(model: Codec, name: str = "") -> Header:
    """The header of a file of codes, for `write_codes`: their rates, and the model that decodes them.

    Args:
        model: the codec that is to decode them, whoever wrote them: `Codec.encode` or a language model.
        name: of the codec, for people.

    Returns:
        The header of a file in blocks of the usual size.

    Raises:
        ModelError: no model.
        FormatError: the name is no string.
    """
    model, _ = load_model(model, "cpu")  # which finds the fingerprint of one whose weights have changed
    return Header(model.sample_rate, model.hop_length, model.codebook_size, model.fingerprint, fit_name(name))


def load_model(model: str | os.PathLike[str] | Codec, device: str | torch.device) -> tuple[Codec, str]:
    """A model ready for use, and the name that code files carry for people. The last one loaded by name is kept.

    Raises:
        ModelError: there is no such model, or it is damaged.
        ConfigError: there is no such device.
    """
    if isinstance(model, Codec):
        model.fingerprint = model.fingerprint or weights.fingerprint(model)
        return model, ""
    if not isinstance(model, str | os.PathLike):  # such as what torch.compile makes: it renames the weights
        raise ModelError(
            f"a model as codec.load gives it, or its name or directory, is meant, got {type(model).__name__}"
        )
    directory = catalogue.resolve(model).resolve()
    changed = tuple((directory / name).stat().st_mtime_ns for name in (catalogue.CONFIG_NAME, catalogue.WEIGHTS_NAME))
    return _load_directory(directory, str(device), changed), fit_name(catalogue.name_of(model))


@functools.lru_cache(maxsize=1)
def _load_directory(directory: Path, device: str, changed: tuple[int, ...]) -> Codec:
    return weights.load(directory, device)


def load_for(
    header: Header | None,
    model: str | os.PathLike[str] | Codec | None,
    device: str | torch.device,
    force: bool,
    source: str,
) -> tuple[Codec, str]:
    """The model asked for, or else the one that made the codes, held against what the header says; see `load_model`.

    Raises:
        ModelError: the model does not fit the codes, or no boxed one does.
    """
    if header is None:
        return load_model(DEFAULT_MODEL if model is None else model, device)
    if model is None:
        model = _made_by(header, force, source)
    codec, name = load_model(model, device)
    made = f"{source}: made by model {header.model!r} ({header.fingerprint})"
    if header.fingerprint != codec.fingerprint and not force:
        raise ModelError(
            f"{made}, not by {name!r} ({codec.fingerprint}); name its directory with --model, or decode all the same "
            f"with --force"
        )
    its, ours = [(m.sample_rate, m.hop_length, m.codebook_size) for m in (header, codec)]
    if its != ours:
        raise ModelError(f"{made}; sample rate, hop length and codebook size {its} do not fit {ours} of {name!r}")
    return codec, name


def _made_by(header: Header, force: bool, source: str) -> str:
    boxed = catalogue.boxed_models()
    for name, directory in boxed.items():
        if catalogue.fingerprint(directory) == header.fingerprint:
            return name
    if force:
        return header.model if header.model in boxed else DEFAULT_MODEL
    made = f"{source}: made by model {header.model!r} ({header.fingerprint}), which"
    if version := catalogue.RETIRED.get(header.fingerprint):
        raise ModelError(f"{made} was in the box up to version {version}: decode with that, or encode the sound again")
    raise ModelError(
        f"{made} is not in the box ({', '.join(boxed) or 'empty'}); name its directory with --model, or decode all the "
        "same with --force"
    )


def _estimate_seconds(source: str | os.PathLike[str], reader: CodeReader) -> float | None:
    """Length of a `.codes` file by its size, good to a few percent; None of others, and of pipes."""
    if not isinstance(reader, CodesReader) or is_stream(source):
        return None
    return os.path.getsize(source) * 8 / (reader.header.bitrate * 1000)


def _arithmetic(codec: Codec, precision: str) -> torch.autocast:
    """The context in which the network runs, whatever the caller's.

    Raises:
        ConfigError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    is_bf16 = precision == "bf16"
    return torch.autocast(codec.device.type, torch.bfloat16 if is_bf16 else None, enabled=is_bf16)
