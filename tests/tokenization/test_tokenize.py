"""A corpus as tokens: the codes of `codec encode`, whatever the processes, the interruptions and the bad files."""

import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile

from codec import encode_file, load, read_codes, save
from codec.cli import run
from codec.errors import CodecWarning, ConfigError, CorpusError, FormatError, ModelError
from codec.files import group_alike
from codec.inspection import inspect
from codec.manifest import Utterance, write_manifest
from codec.model.codec import Codec, CodecConfig
from codec.model.quantizer import SimVQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.tokenization import corpus
from codec.tokenization.corpus import tokenize
from codec.tokenization.shards import Place, Tokens, TokensInfo, read_info, unfinished, write_info, write_shard

INFO = TokensInfo("m", "f" * 16, 24000, 320, 4096, "float32", utterances=1, utterances_per_shard=10, list="l")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    """Seven clips of two speakers, at three sample rates."""
    folder = tmp_path_factory.mktemp("recordings")
    wav, _ = soundfile.read(speech, dtype="float32")
    for number, piece in enumerate(np.array_split(wav[:60000], 7)):
        path = folder / ("anna", "ben")[number % 2] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, piece[number:], (24000, 16000, 44100)[number % 3])
    return folder


@pytest.fixture
def manifest(recordings: Path, tmp_path: Path) -> Path:
    utterances = []
    for path in sorted(recordings.rglob("*.wav")):
        info = soundfile.info(path)
        utterances.append(Utterance(path.stem, path, info.frames, info.samplerate, path.parent.name, "train"))
    write_manifest(tmp_path / "list.tsv", utterances)
    return tmp_path / "list.tsv"


def tokens_of(source: Path, target: Path, model: Path, **more) -> Tokens:
    tokenize(source, target, model=str(model), **{"jobs": 0, "utterances_per_shard": 3} | more)
    return Tokens(target)


def tokens_of_ids(ids: list[str], recordings: Path, folder: Path, model: Path) -> Tokens:
    """Those of one recording under several ids, in folder/tokens."""
    path = next(recordings.rglob("*.wav"))
    info = soundfile.info(path)
    utterances = [Utterance(id, path, info.frames, info.samplerate, "s", "p") for id in ids]
    write_manifest(folder / "list.tsv", utterances)
    return tokens_of(folder / "list.tsv", folder / "tokens", model)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_are_the_codes_of_the_files(recordings, manifest, tmp_path, model_directory):
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        *(f"0000{number}.{suffix}" for number in range(3) for suffix in ("npy", "tsv")),
        "tokens.json",
    ]
    assert list(tokens) == [str(number) for number in range(7)]
    for path in recordings.rglob("*.wav"):
        encode_file(path, tmp_path / "one.codes", model=model_directory, overwrite=True)
        file = read_codes(tmp_path / "one.codes")
        assert tokens[path.stem].dtype == np.uint16
        assert tokens[path.stem].tolist() == file.codes.tolist()
        place = tokens.places[path.stem]
        assert (place.samples, place.speaker, place.part) == (file.num_samples, path.parent.name, "train")


def test_refined_tokens_are_the_refined_codes_of_the_files(recordings, manifest, tmp_path, model_directory):
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory, refine=1)
    assert inspect(str(tmp_path / "tokens"))["refine"] == 1
    for path in recordings.rglob("*.wav"):
        encode_file(path, tmp_path / "one.codes", model=model_directory, refine=1, overwrite=True)
        assert tokens[path.stem].tolist() == read_codes(tmp_path / "one.codes").codes.tolist()


def test_models_that_look_at_whole_clips_do_not_refine(recordings, tmp_path):
    encoder = SEANetEncoderConfig(latent_dim=16, num_filters=4)
    decoder = VocosDecoderConfig(latent_dim=16, width=16, inner_width=24, num_blocks=1, num_groups=4)
    quantizer = SimVQConfig(codebook_size=16, codebook_dim=16)
    save(Codec(CodecConfig(24000, encoder, quantizer, decoder)), tmp_path / "model")
    with pytest.raises(ModelError, match="only for models that stream"):
        tokens_of(recordings, tmp_path / "tokens", tmp_path / "model", refine=1)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(("seconds", "sizes"), [(60.0, [7]), (1.0, [2, 2, 1])])
def test_short_recordings_are_encoded_at_once(
    recordings, manifest, tmp_path, model_directory, monkeypatch, seconds, sizes
):
    """With the codes of each alone, in no more memory than is allowed, and whatever a list says of their lengths."""
    alone = tokens_of(manifest, tmp_path / "alone", model_directory, utterances_per_shard=1)
    batches, encode = [], Codec.encode
    monkeypatch.setattr(
        Codec, "encode", lambda self, wav, lengths: batches.append(wav.shape) or encode(self, wav, lengths)
    )
    monkeypatch.setattr("codec.files.MAX_SECONDS_AT_ONCE", seconds)
    monkeypatch.setattr(corpus, "_likely_seconds", lambda recording: 0.0)
    together = tokens_of(manifest, tmp_path / "together", model_directory, utterances_per_shard=7)
    assert {id: codes.tolist() for id, codes in together.items()} == {id: codes.tolist() for id, codes in alone.items()}
    assert [shape[0] for shape in batches] == sizes
    assert all(shape[0] * shape[2] <= seconds * 24000 for shape in batches)


def test_groups_of_recordings_have_little_padding():
    seconds = np.random.default_rng(0).gamma(2.0, 4.0, 2000).tolist()
    groups = group_alike(seconds)
    assert sorted(place for group in groups for place in group) == list(range(2000))
    padded = [len(group) * max(seconds[place] for place in group) for group in groups]
    assert all(len(group) == 1 or total <= 60 for group, total in zip(groups, padded, strict=True))
    assert max(map(len, groups)) == 8
    assert sum(padded) < 1.03 * sum(seconds)


