"""The speech that was trained with comes from real repositories: here from one made on the spot."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codec import audio

SCRIPT = Path(__file__).parents[2] / "recipes" / "stream" / "collect.py"
RATE = 24000
COLUMNS = "source repository commit licence stated seconds paths speech".split()


def git(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | names).stdout.strip()


@pytest.fixture(scope="module")
def wav(speech: Path) -> np.ndarray:
    return audio.read(speech, RATE)[0][0]  # (T,), 4.7 s


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, wav: np.ndarray) -> Path:
    """A folder with the repository `us/voices`."""
    folder = tmp_path_factory.mktemp("repositories")
    voices = folder / "us" / "voices"
    for speaker in ("anna", "bert", "carl", "else"):
        (voices / speaker).mkdir(parents=True)
    audio.write(voices / "anna" / "sentence.flac", wav, RATE)
    audio.write(voices / "anna" / "again.flac", wav, RATE)  # the same bytes
    for i, word in enumerate(np.array_split(wav[: 4 * RATE], 5)):
        audio.write(voices / "bert" / f"word {i}.wav", word, RATE)
    for i in range(2):
        audio.write(voices / "carl" / f"talk-{i}.flac", np.tile(wav * (0.9 - 0.1 * i), 8), RATE)
    audio.write(voices / "else" / "clipped.wav", np.clip(20 * wav, -1, 1), RATE)
    audio.write(voices / "else" / "silent.wav", np.zeros(RATE), RATE)
    dull = audio.resample(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 8000, RATE)
    audio.write(voices / "else" / "dull.wav", dull, RATE)
    (voices / "else" / "pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    (voices / "README.md").write_text("# Voices\n")
    git(voices, "init", "--quiet")
    git(voices, "config", "uploadpack.allowFilter", "true")
    git(voices, "add", ".")
    git(voices, "commit", "--quiet", "--message", "Voices")
    return folder


def table(path: Path, *rows: tuple[str, ...]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in (COLUMNS, *rows)))
    return path


@pytest.fixture(scope="module")
def rows(repositories: Path) -> list[tuple[str, ...]]:
    commit = git(repositories / "us" / "voices", "rev-parse", "HEAD")
    start = ("us/voices", commit, "CC0-1.0", "README")
    return [
        ("voices", *start, "20", r"(?P<speaker>[^/]+)/.*\.(flac|wav)", "ours"),
        ("alone", *start, "", r"bert/.*\.wav", "words of one"),
    ]


def collect(table: Path, output: Path, repositories: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(output), "--table", str(table), *options]
    command += ["--repositories", str(repositories / "{repository}")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def collected(repositories: Path, rows: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected")
    result = collect(table(folder / "speech.tsv", *rows), folder / "out", repositories)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("out: 2 sources, 1 minutes, 4 speakers\n")
    return folder / "out"


def seconds(folder: Path) -> list[float]:
    return [audio.read(path)[0].shape[1] / audio.info(path).sample_rate for path in audio.find_files(folder, {".opus"})]


def test_a_recording_becomes_a_clip_that_sounds_the_same(collected: Path, wav: np.ndarray):
    (path,) = audio.find_files(collected / "voices" / "anna", {".opus"})  # equal files are one
    info = audio.info(path)
    assert (info.channels, info.sample_rate, info.format) == (1, RATE, "OGG OPUS")
    clip = audio.read(path)[0][0]
    assert 0 <= len(wav) - len(clip) < RATE  # silence at the ends
    assert max(np.correlate(wav, clip, "valid")) > 0.95 * np.linalg.norm(clip) * np.linalg.norm(wav)


def test_words_of_a_speaker_are_joined(collected: Path):
    lengths = seconds(collected / "voices" / "bert")
    assert len(lengths) == 1
    assert 3 <= lengths[0] <= 4
    assert seconds(collected / "alone" / "alone") == lengths


def test_long_recordings_are_cut_and_no_speaker_exceeds_the_limit(collected: Path):
    lengths = seconds(collected / "voices" / "carl")
    assert all(1 <= length <= 15 for length in lengths)
    assert sum(lengths) == pytest.approx(20, abs=1e-3)


def test_what_cannot_be_used_is_named(collected: Path):
    lines = [line.split("\t") for line in (collected / "voices" / "left_out.tsv").read_text().splitlines()]
    reasons = {path: reason for _, path, reason in lines[1:]}
    assert reasons.pop("else/pointer.wav").startswith("is not a sound file that can be read")
    assert reasons == {
        "else/clipped.wav": "is clipped",
        "else/silent.wav": "is silent",
        "else/dull.wav": "has nothing above 4 kHz",
    }
    summary = [line.split("\t") for line in (collected / "sources.tsv").read_text().splitlines()]
    assert summary[1][:2] == ["voices", "CC0-1.0"]
    assert [line[3] for line in summary[1:]] == ["3", "1"]


def test_narrow_sound_is_kept_at_16_khz(repositories: Path, tmp_path: Path, wav: np.ndarray):
    source = tmp_path / "a" / "b"
    source.mkdir(parents=True)
    audio.write(source / "narrow.wav", audio.resample(wav, RATE, 16000), 16000)
    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "--message", "narrow")
    row = ("narrow", "a/b", git(source, "rev-parse", "HEAD"), "CC0-1.0", "README", "", r".*\.wav", "ours")
    assert collect(table(tmp_path / "t.tsv", row), tmp_path / "out", tmp_path).returncode == 0
    (path,) = audio.find_files(tmp_path / "out", {".opus"})
    assert audio.info(path).sample_rate == 16000


def test_a_source_that_is_there_is_kept_and_others_are_made(repositories: Path, rows: list, tmp_path: Path):
    there = tmp_path / "out" / "voices"
    there.mkdir(parents=True)
    (there / "left_out.tsv").write_text("repository\tpath\treason\n")
    assert collect(table(tmp_path / "t.tsv", *rows), tmp_path / "out", repositories).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alone", "sources.tsv", "voices"]
    assert [path.name for path in there.iterdir()] == ["left_out.tsv"]


def test_a_repository_that_is_gone_does_not_stop_the_others(repositories: Path, rows: list, tmp_path: Path):
    gone = ("gone", "us/gone", *rows[0][2:])
    none = ("none", *rows[0][1:6], r".*\.mp3", "none")
    result = collect(table(tmp_path / "t.tsv", gone, none, rows[1]), tmp_path / "out", repositories)
    assert result.returncode == 2
    first, second, last = result.stderr.splitlines()
    assert first.startswith("codec: gone: us/gone: git cannot get it (")
    assert second == r"codec: none: us/voices: has no files .*\.mp3"
    assert last == "codec: gone, none: not collected; the same command tries again"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alone", "sources.tsv"]


def test_what_the_table_does_not_have_is_refused(repositories: Path, rows: list, tmp_path: Path):
    result = collect(table(tmp_path / "t.tsv", *rows), tmp_path / "out", repositories, "--only", "other")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"codec: --only other: {tmp_path / 't.tsv'} has no such source\n"
    result = collect(table(tmp_path / "t.tsv", (*rows[0][:6], "(", "ours")), tmp_path / "out", repositories)
    assert result.returncode == 2
    assert "a row of voices cannot be understood" in result.stderr
    (tmp_path / "t.tsv").write_bytes("\t".join(COLUMNS).encode("utf-16"))
    result = collect(tmp_path / "t.tsv", tmp_path / "out", repositories)
    assert result.returncode == 2
    assert result.stderr.startswith(f"codec: {tmp_path / 't.tsv'}: is not a table in UTF-8 (")


def test_every_row_of_our_table_can_be_read():
    rows = [line.split("\t") for line in SCRIPT.with_name("speech.tsv").read_text().splitlines()]
    assert rows[0] == COLUMNS
    assert all(len(row) == len(COLUMNS) and len(row[2]) == 40 and row[3] and row[4] for row in rows[1:])
