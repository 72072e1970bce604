"""Sound file <-> float32 samples, in blocks, so that the length of a file never costs memory.

The only user of soundfile and of the resampler. Knows nothing of models and codes.
"""

import contextlib
import os
import re
import stat
import struct
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, TypeVar

import numpy as np
import soundfile
import soxr

from codec import mp3, ogg, riff
from codec.errors import AudioError, CodecWarning
from codec.limits import MAX_MAGNITUDE, MAX_SAMPLE_RATE
from codec.output import STANDARD_STREAM, check_path, chosen_format, naming, open_output, shown

INPUT_SUFFIXES = frozenset({
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp2", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".rf64",
    ".w64", ".sph", ".gsm",
})  # fmt: skip
"""Files that a folder is searched for. Any other file that libsndfile knows is read too when it is named."""

FOREIGN_SUFFIXES = frozenset({
    ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".mka", ".ape", ".wv", ".ac3", ".spx",
})  # fmt: skip
"""Of sound that people have and libsndfile cannot read."""

OUTPUT_FORMATS = {"wav": ".wav", "flac": ".flac", "ogg": ".ogg", "wav-float": ".wav"}
"""Name of each format that can be written -> its suffix. wav and flac hold 16 bits, ogg is Vorbis."""

_WRONG_RATE = f"a sample rate must be an integer from 1 to {MAX_SAMPLE_RATE} Hz"