def test_a_folder_needs_no_list(recordings, tmp_path, model_directory):
    tokens = tokens_of(recordings, tmp_path / "tokens", model_directory)
    assert list(tokens) == [f"anna/{number}" for number in (0, 2, 4, 6)] + [f"ben/{number}" for number in (1, 3, 5)]


def test_tokens_decode_as_the_files_do(recordings, manifest, tmp_path, model_directory, capsys, monkeypatch):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(["decode", "../tokens", "../out", "--model", str(model_directory)]) == 0
    assert "../tokens/0 -> ../out/0.wav: " in capsys.readouterr().err
    for path in recordings.rglob("*.wav"):
        arguments = ["roundtrip", str(path), str(tmp_path / "one.wav"), "--model", str(model_directory)]
        assert run([*arguments, "-q", "--overwrite"]) == 0
        assert (tmp_path / "out" / path.name).read_bytes() == (tmp_path / "one.wav").read_bytes()


def test_single_utterances_are_decoded_by_id(recordings, tmp_path, model_directory, capsys):
    tokens_of(recordings, tmp_path / "tokens", model_directory)
    arguments = ["decode", str(tmp_path / "tokens"), str(tmp_path / "out"), "--model", str(model_directory)]
    assert run([*arguments, "--id", "ben/3", "--id", "nobody"]) == 2
    assert "tokens: has no utterance 'nobody'; the first column of its tables" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--id", "ben/3", "--id", "anna/0", "--id", "ben/3"]) == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.wav")}
    assert found == {"anna/0.wav", "ben/3.wav"}
    arguments[2] = str(tmp_path / "one.wav")
    assert run([*arguments, "--id", "ben/3"]) == 0
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "out" / "ben" / "3.wav").read_bytes()
    assert run([*arguments, "--id", "ben/3"]) == 2
    assert run([*arguments, "--id", "ben/3", "--skip-existing"]) == 0
    assert "one.wav: already exists" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "one.mp3")
    assert run([*arguments, "--id", "ben/3"]) == 2
    assert "one.mp3: sound cannot be written as .mp3" in capsys.readouterr().err
    assert run(["decode", str(recordings), str(tmp_path / "more"), "--id", "ben/3"]) == 2
    assert "--id is for a folder that codec tokenize has made, which" in capsys.readouterr().err


@pytest.mark.parametrize("stored", ["Zo\u00eb/1", "Zoe\u0308/1"])  # decomposed in tokens of earlier versions
def test_an_id_with_accents_is_found_in_either_of_its_forms(stored, recordings, tmp_path, model_directory):
    assert list(tokens_of_ids([stored], recordings, tmp_path, model_directory)) == [stored]
    for number, typed in enumerate(("Zo\u00eb/1", "Zoe\u0308/1")):
        target = tmp_path / str(number)
        arguments = ["decode", str(tmp_path / "tokens"), str(target), "--model", str(model_directory)]
        assert run([*arguments, "--id", typed]) == 0
        assert (target / f"{stored}.wav").is_file()


