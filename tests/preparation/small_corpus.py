"""Small corpora in the layout of LibriTTS, whole and damaged, with noise in place of speech."""

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from codec import audio

RATE = 24000
SPEAKERS = {
    "train-clean-100": ("103", "1034"),
    "train-clean-360": ("14",),
    "dev-clean": ("84",),
    "test-clean": ("1089", "121"),
    "test-other": ("1688",),
}


def noise(seconds: float = 0.6, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(0, level, round(seconds * RATE)), -0.9, 0.9)


def make_part(corpus: Path, part: str, speakers: tuple[str, ...] = (), num_clips: int = 3) -> Path:
    """A part with a chapter per speaker, transcripts included."""
    for speaker in speakers or SPEAKERS[part]:
        chapter = corpus / part / speaker / "100"
        chapter.mkdir(parents=True)
        ids = [f"{speaker}_100_{clip:06d}_000000" for clip in range(num_clips)]
        for number, name in enumerate(ids):
            soundfile.write(chapter / f"{name}.wav", noise(0.6 + 0.1 * number, seed=int(speaker) + number), RATE)
            (chapter / f"{name}.normalized.txt").write_text("Words.")
        lines = [f"{name}\tWords.\tWords.\n" for name in ids]
        (chapter / f"{speaker}_100.trans.tsv").write_text("".join(lines))
        (chapter / f"{speaker}_100.book.tsv").write_text("".join([*lines, f"{speaker}_100_000099_000000\tNo.\tNo.\n"]))
    return corpus / part


def plant_damage(chapter: Path) -> dict[str, str]:
    """Damage of every kind in a chapter of speaker 103; name of each file -> the reason that should be found."""

    def path(number: int) -> Path:
        return chapter / f"103_100_9{number:05d}_000000.wav"

    soundfile.write(path(1), noise(0.1), RATE)
    soundfile.write(path(2), noise(41), RATE)
    soundfile.write(path(3), noise(), 16000)
    soundfile.write(path(4), np.stack([noise(), noise()], axis=1), RATE)
    soundfile.write(path(5), noise(level=1e-4), RATE)
    soundfile.write(path(6), np.zeros(RATE), RATE)
    soundfile.write(path(7), np.sign(noise()), RATE)
    whole = (chapter / "103_100_000000_000000.wav").read_bytes()
    path(8).write_bytes(whole[: len(whole) // 2])
    path(9).write_bytes(b"")
    path(10).write_text("<html>not found</html>")
    audio.write(path(11), noise(), RATE, format="wav-float")
    samples = bytearray(path(11).read_bytes())
    samples[-4:] = np.float32("nan").tobytes()
    path(11).write_bytes(samples)
    (chapter / "104_100_000001_000000.wav").write_bytes(whole)
    (chapter / "._103_100_000000_000000.wav").write_bytes(b"\0\5\x16\7" + bytes(78))
    with open(chapter / "103_100.trans.tsv", "a") as stream:
        stream.write("103_100_800000_000000\tGone.\tGone.\n")
    reasons = ["short", "long", "rate", "channels", "silent", "no sound", "clipped", *["unreadable"] * 4]
    return {path(number).name: reason for number, reason in enumerate(reasons, 1)} | {
        "104_100_000001_000000.wav": "misplaced",
        "._103_100_000000_000000.wav": "stub",
        "103_100_800000_000000.wav": "missing",
    }


def make_archive(path: Path, source: Path, prefix: str) -> Path:
    """A .tar.gz of a folder under another name."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(source, prefix)
    return path


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A member as nobody would pack it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, io.BytesIO(data)


def rows(path: Path) -> list[list[str]]:
    """The lines of a table below its header."""
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]