_VALUES_PER_READ = 1 << 22  # 16 MiB of float32, all channels together
SAMPLE_BYTES = {
    "PCM_U8": 1, "PCM_S8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
"""Of each subtype whose samples all take as much."""

_SIZE_OF_SAMPLES = {
    "WAV": ("data", 0),
    "WAVEX": ("data", 0),
    "AIFF": ("SSND", 0),
    "AU": ("Data Size", 0),
    "RF64": ("Data size", 0),
    "W64": ("data", 31),
}
"""By format, how libsndfile's log calls the bytes of samples that the header promises, and how many others they may
count: of W64 a header of 24 and up to 7 of padding."""
_UNKNOWN_WAV_SIZE = 0x7FFF_0000  # bytes; programs that write to a pipe promise this much or more
_UNKNOWN_LENGTH = 1 << 62  # samples
_NIST_HEADER_BYTES = 1024
_NIST_LENGTH = re.compile(rb"^sample_count +-i +(\d{1,18})\s", re.MULTILINE)  # samples per channel
_FAULT_FINDERS = {"OGG": ogg.find_fault, "MP3": mp3.find_fault, "WAV": riff.find_fault, "WAVEX": riff.find_fault}
_LONGEST_NAME = 1023  # bytes, for libsndfile
_VALUES_PER_ENCODE = 1 << 15  # libvorbis keeps what it is given at once on the stack
_MOST_OF_VORBIS = 200_000  # Hz; beyond it libsndfile crashes


Found = TypeVar("Found")


@dataclass(frozen=True)
class SoundInfo:
    """What the header of a sound file says."""

    sample_rate: int  # Hz
    channels: int
    num_samples: int | None  # per channel; None where the header does not know
    format: str  # "WAV PCM_16"


def walk(folder: Path, with_folders: bool = False) -> Iterator[Path]:
    """Every file below a folder but those in hidden folders; links to folders are followed, each folder is seen once.

    A folder that is linked to is seen in its own place, if that is below `folder` too. `with_folders` gives the folders
    themselves as well.

    Raises:
        AudioError: a folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:  # which `os.walk` would leave out without a word
        raise AudioError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    seen = set()
    waiting = [os.fspath(folder)]
    for start in waiting:
        for place, subfolders, names in os.walk(start, onerror=refuse):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            waiting += [link for name in subfolders if os.path.islink(link := os.path.join(place, name))]
            yield from (Path(place, name) for name in (subfolders + names if with_folders else names))


def find_files(folder: Path, suffixes: Set[str]) -> list[Path]:
    """The files that `walk` finds with one of the suffixes (".wav"), in order; hidden ones, and pipes, are left out."""
    return sorted(
        path
        for path in walk(folder)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and _kind(path) != stat.S_IFIFO
    )


def require_regular(path: Path) -> None:
    """Raises AudioError where a list names what is there but is no file: a pipe would be waited for without end."""
    if _kind(path) not in (stat.S_IFREG, 0):
        raise AudioError(f"{path}: is no regular file")


def _kind(path: Path) -> int:
    """`S_IFREG` and the like; 0 where the system does not tell, which says why when the file is opened."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return 0


def passed_over(folder: Path, paths: Iterable[Path]) -> str:
    """A sentence about those files of a folder that are sound which cannot be read; empty without any."""
    foreign = sorted(p for p in paths if p.suffix.lower() in FOREIGN_SUFFIXES and not p.name.startswith("."))
    if not foreign:
        return ""
    kinds = ", ".join(sorted({path.suffix.lower() for path in foreign}))
    return f"{folder}: sound in {kinds} cannot be read (such as {foreign[0].name}); convert it to wav"


def find_sounds(folder: Path) -> list[Path]:
    """The sound files below a folder, see `find_files`. Warns of sound beside them that cannot be read.

    Raises:
        AudioError: there is no such folder, none in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder}: {'is a file, a folder is meant' if folder.exists() else 'no such folder'}")
    files = find_files(folder, INPUT_SUFFIXES | FOREIGN_SUFFIXES)
    sounds = [path for path in files if path.suffix.lower() in INPUT_SUFFIXES]
    foreign = passed_over(folder, files)
    if not sounds:
        raise AudioError(foreign or f"{folder}: has no sound files ({', '.join(sorted(INPUT_SUFFIXES))})")
    if foreign:
        warnings.warn(foreign, CodecWarning, stacklevel=2)
    return sounds


# ---------------------------------------------------------------------------------------------------------- reading


class SoundReader:
    """Blocks of a sound file as mono float32 samples at one sample rate.

    Iterating gives arrays (T,) of any positive length. A file of S samples at R Hz gives exactly
    ceil(S * sample_rate / R) samples in total: every instant of the file is covered, and none twice.

    Args:
        path: a file, a named pipe, or "-" for standard input. A wav file is followed live through a pipe; any other
            format is first copied to a temporary file.
        sample_rate: of the samples handed out, Hz; None keeps the file's own. The attribute of this name may be set
            until iterating begins.
        block_seconds: audio handed out at a time, at most; of a live pipe, half a second.

    Attributes:
        info: what the header says.
        is_live: whether samples are handed out while they are made: a wav file in a pipe.

    Raises:
        AudioError: cannot be opened, is no audio, ends before its header says, has no samples, or has samples that are
            NaN, infinite or beyond +-100. Everything behind the header is found while iterating.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int | None = None, block_seconds: float = 10.0):
        if not isinstance(path, str | os.PathLike):
            raise AudioError(
                f"the path of a sound file is meant, got {type(path).__name__}; Codec.encode takes samples"
            )
        self.name = shown(path, "standard input")
        self._resources = contextlib.ExitStack()
        self._failures: list[OSError] = []  # of a live pipe
        with contextlib.ExitStack() as guard:
            guard.callback(self.close)
            self._sound = self._open(path)
            self.info = SoundInfo(
                sample_rate=self._sound.samplerate,
                channels=self._sound.channels,
                num_samples=self._promised_samples(),
                format=f"{self._sound.format} {self._sound.subtype}",
            )
            if not _is_rate(self.info.sample_rate):
                raise AudioError(f"{self.name}: {_WRONG_RATE}, is {self.info.sample_rate}")
            guard.pop_all()
        self.sample_rate = self.info.sample_rate if sample_rate is None else sample_rate
        seconds = min(block_seconds, 0.5) if self.is_live else block_seconds
        self._block = max(1, min(int(seconds * self.info.sample_rate), _VALUES_PER_READ // self.info.channels))
        self._mix_energy = self._channel_energy = 0.0  # of several channels: of their mean, and their mean energy

    @property
    def num_samples(self) -> int | None:
        """Samples that iterating gives in total if the header is right; None where it does not know."""
        if self.info.num_samples is None:
            return None
        return resampled_length(self.info.num_samples, self.info.sample_rate, self.sample_rate)

    @property
    def channels_cancel(self) -> bool:
        """Whether the channels so far cancel each other: their mean is more than 20 dB softer than they are."""
        return self._mix_energy < self._channel_energy / 100

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file; iterating is over."""
        self._resources.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = Resampler(self.info.sample_rate, self.sample_rate)
        for block in self.channel_blocks():
            if len(resampled := resampler.push(self._mix(block))):
                yield resampled
        if len(resampled := resampler.flush()):
            yield resampled

    def _mix(self, block: np.ndarray) -> np.ndarray:  # (C, T) -> (T,)
        if len(block) == 1:
            return block[0]
        mix: np.ndarray = block.mean(axis=0, dtype=np.float32)
        self._mix_energy += float(np.square(mix).sum(dtype=np.float64))
        self._channel_energy += float(np.square(block).sum(dtype=np.float64)) / len(block)
        return mix

    def channel_blocks(self) -> Iterator[np.ndarray]:
        """Blocks (C, T) of the file as it is: all channels, its own sample rate, checked."""
        if self._find_fault is not None and (fault := self._look(self._find_fault)):
            raise AudioError(f"{self.name}: {fault}")
        position = 0
        while len(block := self._read(position)):
            _check_samples(block, self.name, position, self.info.sample_rate)
            position += len(block)
            yield block.T
        self._refuse_failure()
        if position == 0:
            raise AudioError(f"{self.name}: has no samples; record at least one")
        promised = self.info.num_samples
        if promised is not None and position < promised - self._tolerance():
            raise AudioError(
                f"{self.name}: the file is cut off, its header promises {promised} samples and {position} are there; "
                f"copy it again"
            )

    def _refuse_failure(self) -> None:
        for failure in self._failures:
            raise AudioError(f"{self.name}: cannot be read to its end ({_reason(failure)})") from failure

    def _look(self, look: Callable[[IO[bytes]], Found]) -> Found:
        """What a look at the bytes of the file finds."""
        with naming(self.name):
            place = self._bytes.tell()  # libsndfile may read from the same stream
            self._bytes.seek(0)
            found = look(self._bytes)
            self._bytes.seek(place)
        return found

    def _read(self, position: int) -> np.ndarray:  # (T, C)
        try:
            return self._sound.read(self._block, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            seconds = position / self.info.sample_rate
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            raise AudioError(f"{self.name}: damaged or cut off at {seconds:.2f} s or later ({reason})") from error

    def _source(self, path: str | os.PathLike[str]) -> IO[bytes]:
        """The bytes of the file or pipe."""
        if os.fspath(path) == STANDARD_STREAM:
            return sys.stdin.buffer
        check_path(path, AudioError)
        if os.path.isdir(path):
            raise AudioError(f"{self.name}: is a directory, a sound file is meant")
        try:
            source = self._resources.enter_context(open(path, "rb"))
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be opened ({error.strerror})") from error
        if Path(path).suffix.lower() == ".raw":
            raise AudioError(f"{self.name}: samples without a header cannot be understood; convert the file to wav")
        return source

    def _open(self, path: str | os.PathLike[str]) -> soundfile.SoundFile:
        self._bytes, self.is_live = self._source(path), False
        try:
            sound = self._resources.enter_context(_ForwardFile(self._seekable()))
            self._find_fault = None if self.is_live else _FAULT_FINDERS.get(sound.format)
            if sound.format == "MP3" and not (sound.subtype == "MPEG_LAYER_III" and self._look(mp3.states_length)):
                # Of a file libsndfile would guess the length, of a pipe it takes all there is.
                self._find_fault = None  # nothing is stated that could be wrong
                descriptor = os.dup(self._bytes.fileno())
                os.lseek(descriptor, 0, os.SEEK_SET)
                sound = self._resources.enter_context(_ForwardFile(_piped(b"", descriptor, self._failures)))
            return sound
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read ({_reason(error)})") from error
        except soundfile.LibsndfileError as error:
            self._refuse_failure()
            empty = not self.is_live and os.fstat(self._bytes.fileno()).st_size == 0
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            what = "is empty" if empty else f"is not a sound file that can be read ({reason})"
            remedy = "" if empty else "; convert it to wav or flac, for example with ffmpeg"
            raise AudioError(f"{self.name}: {what}{remedy}") from error

    def _seekable(self) -> str | bytes | int | IO[bytes]:
        """Something libsndfile can read: the file itself, the live pipe of a wav file, or a copy of another pipe."""
        source = self._bytes
        if stat.S_ISREG(os.fstat(source.fileno()).st_mode) and source.seekable():
            # By its name, as some formats are told by their suffix; as bytes, because a name need not be UTF-8.
            name = os.fsencode(self.name) if os.name == "posix" else self.name
            return source if source is sys.stdin.buffer or len(name) > _LONGEST_NAME else name
        # Read around Python's buffer: a thread that waits inside it would keep the process from ending.
        descriptor = source.fileno()
        start = b""
        while len(start) < 4 and (more := os.read(descriptor, 4 - len(start))):
            start += more
        if start in (b"RIFF", b"RIFX"):
            self.is_live = True
            return _piped(start, os.dup(descriptor), self._failures)
        self._bytes = copy = tempfile.TemporaryFile()
        self._resources.callback(_taking_room(self.name)(copy.close))  # what could not be written is tried again
        chunk = start
        while chunk:
            with _taking_room(self.name):
                copy.write(chunk)
            chunk = os.read(descriptor, 1 << 16)
        with _taking_room(self.name):
            copy.flush()
        if not copy.tell():
            raise AudioError(f"{self.name}: is empty; a sound file is meant")
        copy.seek(0)
        return copy

    def _promised_samples(self) -> int | None:
        if self._sound.frames >= _UNKNOWN_LENGTH:
            return None
        frame_bytes = self._sound.channels * SAMPLE_BYTES.get(self._sound.subtype, 4)
        if self.is_live:
            promised = self._sound.frames
            return promised if promised * frame_bytes < _UNKNOWN_WAV_SIZE - frame_bytes else None
        if self._sound.format == "NIST":  # libsndfile goes by the size of the file
            stated = _NIST_LENGTH.search(self._look(lambda stream: stream.read(_NIST_HEADER_BYTES)))
            return max(int(stated[1]) if stated else 0, self._sound.frames)
        # libsndfile quietly shortens a cut file, and says so only in its log.
        pattern, overhead = _SIZE_OF_SAMPLES.get(self._sound.format, (r"(?!)", 0))
        found = re.search(rf"^ *{pattern} *: *(\d+)( \(should be \d+\))?", self._sound.extra_info, re.MULTILINE)
        if found is None or not self._sound.frames:
            return self._sound.frames
        size, is_corrected = int(found[1]) - overhead, bool(found[2])
        if self._sound.format not in ("W64", "RF64") and not (is_corrected and 0 < size < _UNKNOWN_WAV_SIZE):
            return self._sound.frames
        return max(size // frame_bytes, self._sound.frames + is_corrected)

    def _tolerance(self) -> int:
        """Samples that may be missing without suspicion: in mp3 some count the frame that states the number too."""
        return mp3.FRAME_SAMPLES if self._sound.format == "MP3" else 0


def _reason(error: OSError) -> str:
    """Why a stream cannot be read."""
    if isinstance(error, BlockingIOError):
        return "no data yet; open it in blocking mode"
    return error.strerror or str(error)


@contextlib.contextmanager
def _taking_room(name: str) -> Iterator[None]:
    """Tell the temporary copy of a pipe, which cannot be written, from the pipe."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise AudioError(
            f"{name}: does not fit the temporary folder {folder} ({error.strerror}); set TMPDIR to another"
        ) from error


def read(path: str | os.PathLike[str], sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """All of a sound file as mono.

    Args:
        path: as for `SoundReader`.
        sample_rate: to resample to, Hz; None keeps the file's own.

    Returns:
        (1, T) float32 and its sample rate.

    Raises:
        AudioError: see `SoundReader`.
    """
    with SoundReader(path, sample_rate) as sound:
        return np.concatenate(list(sound))[None], sound.sample_rate


def info(path: str | os.PathLike[str]) -> SoundInfo:
    """What the header of a sound file says. Raises AudioError where it cannot be opened or is no audio."""
    with SoundReader(path) as sound:
        return sound.info


class _ForwardFile(soundfile.SoundFile):
    """Read from front to end: python-soundfile would seek after every block, which not every file allows."""

    def seekable(self) -> bool:
        return False


def _piped(start: bytes, source: int, failures: list[OSError]) -> int:
    """A pipe that gives some bytes and then what a descriptor has, which is closed in the end.

    It ends, too, where the descriptor cannot be read, and the error is then in `failures`.
    """
    reading, writing = os.pipe()
    threading.Thread(target=_pump, args=(start, source, writing, failures), daemon=True).start()
    return reading


def _pump(start: bytes, source: int, target: int, failures: list[OSError]) -> None:
    """Pass on a pipe whose first bytes were looked at; both descriptors are closed at the end."""
    with contextlib.suppress(OSError), open(source, "rb", buffering=0), open(target, "wb", buffering=0) as sink:
        chunk = start
        while True:
            sink.write(chunk)
            try:
                chunk = os.read(source, 1 << 16)
            except OSError as error:
                failures.append(error)
                break
            if not chunk:
                break


def _check_samples(block: np.ndarray, name: str, position: int, sample_rate: int) -> None:
    """Refuse what is no sound. `block` is (T, C); NaN fails every comparison."""
    if np.all(np.abs(block) <= MAX_MAGNITUDE):
        return
    first = int(np.argmin(np.all(np.abs(block) <= MAX_MAGNITUDE, axis=1)))
    value = block[first][~(np.abs(block[first]) <= MAX_MAGNITUDE)][0]
    what = "NaN" if value != value else f"{value:g}, and full scale is 1"
    where = f"sample {position + first} ({(position + first) / sample_rate:.3f} s)"
    raise AudioError(f"{name}: {where} is {what}; repair the recording")


def _is_rate(value: Any) -> bool:
    return hasattr(value, "__index__") and 1 <= value <= MAX_SAMPLE_RATE


def _float32(wav: Any) -> np.ndarray:
    """Samples that a caller gives, of any shape."""
    samples = np.asarray(wav)
    if samples.dtype.kind != "f":
        raise AudioError(f"samples must be floats, with full scale at 1, got {samples.dtype}")
    return np.ascontiguousarray(samples, dtype=np.float32)


# ------------------------------------------------------------------------------------------------------- resampling


def resampled_length(num_samples: int, source_rate: int, target_rate: int) -> int:
    """ceil(num_samples * target_rate / source_rate)"""
    return -(-num_samples * target_rate // source_rate)


class Resampler:
    """Changes the sample rate of a stream of mono blocks, with an exact total length.

    A band-limited polyphase filter of linear phase (soxr, "high quality": pass band to 91 % of the lower Nyquist
    frequency, stop band below -120 dB). Output sample k lies at the instant k / target_rate of the input, whatever the
    block sizes were.

    Args:
        source_rate: of what is pushed, Hz.
        target_rate: of what comes out, Hz.

    Raises:
        AudioError: a sample rate that is no integer from 1 to `MAX_SAMPLE_RATE`; samples that are no floats, or not
            of shape (T,).
    """

    def __init__(self, source_rate: int, target_rate: int):
        for rate in (source_rate, target_rate):
            if not _is_rate(rate):
                raise AudioError(f"{_WRONG_RATE}, got {rate!r}")
        self._source_rate, self._target_rate = int(source_rate), int(target_rate)
        self._begin()

    def _begin(self) -> None:
        self._num_pushed = self._num_given = 0
        self._stream = None
        if self._source_rate != self._target_rate:
            self._stream = soxr.ResampleStream(self._source_rate, self._target_rate, 1, dtype="float32", quality="HQ")

    def push(self, wav: np.ndarray) -> np.ndarray:
        """(T,) float32 -> the samples that are ready, (T',)."""
        wav = _float32(wav)
        if wav.ndim != 1:
            raise AudioError(f"samples to resample must be (T,), got {wav.shape}")
        if self._stream is None:
            return wav
        ready = self._stream.resample_chunk(wav)
        self._num_pushed += len(wav)
        self._num_given += len(ready)
        return ready

    def flush(self) -> np.ndarray:
        """The samples still due, so that the total is ceil(pushed * target_rate / source_rate).

        The resampler is then ready for another signal.
        """
        if self._stream is None:
            return np.zeros(0, dtype=np.float32)
        missing = resampled_length(self._num_pushed, self._source_rate, self._target_rate) - self._num_given
        # soxr rounds the total; one more output sample's worth of silence makes it reach the ceiling.
        silence = np.zeros(self._source_rate // self._target_rate + 1, dtype=np.float32)
        due: np.ndarray = self._stream.resample_chunk(silence, last=True)[:missing]
        self._begin()
        return due


def resample(wav: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """(T,) float32 at `source_rate` -> the same at `target_rate`, T' = ceil(T target_rate / source_rate)."""
    resampler = Resampler(source_rate, target_rate)
    return np.concatenate([resampler.push(wav), resampler.flush()])


# ---------------------------------------------------------------------------------------------------------- writing


class SoundWriter:
    """Takes blocks of samples and makes a mono sound file of them, which appears at `path` when the writer is left.

    Use it as a context manager; after an exception nothing is left. Samples beyond +-1 saturate and are counted in
    `num_saturated` (in "wav-float" they are kept as they are).

    Args:
        path: a file, a device, or "-" for standard output.
        sample_rate: Hz.
        format: a key of `OUTPUT_FORMATS`; None takes it from the suffix of `path`, wav where there is none.
        overwrite: allow replacing a file.
        num_samples: where it is known; the header of a wav that goes to a pipe has it then.

    Raises:
        AudioError: unknown format, a sample rate that is no integer from 1 to `MAX_SAMPLE_RATE`, samples that are NaN,
            infinite or no floats, none where flac is to be written, more than a wav file holds, or than the temporary
            folder does where flac or ogg goes to a pipe.
        OSError: see `codec.output.open_output`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        *,
        format: str | None = None,
        overwrite: bool = False,
        num_samples: int | None = None,
    ):
        self.format = output_format(path, format)
        self.num_samples = 0
        self.num_saturated = 0
        self._name = shown(path, "standard output")
        if not _is_rate(sample_rate):
            raise AudioError(f"{self._name}: {_WRONG_RATE}, got {sample_rate!r}")
        self._sample_rate = int(sample_rate)
        self._expected = num_samples
        self._output = open_output(path, overwrite=overwrite)

    def __enter__(self) -> "SoundWriter":
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._output)
            if self.format.startswith("wav"):
                is_float = self.format == "wav-float"
                self._sink: Any = _WavSink(stream, self._sample_rate, is_float, self._expected, self._name)
            else:
                self._sink = stack.enter_context(_CompressedSink(stream, self._sample_rate, self.format, self._name))
            self._stack = stack.pop_all()
        return self

    def write(self, wav: np.ndarray) -> None:
        """Append (T,) samples."""
        block = _float32(wav)
        if block.ndim != 1:
            raise AudioError(f"{self._name}: samples to write must be (T,), got {block.shape}")
        if not np.all(np.isfinite(block)):
            raise AudioError(f"{self._name}: samples to write must be finite")
        if self.format != "wav-float":
            self.num_saturated += int(np.count_nonzero(np.abs(block) > 1.0))
        self._sink.write(block)
        self.num_samples += len(block)

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            with self._stack:
                if self.format == "flac" and not self.num_samples:
                    raise AudioError(f"{self._name}: flac cannot hold a recording without samples; write wav")
                self._sink.finish()
        else:
            self._stack.__exit__(*exception)


def write(path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int, **options: Any) -> int:
    """Write (T,) samples, or (1, T) as `read` gives them, to a sound file; `options` are those of `SoundWriter`.

    Returns:
        How many samples were beyond +-1 and saturate.
    """
    wav = wav[0] if wav.shape[:-1] == (1,) else wav
    with SoundWriter(path, sample_rate, num_samples=wav.shape[-1], **options) as sound:
        sound.write(wav)
    return sound.num_saturated


def output_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The key of `OUTPUT_FORMATS` that `format`, or else the suffix of `path`, names; wav where there is neither.

    Raises:
        AudioError: nothing of that name can be written, or name and suffix disagree.
    """
    return chosen_format(path, format, OUTPUT_FORMATS, "sound", AudioError)


class _WavSink:
    """A wav file by hand, because libsndfile writes none to a pipe."""

    def __init__(self, stream: BinaryIO, sample_rate: int, is_float: bool, num_samples: int | None, name: str):
        self._stream, self._name = stream, name
        self._is_float, self._sample_rate = is_float, sample_rate
        self._sample_bytes = 4 if is_float else 2
        self._size = 0
        self._announced = None if num_samples is None else num_samples * self._sample_bytes
        stream.write(self._header(self._announced))

    def write(self, block: np.ndarray) -> None:
        data = (block.astype("<f4") if self._is_float else to_int16(block)).tobytes()
        self._size += len(data)
        if self._size > 0xFFFF_FFFF - 64:
            raise AudioError(f"{self._name}: longer than a wav file can be (4 GiB); write flac")
        self._stream.write(data)

    def finish(self) -> None:
        if self._size != self._announced and self._stream.seekable():
            self._stream.seek(0)
            self._stream.write(self._header(self._size))

    def _header(self, size: int | None) -> bytes:
        size = 0xFFFF_FFFF if size is None or size > 0xFFFF_FFFF - 64 else size
        # Formats other than integers come with an empty extension and the number of samples, says the specification.
        extension = struct.pack("<H", 0) if self._is_float else b""
        tag, bits = (3, 32) if self._is_float else (1, 16)
        byte_rate = self._sample_rate * self._sample_bytes
        layout = struct.pack("<HHIIHH", tag, 1, self._sample_rate, byte_rate, self._sample_bytes, bits)
        chunks = b"fmt " + struct.pack("<I", len(layout + extension)) + layout + extension
        if self._is_float:
            chunks += b"fact" + struct.pack("<II", 4, size // self._sample_bytes)
        riff_size = min(4 + len(chunks) + 8 + size, 0xFFFF_FFFF)
        return b"RIFF" + struct.pack("<I", riff_size) + b"WAVE" + chunks + b"data" + struct.pack("<I", size)


class _CompressedSink:
    """flac or ogg by libsndfile; through a temporary file where the stream cannot seek."""

    def __init__(self, stream: BinaryIO, sample_rate: int, format: str, name: str):
        self._stream = stream
        self._is_copied = not stream.seekable()
        self._taking_room = partial(_taking_room, name) if self._is_copied else contextlib.nullcontext
        self._file = _ErrorKeeper(tempfile.TemporaryFile() if self._is_copied else stream)
        subtype = {"flac": "PCM_16", "ogg": "VORBIS"}[format]
        refused = AudioError(f"{format} cannot hold a sample rate of {sample_rate} Hz")
        if format == "ogg" and sample_rate > _MOST_OF_VORBIS:
            raise refused
        try:
            self._sound = soundfile.SoundFile(self._file, "w", sample_rate, 1, subtype, format=format.upper())
        except soundfile.LibsndfileError as error:
            raise self._file.error or refused from error

    def __enter__(self) -> "_CompressedSink":
        return self

    def write(self, block: np.ndarray) -> None:
        values = np.clip(block, -1.0, 1.0)  # libsndfile rounds them as `to_int16` does
        with self._system_errors():
            for start in range(0, len(values), _VALUES_PER_ENCODE):
                self._sound.write(values[start : start + _VALUES_PER_ENCODE])

    def finish(self) -> None:
        with self._system_errors():
            self._sound.close()
            self._file.stream.flush()
        if self._is_copied:
            self._file.stream.seek(0)
            while chunk := self._file.stream.read(1 << 16):
                self._stream.write(chunk)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(soundfile.LibsndfileError, OSError):
            self._sound.close()
        if self._is_copied:
            with contextlib.suppress(OSError):  # what could not be written is tried again
                self._file.stream.close()

    @contextlib.contextmanager
    def _system_errors(self) -> Iterator[None]:
        """Raise what the system said, which libsndfile does not pass on."""
        with self._taking_room():
            try:
                yield
            except (soundfile.LibsndfileError, AssertionError):
                if self._file.error is None:
                    raise
            if self._file.error is not None:
                raise self._file.error


class _ErrorKeeper:
    """A seekable stream for libsndfile's callbacks, out of which an exception would be lost."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell

    def write(self, data: bytes) -> int:
        try:
            return int(self.stream.write(data))
        except OSError as error:
            self.error = error
            return 0


def to_int16(wav: np.ndarray) -> np.ndarray:
    """[-1, 1) -> int16; the inverse of what readers do, so a 16-bit file written back is unchanged."""
    return np.clip(np.rint(wav * 32768.0), -32768, 32767).astype("<i2")