def test_tokens_of_another_model_are_not_decoded(manifest, tmp_path, model_directory, other_model_directory, capsys):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    arguments = ["decode", str(tmp_path / "tokens"), str(tmp_path / "out"), "--model", str(other_model_directory)]
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()  # for all of them
    assert f"{tmp_path / 'tokens'}: made by model 'tiny'" in line
    assert not list((tmp_path / "out").rglob("*.wav"))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["../a"], "id '../a' cannot name a file below a folder"),
        (["/a"], "id '/a' cannot name a file below a folder"),
        (["a\0b"], r"id 'a\x00b' cannot name a file below a folder"),
        (["b/x", "b//x"], "ids 'b/x' and 'b//x' name the same file"),
    ],
)
def test_ids_that_are_no_files_of_their_own_below_a_folder_are_not_decoded(tmp_path, capsys, ids, message):
    write_info(tmp_path / "tokens", INFO)
    write_shard(tmp_path / "tokens", 0, [(id, np.array([1]), 320, "anna", "train") for id in ids], [], INFO.dtype)
    assert run(["decode", str(tmp_path / "tokens"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_any_number_of_processes_gives_the_same_bytes(manifest, tmp_path, model_directory):
    for jobs in (0, 2):
        tokens_of(manifest, tmp_path / str(jobs), model_directory, jobs=jobs)
    assert content(tmp_path / "0") == content(tmp_path / "2")


def test_progress_tells_of_shards_that_are_checked_and_of_what_is_left_to_encode(manifest, tmp_path, model_directory):
    steps: list[tuple[str, float, float]] = []
    checked = [("checked", done, 3) for done in range(3)]
    for lost, was_there in ((), 0), (["00001.tsv"], 4), ((), 8):
        for name in lost:
            (tmp_path / "tokens" / name).unlink()
        tokens_of(manifest, tmp_path / "tokens", model_directory, progress=lambda *step: steps.append(step))
        assert steps == checked + [("encoded", done, 7) for done in range(was_there, 8)]
        steps.clear()
    inspect(str(tmp_path / "tokens"), lambda *step: steps.append(step))
    assert steps == checked


def test_calls_in_several_threads_have_a_model_each(manifest, tmp_path, model_directory, other_model_directory):
    def call_another(step: str, done: float, total: float) -> None:
        if (step, done) == ("encoded", 1):
            thread = Thread(target=tokens_of, args=(manifest, tmp_path / "other", other_model_directory))
            thread.start()
            thread.join()

    tokens_of(manifest, tmp_path / "one", model_directory, progress=call_another)
    for name, model in (("one", model_directory), ("other", other_model_directory)):
        tokens_of(manifest, tmp_path / f"{name} alone", model)
        assert content(tmp_path / name) == content(tmp_path / f"{name} alone")


def test_what_is_there_is_not_made_again(manifest, tmp_path, model_directory, monkeypatch):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    whole = content(tmp_path / "tokens")
    (tmp_path / "tokens" / "00001.tsv").unlink()  # as if it had been interrupted before this was written
    (tmp_path / "tokens" / "00001.npy").write_bytes(b"half")
    with pytest.raises(FormatError, match="1 of 3 shards are missing, the first is 00001; run codec tokenize again"):
        Tokens(tmp_path / "tokens")
    encoded = names_of_what_is_encoded(monkeypatch)
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert sorted(encoded) == ["3", "4", "5"]
    assert content(tmp_path / "tokens") == whole


def names_of_what_is_encoded(monkeypatch) -> list[str]:
    """A list that grows by the name of each file that is given to the encoder."""
    encode, names = corpus.encode_sounds, []
    monkeypatch.setattr(
        corpus, "encode_sounds", lambda paths, *more: names.extend(path.stem for path in paths) or encode(paths, *more)
    )
    return names


def test_a_killed_command_goes_on(manifest, tmp_path, model_directory):
    """Killed from within, as soon as the first shard is whole."""
    code = f"""
import os, signal
from codec.tokenization import corpus
write = corpus.write_shard
def dying(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
corpus.write_shard = dying
corpus.tokenize({str(manifest)!r}, {str(tmp_path / "tokens")!r}, model={str(model_directory)!r}, jobs=0,
                utterances_per_shard=3)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "tokens").glob("*.tsv")) == ["00000.tsv"]
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    tokens_of(manifest, tmp_path / "at once", model_directory)
    assert content(tmp_path / "tokens") == content(tmp_path / "at once")


def test_shares_make_the_whole_together(manifest, tmp_path, model_directory):
    for number in (2, 1):
        tokenize(
            manifest,
            tmp_path / "tokens",
            model=str(model_directory),
            jobs=0,
            utterances_per_shard=3,
            share=(number, 2),
        )
        shards = {path.stem for path in (tmp_path / "tokens").glob("*.tsv")}
        assert shards == ({"00001"} if number == 2 else {"00000", "00001", "00002"})
    tokens_of(manifest, tmp_path / "at once", model_directory)
    assert content(tmp_path / "tokens") == content(tmp_path / "at once")


def test_bad_recordings_are_named_and_the_rest_goes_on(recordings, manifest, tmp_path, model_directory, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(recordings, copy)
    lines = manifest.read_text().replace(os.path.relpath(recordings, tmp_path), "copy").replace(str(recordings), "copy")
    manifest.write_text(lines)
    (copy / "anna" / "0.wav").write_text("<html>not found</html>")
    (copy / "ben" / "1.wav").unlink()
    wav, sample_rate = soundfile.read(copy / "anna" / "4.wav")
    soundfile.write(copy / "anna" / "4.wav", wav[: len(wav) // 2], sample_rate)
    arguments = ["tokenize", str(manifest), str(tmp_path / "tokens"), "--model", str(model_directory), "--jobs", "0"]
    for _ in range(2):  # the second time nothing is left to do, and the failures are still told
        assert run([*arguments, "--shard", "3"]) == 2
        output = capsys.readouterr().err
        assert "4 utterances" in output
        assert "3 of 7 utterances could not be used, which is more than 0.1 %; see " in output
        assert output.endswith("*.failed.tsv, accept that with --max-damaged 0.429\n")
    for share, reason in (("nan", "nan is not a number"), ("1.1", "1.1 is not in the range 0<=x<=1")):
        assert run([*arguments, "--max-damaged", share]) == 2
        assert f"Invalid value for '--max-damaged': {reason}; see" in capsys.readouterr().err
    assert run([*arguments, "--max-damaged", "0.429", "-q"]) == 0
    assert capsys.readouterr().err == (
        f"codec: warning: 3 of 7 utterances could not be used, see {tmp_path / 'tokens' / '*.failed.tsv'}\n"
    )
    assert list(Tokens(tmp_path / "tokens")) == ["2", "3", "5", "6"]
    failed = [
        line.split("\t")
        for path in sorted((tmp_path / "tokens").glob("*.failed.tsv"))
        for line in path.read_text().splitlines()[1:]
    ]
    assert [row[0] for row in failed] == ["0", "1", "4"]
    assert [Path(path).name for _, path, _, _ in failed] == ["0.wav", "1.wav", "4.wav"]
    assert "prepare the corpus again" in failed[2][2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_a_manifest_is_named_and_not_waited_for(manifest, tmp_path, model_directory):
    os.mkfifo(tmp_path / "8.wav")
    with open(manifest, "a") as stream:
        stream.write("8\t8.wav\t1.000\t24000\t24000\tanna\ttrain\n")
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory, utterances_per_shard=8)
    assert list(tokens) == [str(number) for number in range(7)]
    (line,) = (tmp_path / "tokens" / "00000.failed.tsv").read_text().splitlines()[1:]
    assert line.split("\t")[:3] == ["8", str(tmp_path / "8.wav"), "is no regular file"]


def test_sound_that_resampling_puts_out_of_range_fails_alone(recordings, tmp_path, model_directory):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    wave = np.where(np.arange(16000) % 80 < 40, 99.0, -99.0)  # overshoots its corners
    soundfile.write(folder / "anna" / "loud.wav", wave, 16000, subtype="FLOAT")
    tokens = tokens_of(folder, tmp_path / "tokens", model_directory, utterances_per_shard=8)
    assert len(tokens) == 7
    (line,) = (tmp_path / "tokens" / "00000.failed.tsv").read_text().splitlines()[1:]
    assert line.startswith("anna/loud\t")
    assert "full scale is 1" in line


def test_tokens_of_another_model_or_list_are_refused(
    recordings, manifest, tmp_path, model_directory, other_model_directory
):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    shuffled = tmp_path / "shuffled.tsv"
    header, *lines = manifest.read_text().splitlines(keepends=True)
    shuffled.write_text("".join([header, *lines[::-1]]))
    moved = shutil.copytree(model_directory, tmp_path / "renamed")
    tokens_of(manifest, tmp_path / "tokens", moved)
    before = content(tmp_path / "tokens")
    for source, model, more, changed in (
        (manifest, other_model_directory, {}, "fingerprint was"),
        (manifest, model_directory, {"utterances_per_shard": 4}, "utterances_per_shard was 3 and is 4"),
        (manifest, model_directory, {"precision": "bf16"}, "precision was float32 and is bf16"),
        (manifest, model_directory, {"refine": 4}, "refine was 0 and is 4"),
        (shuffled, model_directory, {}, "ids, lengths, speakers, parts or order, has changed since .* made; list new"),
        (
            recordings,
            model_directory,
            {},
            "ids, lengths, speakers, parts or order, has changed since .* made; list new",
        ),
        (recordings / "anna", model_directory, {}, r"\(7 utterances then, 4 now\)"),
    ):
        with pytest.raises(ConfigError, match=f"(made otherwise|the list of recordings, their).*{changed}"):
            tokens_of(source, tmp_path / "tokens", model, **more)
    assert content(tmp_path / "tokens") == before


@pytest.mark.parametrize("change", [("anna", "anne"), ("train", "dev")], ids=["speaker", "part"])
def test_tokens_of_a_list_with_another_speaker_or_part_are_refused(manifest, tmp_path, model_directory, change):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    manifest.write_text(re.sub(rf"\t{change[0]}\b", f"\t{change[1]}", manifest.read_text(), count=1))
    with pytest.raises(ConfigError, match=r"the list of recordings, .*, has changed"):
        tokens_of(manifest, tmp_path / "tokens", model_directory)


def test_shards_keep_the_size_that_they_were_begun_with(manifest, tmp_path, model_directory):
    arguments = ["tokenize", str(manifest), str(tmp_path / "tokens"), "--model", str(model_directory), "--jobs", "0"]
    assert run([*arguments, "--shard", "3", "--share", "2/3"]) == 0
    assert run(arguments) == 0
    assert [path.name for path in sorted((tmp_path / "tokens").glob("*.npy"))] == [
        "00000.npy",
        "00001.npy",
        "00002.npy",
    ]
    assert len(Tokens(tmp_path / "tokens")) == 7


def test_a_target_that_holds_something_else_is_refused(manifest, tmp_path, model_directory):
    with pytest.raises(ConfigError, match="neither empty nor a folder of tokens"):
        tokenize(manifest, tmp_path, model=str(model_directory), jobs=0)


def test_calls_that_share_the_work_may_begin_at_the_same_moment(manifest, tmp_path, model_directory):
    """Of another one only the temporary name of what it begins with is there, or what a kill has left."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / ".0123456789abcdef.part").write_bytes(b"{")
    assert len(tokens_of(manifest, tmp_path / "tokens", model_directory)) == 7
    command = [sys.executable, "-m", "codec", "tokenize", manifest, tmp_path / "shared", "--model", model_directory]
    calls = [
        subprocess.Popen([*map(str, command), "--jobs", "0", "--shard", "1", "--share", f"{number}/2", "-q"])
        for number in (1, 2)
    ]
    assert [call.wait() for call in calls] == [0, 0]
    assert len(Tokens(tmp_path / "shared")) == 7


def test_of_calls_that_begin_otherwise_at_the_same_moment_only_one_makes_tokens(
    manifest, tmp_path, model_directory, other_model_directory
):
    tokens_of(manifest, tmp_path / "other", other_model_directory)

    def begin_otherwise(*_):
        shutil.copy(tmp_path / "other" / "tokens.json", tmp_path / "tokens")

    with pytest.raises(ConfigError, match="tokens: holds tokens that were made otherwise, fingerprint was"):
        tokens_of(manifest, tmp_path / "tokens", model_directory, progress=begin_otherwise)
    assert content(tmp_path / "tokens") == {"tokens.json": (tmp_path / "other" / "tokens.json").read_bytes()}


def test_recordings_are_tried_again_once_they_have_changed(recordings, tmp_path, model_directory, capsys):
    folder = shutil.copytree(recordings, tmp_path / "recordings")
    manifest = tmp_path / "list.tsv"
    paths = sorted(folder.rglob("*.wav"))
    write_manifest(manifest, [Utterance(p.stem, p, soundfile.info(p).frames, soundfile.info(p).samplerate, "s", "p")
                              for p in paths])  # fmt: skip
    good = paths[0].read_bytes()
    paths[0].write_bytes(b"")
    assert len(tokens_of(manifest, tmp_path / "tokens", model_directory)) == 6
    before = content(tmp_path / "tokens")
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert content(tmp_path / "tokens") == before
    paths[0].write_bytes(good)
    os.utime(paths[0], (0, 0))  # as a copy that keeps the time
    assert len(tokens_of(manifest, tmp_path / "tokens", model_directory)) == 7
    assert not list((tmp_path / "tokens").glob("*.failed.tsv"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8 in every locale")
def test_a_locale_that_has_no_such_names_is_told_of(recordings, tmp_path, model_directory):
    folder = Path(shutil.copytree(recordings, tmp_path / "café"))
    write_manifest(tmp_path / "list.tsv", [Utterance("ü", folder / "anna" / "0.wav", 8572, 24000, "anna", "train")])
    command = [sys.executable, "-m", "codec", "tokenize", tmp_path / "list.tsv", tmp_path / "tokens"]
    command += ["--model", model_directory, "--jobs", "0", "--quiet"]
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    refused = subprocess.run(command, env=plain, capture_output=True, encoding="utf-8")
    assert refused.returncode == 2
    assert re.fullmatch(
        "codec: .*0.wav: cannot be written in this locale, which is ascii; set PYTHONUTF8=1\n", refused.stderr
    )
    assert subprocess.run(command, env=plain | {"PYTHONUTF8": "1"}).returncode == 0


def test_only_recordings_without_codes_are_tried_again(recordings, tmp_path, model_directory, monkeypatch):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    good = (folder / "anna" / "2.wav").read_bytes()
    for name in ("anna/2.wav", "anna/6.wav"):
        (folder / name).write_bytes(b"")
    assert len(tokens_of(folder, tmp_path / "tokens", model_directory, utterances_per_shard=4)) == 5
    (folder / "anna" / "2.wav").write_bytes(good)
    (folder / "anna" / "6.wav").chmod(0o600)  # as good as before, that is not at all
    encoded = names_of_what_is_encoded(monkeypatch)
    report = tokenize(folder, tmp_path / "tokens", model=str(model_directory), jobs=0, utterances_per_shard=4)
    assert sorted(encoded) == ["2", "6"]
    assert (report.num_found, report.num_utterances, report.num_failed) == (1, 6, 1)
    in_it = [soundfile.info(path).duration for path in folder.rglob("*.wav") if path.stat().st_size]
    assert report.seconds == pytest.approx(sum(in_it), abs=1e-3)
    assert report.new_seconds == pytest.approx(soundfile.info(folder / "anna" / "2.wav").duration, abs=1e-3)
    tokens_of(folder, tmp_path / "fresh", model_directory, utterances_per_shard=4)
    assert content(tmp_path / "tokens") == content(tmp_path / "fresh")


def test_a_damaged_shard_with_failures_is_made_again(recordings, tmp_path, model_directory):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    (folder / "anna" / "2.wav").write_bytes(b"")
    tokens_of(folder, tmp_path / "tokens", model_directory)
    before = content(tmp_path / "tokens")
    failures = before["00000.failed.tsv"]
    for name, data in (
        ("00000.npy", b"half"),
        ("00000.failed.tsv", failures.replace(b"anna/2\t", b"anna/9\t")),
        ("00001.failed.tsv", failures),  # of another shard
    ):
        (tmp_path / "tokens" / name).write_bytes(data)
        tokens_of(folder, tmp_path / "tokens", model_directory)
        assert content(tmp_path / "tokens") == before


def test_recordings_that_come_back_as_they_were_are_tried_again(recordings, tmp_path, model_directory):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    tokens = tmp_path / "tokens"
    paths = sorted(folder.rglob("*.wav"))
    paths[0].rename(tmp_path / "away.wav")
    paths[0].symlink_to(tmp_path / "disk" / "not" / "mounted.wav")
    there = tokens_of(folder, tokens, model_directory)
    assert (len(there), there.places.speakers) == (6, ["anna", "ben"])
    paths[0].unlink()
    (tmp_path / "away.wav").rename(paths[0])
    assert len(tokens_of(folder, tokens, model_directory)) == 7


def test_deleting_the_list_of_failures_tries_them_again(recordings, tmp_path, model_directory):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    tokens = tmp_path / "tokens"
    next(folder.rglob("*.wav")).write_bytes(b"")
    for _ in range(2):
        assert len(tokens_of(folder, tokens, model_directory, utterances_per_shard=7)) == 6
        (tokens / "00000.failed.tsv").unlink()


def test_names_that_are_no_text_or_have_tabs_do_not_cost_the_others(recordings, tmp_path, model_directory):
    folder = tmp_path / os.fsdecode(b"caf\xe9\tau\nlait")
    shutil.copytree(recordings, folder)
    next(folder.rglob("*.wav")).write_bytes(b"")
    for _ in range(2):
        assert len(tokens_of(folder, tmp_path / "tokens", model_directory)) == 6


def test_other_sound_of_the_same_names_and_lengths_is_warned_of(manifest, tmp_path, model_directory):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    shutil.copy(manifest, manifest.with_name("denoised.tsv"))
    with pytest.warns(CodecWarning, match="holds tokens of "):
        tokens_of(manifest.with_name("denoised.tsv"), tmp_path / "tokens", model_directory)


def test_ids_need_not_be_tidy_paths(recordings, tmp_path, model_directory):
    tokens_of_ids(["anna//1"], recordings, tmp_path, model_directory)
    assert run(["decode", str(tmp_path / "tokens"), str(tmp_path / "out"), "--model", str(model_directory)]) == 0
    assert (tmp_path / "out" / "anna" / "1.wav").is_file()


def test_an_id_that_needs_a_folder_where_a_file_is_fails_alone(recordings, tmp_path, model_directory, capsys):
    tokens_of_ids(["b", "b.wav/c", "d"], recordings, tmp_path, model_directory)
    out = tmp_path / "out"
    assert run(["decode", str(tmp_path / "tokens"), str(out), "--model", str(model_directory), "-q"]) == 2
    said = capsys.readouterr().err
    assert f"{out}/b.wav: is a file, and {out}/b.wav/c.wav needs a folder there; rename one of them" in said
    assert {path.name for path in out.iterdir()} == {"b.wav", "d.wav"}


@pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
def test_two_names_of_one_output_are_refused(recordings, tmp_path, model_directory, capsys, option):
    """As Anna/1 and anna/1 are where upper and lower case are one; here a link makes two folders one."""
    tokens_of_ids(["one/1", "two/1"], recordings, tmp_path, model_directory)
    out = tmp_path / "out"
    (out / "one").mkdir(parents=True)
    (out / "two").symlink_to("one")
    for _ in range(2):
        assert run(["decode", str(tmp_path / "tokens"), str(out), "--model", str(model_directory), option, "-q"]) == 2
        said = capsys.readouterr().err
        assert f"two/1: would be written to {out}/two/1.wav, as {tmp_path}/tokens/one/1 was; rename one" in said


def test_a_shard_without_its_codes_is_made_again(manifest, tmp_path, model_directory):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    before = content(tmp_path / "tokens")
    (tmp_path / "tokens" / "00000.npy").unlink()
    (tmp_path / "tokens" / "00001.npy").write_bytes(before["00001.npy"][:-10])
    (tmp_path / "tokens" / "00002.tsv").write_bytes(before["00002.tsv"][:-10])
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert content(tmp_path / "tokens") == before
    (tmp_path / "tokens" / "00000.tsv").write_bytes(re.sub(rb"\t\d+\tanna", b"\t99999999\tanna", before["00000.tsv"]))
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert content(tmp_path / "tokens") == before


def test_however_many_shards_there_are_no_file_stays_open(manifest, tmp_path, model_directory):
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory, utterances_per_shard=1)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    everything = list(tokens.values())
    assert len(everything) == 7
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_another_process_opens_the_same_codes_without_reading_the_tables(manifest, tmp_path, model_directory):
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory)
    sent = pickle.dumps(tokens)
    for path in (tmp_path / "tokens").glob("*.tsv"):
        path.unlink()
    received = pickle.loads(sent)
    assert {id: codes.tolist() for id, codes in received.items()} == {
        id: codes.tolist() for id, codes in tokens.items()
    }
    assert received.places == tokens.places


def test_places_are_found_by_whatever_id(tmp_path):
    info = replace(INFO, utterances=4, utterances_per_shard=3)
    write_info(tmp_path, info)
    ids = ["plumless", "a/ä ö", "b", "buckeroo"]  # the first and the last have the same CRC-32
    assert zlib.crc32(ids[0].encode()) == zlib.crc32(ids[-1].encode())
    utterances = [(id, np.full(n, n), 320 * n, f"speaker of {id}", "train") for n, id in enumerate(ids, 1)]
    write_shard(tmp_path, 0, utterances[:3], [], info.dtype)
    write_shard(tmp_path, 1, utterances[3:], [], info.dtype)
    tokens = Tokens(tmp_path)
    assert list(tokens) == ids
    assert [codes.tolist() for codes in tokens.values()] == [[1], [2, 2], [3, 3, 3], [4, 4, 4, 4]]
    assert tokens.places["b"] == Place("b", 3, 3, 960, "speaker of b", "train", zlib.crc32(bytes([3, 0] * 3)))
    assert (tokens.places.codes.tolist(), tokens.places.samples.tolist()) == ([1, 2, 3, 4], [320, 640, 960, 1280])
    assert (len(tokens.places.speakers), tokens.places.parts) == (4, ["train"])
    assert [tokens.places.id(number) for number in range(4)] == ids
    speakers = [tokens.places.speakers[number] for number in tokens.places.speaker_numbers]
    assert speakers == [f"speaker of {id}" for id in ids]
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        tokens.places.id(4)
    with pytest.raises(IndexError, match="counted from 0, got -1"):
        tokens.places.id(-1)
    for id in ("plumles", "", "\udcff", 1, None):
        assert id not in tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda code: 60000, r"00000\.npy: damaged, 0 has code 60000 .*; run codec tokenize again"),
        (lambda code: code ^ 1, r"00000\.npy: damaged, the codes of 0 are not those that were written; run codec tok"),
    ],
)
def test_damaged_codes_are_named_and_made_again(manifest, tmp_path, model_directory, capsys, change, message):
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    before = content(tmp_path / "tokens")
    codes = np.load(tmp_path / "tokens" / "00000.npy")
    codes[0] = change(codes[0])
    np.save(tmp_path / "tokens" / "00000.npy", codes)
    tokens = Tokens(tmp_path / "tokens")
    with pytest.raises(FormatError, match=message):
        tokens["0"]
    assert len(tokens["1"])
    assert run(["decode", str(tmp_path / "tokens"), str(tmp_path / "wavs"), "--model", str(model_directory)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert "1 of 7 files could not be used" in err
    assert run(["info", str(tmp_path / "tokens")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert content(tmp_path / "tokens") == before


def test_tables_of_tokens_once_had_no_sums(recordings, tmp_path, model_directory, monkeypatch):
    folder = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    good = (folder / "anna" / "2.wav").read_bytes()
    (folder / "anna" / "2.wav").write_bytes(b"")
    codes = dict(tokens_of(folder, tmp_path / "tokens", model_directory))
    before = content(tmp_path / "tokens")
    for path in (tmp_path / "tokens").glob("0000?.tsv"):
        path.write_text(re.sub(r"\t[^\t]*$", "", path.read_text(), flags=re.MULTILINE))
    old = content(tmp_path / "tokens")
    assert old["00000.tsv"].startswith(TABLE)
    tokens = tokens_of(folder, tmp_path / "tokens", model_directory)
    assert content(tmp_path / "tokens") == old
    assert {id: tokens[id].tolist() for id in tokens} == {id: codes[id].tolist() for id in codes}
    assert tokens.places["anna/0"].crc32 is None
    (folder / "anna" / "2.wav").write_bytes(good)
    encoded = names_of_what_is_encoded(monkeypatch)
    assert len(tokens_of(folder, tmp_path / "tokens", model_directory)) == 7
    assert encoded == ["2"]
    tokens_of(folder, tmp_path / "fresh", model_directory)
    now, fresh = content(tmp_path / "tokens"), content(tmp_path / "fresh")
    assert (now["00000.tsv"], now["00000.npy"]) == (fresh["00000.tsv"], fresh["00000.npy"])
    assert now["00001.tsv"] == old["00001.tsv"] != before["00001.tsv"]


def test_info_tells_what_a_folder_of_tokens_holds(manifest, tmp_path, model_directory, capsys):
    tokens = tokens_of(manifest, tmp_path / "tokens", model_directory)
    assert run(["info", str(tmp_path / "tokens"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_utterances"] == 7
    assert facts["num_codes"] == sum(map(len, tokens.values()))
    assert facts["num_speakers"] == 2
    assert facts["fingerprint"] == tokens.info.fingerprint


def test_shards_that_are_there_can_be_used_before_the_others_are(
    manifest, recordings, tmp_path, model_directory, capsys
):
    whole = tokens_of(manifest, tmp_path / "whole", model_directory)
    source = Path(shutil.copytree(recordings, tmp_path / "recordings"))
    manifest.write_text(manifest.read_text().replace(str(recordings), str(source)))
    (source / "ben" / "5.wav").write_bytes(b"")
    tokenize(manifest, tmp_path / "tokens", model=str(model_directory), jobs=0, utterances_per_shard=3, share=(2, 2))
    tokenize(manifest, tmp_path / "tokens", model=str(model_directory), jobs=0, utterances_per_shard=3, share=(3, 3))
    tokens = pickle.loads(pickle.dumps(Tokens(tmp_path / "tokens", partial=True)))
    assert {id: codes.tolist() for id, codes in tokens.items()} == {id: whole[id].tolist() for id in ("3", "4", "6")}
    assert tokens.shards == [(tmp_path / "tokens", 1), (tmp_path / "tokens", 2)]
    assert "0" not in tokens
    assert run(["info", str(tmp_path / "tokens"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [facts[f"num_{name}"] for name in ("utterances", "failed", "shards", "missing_shards")] == [3, 1, 2, 1]
    assert facts["num_codes"] == sum(map(len, tokens.values()))


@pytest.mark.parametrize(("num_recordings", "size"), [(7, 50), (5001, 51), (7000, 60)])
def test_a_list_is_divided_so_that_many_can_share_it(num_recordings, size, tmp_path, model_directory, monkeypatch):
    monkeypatch.setattr(corpus, "MOST_IN_SHARD", 60)
    utterances = [
        Utterance(str(number), tmp_path / "x.wav", 1, 24000, "anna", "all") for number in range(num_recordings)
    ]
    write_manifest(tmp_path / "list.tsv", utterances, tmp_path)
    with pytest.warns(CodecWarning, match="nothing in share 999 of 999"):
        tokenize(tmp_path / "list.tsv", tmp_path / "tokens", model=str(model_directory), jobs=0, share=(999, 999))
    assert read_info(tmp_path / "tokens").utterances_per_shard == size


def test_two_files_of_one_id_are_refused(tmp_path, speech, model_directory):
    for name in ("a.flac", "a.wav", "b.flac", "b.wav"):
        shutil.copy(speech, tmp_path / name)
    with pytest.raises(CorpusError, match=r"would both have the id 'a'; rename one; .* would both have the id 'b'"):
        tokenize(tmp_path, tmp_path / "tokens", model=str(model_directory), jobs=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "OUT", "--share", "3/2"], "the share must be i of n with 1 <= i <= n, got 3 of 2"),
        (["SOURCE", "OUT", "--share", "half"], "--share takes I/N, for example 2/8, got half"),
        (["SOURCE", "OUT", "--share", "1/1" + "0" * 5000], "--share takes I/N, for example 2/8, got 1/1000"),
        (["SOURCE", "OUT", "--shard", "0"], "a shard must have at least 1 utterance, got 0"),
        (["nowhere", "OUT"], "nowhere: no such folder or manifest"),
        (["SOUND", "OUT"], "0.wav: is named as a sound file, a manifest or a folder is meant"),
        (["SOURCE", "SOUND"], "0.wav: is a file; name a folder for the tokens"),
        (["EMPTY", "OUT"], "has no sound files"),
    ],
)
def test_misuse_is_one_sentence(arguments, message, recordings, tmp_path, model_directory, capsys):
    (tmp_path / "empty").mkdir()
    names = {"SOURCE": str(recordings), "OUT": str(tmp_path / "tokens"), "EMPTY": str(tmp_path / "empty"),
             "SOUND": str(recordings / "anna" / "0.wav")}  # fmt: skip
    words = [names.get(word, word) for word in arguments]
    assert run(["tokenize", *words, "--model", str(model_directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": -1}, "jobs must be a number of processes, 0 for none but this one, or None, got -1"),
        ({"jobs": "2"}, "jobs must be a number of processes, .*, got '2'"),
        ({"share": "1/2"}, r"share must be two integers, \(2, 8\) for the second of eight, got '1/2'"),
        ({"share": (1, 2.0)}, r"share must be two integers, .*, got \(1, 2.0\)"),
        ({"utterances_per_shard": 6.5}, "utterances_per_shard must be an integer or None, got 6.5"),
        ({"precision": "half"}, "precision must be float32 or bf16, got 'half'"),
        ({"refine": -1}, "refined in 0 .not at all. to 1000 steps, got -1"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(settings, message, recordings, tmp_path, model_directory):
    with pytest.raises(ConfigError, match=message):
        tokenize(recordings, tmp_path / "tokens", **{"model": str(model_directory), "jobs": 0} | settings)
    assert not (tmp_path / "tokens").exists()


def test_a_loaded_model_is_refused(recordings, tmp_path, model_directory):
    with pytest.raises(ConfigError, match=r"codec\.save a loaded one and name its directory"):
        tokenize(recordings, tmp_path / "tokens", model=load(model_directory), jobs=0)
    assert not (tmp_path / "tokens").exists()


def test_json_report(manifest, tmp_path, model_directory, capsys):
    target = str(tmp_path / "tokens")
    assert run(["tokenize", str(manifest), target, "--model", str(model_directory), "--jobs", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tokens = Tokens(target)
    assert report["num_utterances"] == len(tokens) == 7
    assert report["num_codes"] == sum(map(len, tokens.values()))
    assert report["seconds"] == pytest.approx(sum(place.samples for place in tokens.places.values()) / 24000)


def test_large_codebooks_have_codes_of_32_bits(tmp_path):
    info = replace(INFO, codebook_size=262144)
    write_info(tmp_path, info)
    write_shard(tmp_path, 0, [("a", np.array([0, 262143, 65536]), 960, "anna", "train")], [], info.dtype)
    tokens = Tokens(tmp_path)
    assert tokens["a"].tolist() == [0, 262143, 65536]
    crc32 = zlib.crc32(bytes([0, 0, 0, 0, 0xFF, 0xFF, 3, 0, 0, 0, 1, 0]))
    assert tokens.places == {"a": Place("a", 0, 3, 960, "anna", "train", crc32)}


TABLE = b"id\tstart\tcodes\tsamples\tspeaker\tpart\n"
SUMMED = TABLE.replace(b"part", b"part\tcrc32")


def info_with(**values: object) -> bytes:
    return json.dumps(asdict(INFO) | values).encode()


def npy(header: str) -> bytes:
    """An array file with any header, and 100 bytes of data."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(100)


DAMAGED_ARRAYS = {
    "zip": b"PK\3\4garbage",
    "empty zip": b"PK\5\6" + bytes(18),
    "huge": npy(f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({10**30},)}}"),
    "large": npy(f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({10**12},)}}"),
    "truth": npy("{'descr': '<u2', 'fortran_order': False, 'shape': (True,)}"),
    "sum": npy(f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({'1+' * 3000}1,)}}"),
    "key": npy("{[]: 1}"),
    "bytes": npy("{'descr': '<u2', b'fortran_order': False, 'shape': (3,)}"),
}


@pytest.mark.parametrize("kind", DAMAGED_ARRAYS)
def test_a_damaged_array_is_refused_and_its_shard_made_again(tmp_path, capsys, kind):
    write_info(tmp_path, INFO)
    write_shard(tmp_path, 0, [("a", np.array([1, 2, 3]), 960, "anna", "train")], [], INFO.dtype)
    (tmp_path / "00000.npy").write_bytes(DAMAGED_ARRAYS[kind])
    with pytest.raises(FormatError, match=r"00000\.npy: (cannot be read|does not fit its table).*; run codec tokenize"):
        Tokens(tmp_path)
    assert unfinished(tmp_path, 0, INFO, {"a": Path("a.wav")}) == {"a"}
    assert run(["info", str(tmp_path / "00000.npy")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"00000\.npy: (is no whole \.npy file|codes must be)", line)


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_model_that_is_replaced_meanwhile_makes_no_tokens(
    recordings, tmp_path, model_directory, other_model_directory, jobs
):
    model = shutil.copytree(model_directory, tmp_path / "model")

    def replace_model(*_):
        shutil.copytree(other_model_directory, model, dirs_exist_ok=True)

    with pytest.raises(ModelError, match="model: was replaced while tokens were made with it"):
        tokens_of(recordings, tmp_path / "tokens", model, jobs=jobs, progress=replace_model)
    assert list(content(tmp_path / "tokens")) == ["tokens.json"]


def test_a_damaged_model_leaves_no_folder_that_would_be_its_own(recordings, tmp_path, model_directory):
    shutil.copytree(model_directory, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        tokens_of(recordings, tmp_path / "tokens", tmp_path / "model")
    weights.write_bytes(whole)
    assert len(tokens_of(recordings, tmp_path / "tokens", tmp_path / "model")) == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["00000.npy", "00000.tsv", "00000.failed.tsv"])
@pytest.mark.parametrize("command", ["info", "decode", "tokenize"])
def test_a_pipe_among_tokens_is_named_and_not_waited_for(manifest, tmp_path, model_directory, capsys, name, command):
    tokens = tmp_path / "tokens"
    tokens_of(manifest, tokens, model_directory)
    (tokens / name).unlink(missing_ok=True)
    os.mkfifo(tokens / name)
    more = {"info": [tokens], "decode": [tokens, tmp_path / "out"], "tokenize": [manifest, tokens, "--jobs", "0"]}
    model = [] if command == "info" else ["--model", model_directory]
    assert run([command, *map(str, more[command] + model)]) == 2
    assert capsys.readouterr().err == (
        f"codec: {tokens / name}: is no regular file; remove it and run codec tokenize again\n"
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("00000.npy", b"", "cannot be read"),
        ("00000.npy", None, "cannot be read"),
        ("00000.tsv", b"id\tstart\n", "not the table of a shard"),
        ("00000.tsv", TABLE + b"a\t0\t3\t961\ts\tp\n", "a has 3 codes, which do not fit 961 samples"),
        ("00000.tsv", TABLE + b"a\t0\t3\t640\ts\tp\n", "a has 3 codes, which do not fit 640 samples"),
        ("00000.tsv", TABLE + b"a\t0\t0\t-5\ts\tp\n", "a has 0 codes, which do not fit -5 samples"),
        ("00000.tsv", TABLE + b"a\t0\t2\t640\ts\tp\n", "does not fit its table"),
        ("00000.tsv", TABLE + b"a\t-1\t3\t960\ts\tp\n", "a does not begin where the utterance before it ends"),
        ("00000.tsv", TABLE + b"a\t0\t4\t1280\ts\tp\nb\t4\t-1\t9\ts\tp\n", "b does not begin where"),
        ("00000.tsv", TABLE + b"a\t0\t2\t640\ts\tp\na\t2\t1\t9\ts\tp\n", "an id stands there twice"),
        ("00000.tsv", TABLE + b"a\t0\n", "a line has not 6 columns"),
        ("00000.tsv", SUMMED + b"a\t0\t3\t960\ts\tp\n", "a line has not 7 columns"),
        ("00000.tsv", SUMMED + b"a\t0\t3\t960\ts\tp\t-1\n", "a has -1 for a CRC-32"),
        ("00000.tsv", SUMMED + b"a\t0\t3\t960\ts\tp\t4294967296\n", "a has 4294967296 for a CRC-32"),
        ("tokens.json", b"{}", "it lacks 'model'; restore it from a copy, or choose another folder"),
        ("tokens.json", b"{", r"does not describe tokens \(.*\); restore it from a copy, or choose another folder"),
        ("tokens.json", info_with(utterances_per_shard=0), "utterances_per_shard is 0"),
        ("tokens.json", info_with(utterances_per_shard=None), "utterances_per_shard is None"),
        ("tokens.json", info_with(utterances_per_shard="10"), "utterances_per_shard is '10'"),
        ("tokens.json", info_with(hop_length=10**30), "the hop length must be an integer from 1 to 65535, got 10000"),
        ("tokens.json", info_with(fingerprint="f"), "the fingerprint must be 16 hexadecimal digits"),
        ("tokens.json", None, "is not a folder of tokens"),
    ],
)
def test_damage_is_named(tmp_path, name, data, message):
    write_info(tmp_path, INFO)
    write_shard(tmp_path, 0, [("a", np.array([1, 2, 3]), 960, "anna", "train")], [], INFO.dtype)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=message):
        Tokens(tmp_path)
