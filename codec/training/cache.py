"""Training audio, decoded once into a memory-mapped file of 16-bit integers.

Knows nothing of torch, so that the processes that decode start at once.
"""

import multiprocessing
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from codec import audio
from codec.cores import num_cores
from codec.errors import AudioError, ConfigError
from codec.input import read_json
from codec.manifest import read_manifest, speaker_of
from codec.output import exists, open_output, remove_leftovers, write_json
from codec.processes import follow_parent, starting_processes
from codec.progress import Progress

INDEX_NAME = "clips.json"
VERSION = 3  # of the cache; one of another version is made again
FILES_IN_FLIGHT = 512
"""Files decoded ahead of what is written to the cache, so that memory does not depend on the size of a corpus."""
SMALL = 16 * 2**20
"""Bytes of sound files that are decoded sooner than other processes have started."""
PASS_BAND = 0.91
"""Of half a sample rate: where the resampler's filter begins to fall."""


class NoCache(AudioError):
    """A folder holds no complete cache, or one of another version."""


class AudioCache:
    """Clips of one sample rate, as 16-bit integers end to end in one memory-mapped file.

    A folder holds `audio.int16` (little endian) and `clips.json`, which is written last: without it the cache is
    incomplete and is made again.

    Raises:
        NoCache: there is none, or one of another version.
        AudioError: it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / INDEX_NAME
        try:
            index = read_json(path) if exists(path) else {}
            if index.get("version") != VERSION:
                raise NoCache(
                    f"{folder}: holds no audio cache of this version; train with it as data.cache to make one"
                )
            self.sample_rate: int = index["sample_rate"]
            self.paths: list[str] = [clip["path"] for clip in index["clips"]]
            self.speakers: list[str] = [clip["speaker"] for clip in index["clips"]]
            self.lengths = np.array([clip["samples"] for clip in index["clips"]], dtype=np.int64)
            self.offsets = np.cumsum(self.lengths) - self.lengths
            self.file_sizes: list[int] = [clip["bytes"] for clip in index["clips"]]
            self.bandwidths = np.array([clip["bandwidth"] for clip in index["clips"]], dtype=np.float64)
            """Hz, at most half the cache's sample rate."""
            if not all(isinstance(speaker, str) for speaker in self.speakers) or not (self.bandwidths > 0).all():
                raise ValueError("a clip has no speaker or no bandwidth")
            self.audio = np.memmap(folder / "audio.int16", dtype="<i2", mode="r")
        except NoCache:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise AudioError(f"{folder}: the audio cache is damaged ({error}); delete the folder") from error
        if len(self.audio) != self.lengths.sum() or (self.lengths < 0).any():
            raise AudioError(f"{folder}: its audio does not have the length of its index; delete the folder")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Another process opens the same files."""
        return AudioCache, (self.folder,)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def seconds(self) -> float:
        """Duration of all clips together."""
        return float(self.lengths.sum()) / self.sample_rate

    def clip(self, index: int) -> np.ndarray:
        """One clip: (T,) int16."""
        start = self.offsets[index]
        return self.audio[start : start + self.lengths[index]]


def open_cache(
    sources: Sequence[Path], cache_folder: Path, sample_rate: int, progress: Progress | None = None
) -> AudioCache:
    """The cache of all sound files of manifests or below folders, made first where it is missing.

    Args:
        sources: manifests and folders.
        cache_folder: is made.
        sample_rate: Hz.
        progress: called with "decoded", files done and files in all.

    Raises:
        AudioError: a source is missing or has no sound files, or files are missing or cannot be decoded; the cache is
            damaged.
        CorpusError: the manifest is not one.
        ConfigError: the cache was made at another sample rate, or of other files.
    """
    try:
        cache = AudioCache(cache_folder)
    except NoCache:
        _build_cache(sources, cache_folder, sample_rate, progress)
        cache = AudioCache(cache_folder)
    if all(source.exists() for source in sources):
        if not _holds(cache, sounds := _all_sounds(sources)):
            raise ConfigError(
                f"{cache_folder}: was made of other sound files than {_joined(sources)} holds; delete it or choose "
                "another data.cache"
            )
        cache.speakers = [speaker for _, _, speaker in sounds]  # a manifest may have been corrected
    if cache.sample_rate != sample_rate:
        raise ConfigError(
            f"{cache_folder}: holds audio at {cache.sample_rate} Hz, the model needs {sample_rate} Hz; "
            "choose another cache folder"
        )
    return cache


def _holds(cache: AudioCache, sounds: list[tuple[Path, str, str]]) -> bool:
    """Whether a cache was made of these files: of their names and, as two corpora may share those, their sizes."""
    return cache.paths == [name for _, name, _ in sounds] and all(
        not path.exists() or path.stat().st_size == size
        for (path, _, _), size in zip(sounds, cache.file_sizes, strict=True)
    )


def _build_cache(sources: Sequence[Path], cache_folder: Path, sample_rate: int, progress: Progress | None) -> None:
    sounds = _all_sounds(sources)
    if missing := [path for path, _, _ in sounds if not path.is_file()]:
        more = f", and so are {len(missing) - 1} more of {len(sounds)}" if len(missing) > 1 else ""
        of_link, of_list = "mend or remove this link", "codec prepare check tells which a manifest misses"
        advice = of_link if missing[0].is_symlink() else of_list
        raise AudioError(f"{missing[0]}: is not there{more}; {advice}")
    cache_folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(cache_folder, least_age=3600.0)  # other runs may be decoding the same speech now
    paths = [path for path, _, _ in sounds]
    sizes = [path.stat().st_size for path in paths]
    clips: list[dict[str, Any]] = []
    with (
        open_output(cache_folder / "audio.int16", overwrite=True) as stream,
        closing(_decode_all(paths, sample_rate, is_small=sum(sizes) <= SMALL)) as decoded,
    ):
        try:
            for (_, name, speaker), size, (samples, bandwidth) in zip(sounds, sizes, decoded, strict=True):
                clip = {"path": name, "bytes": size, "speaker": speaker}
                clips.append(clip | {"samples": len(samples), "bandwidth": bandwidth})
                stream.write(samples.tobytes())
                if progress:
                    progress("decoded", len(clips), len(sounds))
        except BrokenProcessPool as error:
            raise AudioError(
                f"{_joined(sources)}: a process that decoded audio was killed; start again (a script of your own needs "
                "`if __name__ == '__main__':` around what it does)"
            ) from error
    write_json(cache_folder / INDEX_NAME, {"version": VERSION, "sample_rate": sample_rate, "clips": clips}, indent=None)


def _joined(sources: Sequence[Path]) -> str:
    return ", ".join(map(str, sources))


def _all_sounds(sources: Sequence[Path]) -> list[tuple[Path, str, str]]:
    return [sound for source in sources for sound in _sounds(source)]


def _sounds(source: Path) -> list[tuple[Path, str, str]]:
    """Each sound file, its name in the cache and its speaker."""
    if source.is_file():
        return [(utterance.path, utterance.id, utterance.speaker) for utterance in read_manifest(source)]
    paths = audio.find_sounds(source)
    names = [path.relative_to(source) for path in paths]
    return list(zip(paths, map(str, names), map(speaker_of, names), strict=True))


def _decode_all(paths: list[Path], sample_rate: int, is_small: bool) -> Generator[tuple[np.ndarray, float], None, None]:
    """What `_decode` makes of each file, in their order: here if there is little to do, else in a process per core."""
    if is_small:
        yield from map(_decode, paths, repeat(sample_rate))
        return
    # A forked process would share what torch's threads and the GPU's driver keep.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_cores(), context, follow_parent) as pool:
        for start in range(0, len(paths), FILES_IN_FLIGHT):
            some = paths[start : start + FILES_IN_FLIGHT]
            with starting_processes():
                decoded = pool.map(_decode, some, repeat(sample_rate), chunksize=8)
            yield from decoded


def _decode(path: Path, sample_rate: int) -> tuple[np.ndarray, float]:
    """Samples as 16-bit integers, and the bandwidth in Hz."""
    with audio.SoundReader(path, sample_rate) as sound:
        wav = np.concatenate(list(sound))  # (T,) float32
    return audio.to_int16(wav), bandwidth_of(sound.info.sample_rate, sample_rate)


def bandwidth_of(own_rate: float, sample_rate: int) -> float:
    """Up to which frequency sound of a rate is whole after it was brought to another, Hz."""
    return sample_rate / 2 if own_rate >= sample_rate else PASS_BAND * own_rate / 2
