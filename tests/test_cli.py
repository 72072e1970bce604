"""Every command does what its help says; whatever is wrong with the input is said in one sentence, with exit code 2."""

import argparse
import io
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import soundfile
import torch

import codec
from codec import cli
from codec.bitstream import Header, read_codes, write_codes
from codec.errors import ModelError
from codec.model.catalogue import RETIRED


class Command:
    """Runs the command line in this process, in a folder of its own."""

    def __init__(self, capfd: pytest.CaptureFixture[str], model: Path):
        self._capfd, self.model = capfd, str(model)
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        self.out, self.err = self._capfd.readouterr()
        return code

    def refuses(self, *arguments: object, left: set[str]) -> str:
        """The sentence that the command ends with, after checking that it is one and that nothing else happened."""
        code = self(*arguments)
        assert code == 2, (code, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("codec: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        assert set(os.listdir()) == left
        return self.err[7:].rstrip("\n")


@pytest.fixture
def run(capfd, tmp_path, monkeypatch, model_directory):
    monkeypatch.chdir(tmp_path)
    return Command(capfd, model_directory)


@pytest.fixture
def talk(run, speech) -> Path:
    """talk.codes, made of speech by the tiny model."""
    assert run("encode", speech, "talk.codes", "--model", run.model) == 0
    return Path("talk.codes")


def write_sound(path: str, samples: np.ndarray, sample_rate: int = 24000, **options: str) -> str:
    soundfile.write(path, samples, sample_rate, **options)
    return path


def spawn(*arguments: object, **options) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "codec", *map(str, arguments)]

    def heed_signals() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    # A shell runs background jobs with Ctrl-C ignored, nohup with SIGHUP, and children inherit that.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_signals,
        **options,
    )


# -- what works


def test_encode_and_decode_keep_the_exact_length(run, talk, speech):
    assert run("decode", talk, "again.wav", "--model", run.model) == 0
    assert soundfile.info("again.wav").frames == soundfile.info(speech).frames
    assert soundfile.info("again.wav").samplerate == 24000
    assert sorted(os.listdir()) == ["again.wav", "talk.codes"]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_every_sound_format_is_written(run, talk, name, speech):
    assert run("decode", talk, name, "--model", run.model) == 0
    assert len(soundfile.read(name)[0]) == soundfile.info(speech).frames


def test_roundtrip_equals_encode_then_decode(run, talk, speech):
    assert run("decode", talk, "two.wav", "--model", run.model) == 0
    assert run("roundtrip", speech, "one.wav", "--model", run.model) == 0
    assert Path("one.wav").read_bytes() == Path("two.wav").read_bytes()


@pytest.mark.parametrize("name", ["a.npy", "a.json", "a.txt"])
def test_plain_integers_are_the_codes_of_the_container(run, talk, name, speech):
    assert run("encode", speech, name, "--model", run.model) == 0
    codes = read_codes(talk).codes
    if name == "a.npy":
        np.testing.assert_array_equal(np.load(name), codes)
    elif name == "a.txt":
        assert Path(name).read_text() == " ".join(map(str, codes)) + "\n"
    else:
        values = json.loads(Path(name).read_text())
        assert values["codes"] == codes.tolist()
        assert values["num_samples"] == soundfile.info(speech).frames
    assert run("decode", talk, "codes.wav", "--model", run.model) == 0
    assert run("decode", name, "plain.wav", "--model", run.model) == 0
    expected, plain = soundfile.read("codes.wav")[0], soundfile.read("plain.wav")[0]
    np.testing.assert_array_equal(plain[: len(expected)], expected)
    assert len(plain) == (len(expected) if name == "a.json" else len(codes) * 320)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 8])
def test_any_sample_rate_and_channels_keep_the_duration(run, sample_rate, channels):
    num_samples = sample_rate // 3
    write_sound("in.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (num_samples, channels)), sample_rate)
    assert run("roundtrip", "in.wav", "out.wav", "--model", run.model) == 0
    assert soundfile.info("out.wav").frames == -(-num_samples * 24000 // sample_rate)


@pytest.mark.parametrize("sample_rate", [8000, 24000, 192000])
def test_one_sample_is_a_recording(run, sample_rate):
    write_sound("in.wav", np.zeros(1), sample_rate)
    assert run("encode", "in.wav", "out.codes", "--model", run.model) == 0
    assert run("decode", "out.codes", "out.wav", "--model", run.model) == 0
    assert soundfile.info("out.wav").frames == -(-24000 // sample_rate)


def test_encoding_in_blocks_equals_encoding_at_once(run, speech):
    """Fourteen copies of the speech make two reads, of a minute and of less."""
    samples = np.tile(soundfile.read(speech, dtype="float32")[0], 14)
    write_sound("long.wav", samples, subtype="FLOAT")
    assert run("encode", "long.wav", "long.codes", "--model", run.model) == 0
    expected = codec.load(run.model).encode(torch.from_numpy(samples)[None, None])[0].numpy()
    np.testing.assert_array_equal(read_codes("long.codes").codes, expected)


def test_pipes_carry_the_same_codes_and_sound(run, talk, speech):
    assert run("decode", talk, "file.wav", "--model", run.model) == 0
    samples = soundfile.read(speech, dtype="int16")[0]
    stream = io.BytesIO()
    soundfile.write(stream, samples, 24000, format="WAV", subtype="PCM_16")
    encoder = spawn("encode", "-", "-", "--model", run.model, "--quiet", stdin=subprocess.PIPE)
    codes, errors = encoder.communicate(stream.getvalue())
    assert (encoder.returncode, errors) == (0, b"")
    Path("piped.codes").write_bytes(codes)
    np.testing.assert_array_equal(read_codes("piped.codes").codes, read_codes(talk).codes)
    decoder = spawn("decode", "-", "-", "--model", run.model, "--quiet", stdin=subprocess.PIPE)
    sound, errors = decoder.communicate(codes)
    assert (decoder.returncode, errors) == (0, b"")
    piped = soundfile.read(io.BytesIO(sound))[0]
    # Other blocks, other rounding in float32: a sample may fall on the other side of a 16-bit step.
    np.testing.assert_allclose(piped, soundfile.read("file.wav")[0], atol=1.01 / 32768)


def with_little_room(arguments: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the command where no file may have more than 1000 bytes, which stands for a full temporary folder."""
    resource = pytest.importorskip("resource", reason="this system cannot limit files")
    python = [sys.executable, "-B"]  # or the limit would cut what it compiles
    return subprocess.run(
        [*python, "-m", "codec", *arguments],
        input=content,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )


@pytest.mark.parametrize("size", [5000, None])  # less than is written at once, and more
def test_a_pipe_that_does_not_fit_the_temporary_folder_is_not_blamed(size, tmp_path, speech, model_directory):
    arguments = ["encode", "-", str(tmp_path / "a.codes"), "--model", str(model_directory)]
    result = with_little_room(arguments, speech.read_bytes()[:size])
    assert result.returncode == 2
    assert b"standard input: does not fit the temporary folder" in result.stderr
    assert b"set TMPDIR to another" in result.stderr


@pytest.mark.parametrize("format", ["flac", "ogg"])
def test_standard_output_is_not_blamed_for_a_full_temporary_folder(run, talk, format):
    arguments = ["decode", "-", "-", "--model", run.model, "--format", format]
    result = with_little_room(arguments, Path(talk).read_bytes())
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"standard output: does not fit the temporary folder" in result.stderr


def test_codes_leave_a_pipe_before_the_sound_ends(run):
    """A live source is encoded while it speaks: bytes come out although the input stays open."""
    process = spawn("encode", "-", "-", "--model", run.model, "--quiet", stdin=subprocess.PIPE)
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(24000 * 3), 24000, format="WAV", subtype="PCM_16")
    content = bytearray(stream.getvalue())
    content[40:44] = b"\xff\xff\xff\xff"  # length unknown
    process.stdin.write(content)
    process.stdin.flush()
    assert len(process.stdout.read(60)) == 60
    rest, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(rest) > 200


def test_sound_leaves_a_pipe_before_the_codes_end(run, talk, speech):
    """It stays open behind the first of two blocks, of 256 codes; the sound of the last one is held back."""
    process = spawn("decode", "-", "-", "--model", run.model, "--quiet", stdin=subprocess.PIPE)
    content = talk.read_bytes()
    block_end = 30 + len("tiny") + 1 + 4 + 256 * 12 // 8
    process.stdin.write(content[:block_end])
    process.stdin.flush()
    begin = process.stdout.read(44 + 250 * 320 * 2)
    process.stdin.write(content[block_end:])
    process.stdin.close()
    sound = begin + process.stdout.read()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    assert len(soundfile.read(io.BytesIO(sound))[0]) == soundfile.info(speech).frames


def test_reader_that_goes_away_is_no_error_message(run, speech):
    for arguments in (["encode", speech, "-", "--model", run.model, "--quiet"], ["--help"], ["--version"]):
        process = spawn(*arguments)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141, arguments


def test_folder_is_mirrored(run, speech):
    for name in ("in/a.flac", "in/deep/er/b.flac"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(speech, name)
    Path("in/notes.txt").write_text("no sound")
    assert run("encode", "in", "codes", "--model", run.model) == 0
    assert run("decode", "codes", "out", "--model", run.model, "--format", "flac") == 0
    assert sorted(str(path) for path in Path("out").rglob("*.*")) == ["out/a.flac", "out/deep/er/b.flac"]


def test_folders_in_which_nothing_comes_to_be_are_not_left(run):
    Path("in/sub").mkdir(parents=True)
    Path("in/sub/a.wav").write_bytes(b"no sound")
    Path("there").mkdir()
    for source, target in (("in/sub/a.wav", "there/new/deeper/"), ("in", "there/new/deeper"), ("in", "new")):
        assert run("encode", source, target, "--model", run.model, "--quiet") == 2
        assert sorted(map(str, Path().rglob("*"))) == ["in", "in/sub", "in/sub/a.wav", "there"]


def test_bad_file_of_a_folder_is_reported_and_the_rest_goes_on(run, speech):
    Path("in").mkdir()
    Path("in/a.wav").write_bytes(b"no sound")
    shutil.copy(speech, "in/b.flac")
    assert run("encode", "in", "codes", "--model", run.model, "--quiet") == 2
    assert run.err.splitlines()[0].startswith("codec: in/a.wav: is not a sound file")
    assert run.err.splitlines()[1:] == ["codec: 1 of 2 files could not be used"]
    assert os.listdir("codes") == ["b.codes"]


def test_a_file_where_a_folder_is_needed_is_named_however_far_above(run, speech):
    Path("in/deep").mkdir(parents=True)
    shutil.copy(speech, "in/deep/a.flac")
    Path("file").write_text("kept")
    said = "file: is a file, and file/new/a.codes needs a folder there; rename one of them"
    assert run.refuses("encode", "in/deep/a.flac", "file/new/", "--model", run.model, left={"in", "file"}) == said
    assert run("encode", "in", "file/new", "--model", run.model) == 2
    assert run.err.startswith("codec: file: is a file, and file/new/deep/a.codes needs a folder there; rename one of")


def test_several_files_go_into_a_folder(run, speech):
    for name in ("one/a.flac", "two/b.flac", "two/a.flac"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(speech, name)
    assert run("encode", "one/a.flac", "two/b.flac", "out/", "--model", run.model) == 0
    assert run("encode", "one/a.flac", "one/codes/", "--model", run.model) == 0
    assert os.listdir("one/codes") == ["a.codes"]
    for target, message in (("fresh/", "No such file"), ("two/b.flac/", "is a file, though its name ends as")):
        left = {"one", "two", "out"}
        assert message in run.refuses("encode", "missing.wav", target, "--model", run.model, left=left)
    assert run("decode", "out/a.codes", "out/b.codes", "out", "--model", run.model) == 0
    assert sorted(os.listdir("out")) == ["a.codes", "a.wav", "b.codes", "b.wav"]
    assert run("encode", "one/a.flac", "two/a.flac", "out", "--model", run.model, "--overwrite", "--quiet") == 2
    assert "two/a.flac: would be written to out/a.codes, as one/a.flac was" in run.err
    left = {"one", "two", "out"}
    for last, message in (
        ("new", "there is no such folder for several files; name it new/ to make it"),
        ("two/b.flac", "is a file; several files need a folder"),
    ):
        assert message in run.refuses("encode", "one/a.flac", "two/a.flac", last, "--model", run.model, left=left)
    for first in ("one", "-"):
        assert "several inputs must all be files" in run.refuses("encode", first, "two/a.flac", "out", left=left)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "in", "out", "--model", "nomodel"], "unknown model 'nomodel'"),
        (["encode", "in", "out", "--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["roundtrip", "in", "out", "--model", "nomodel"], "unknown model 'nomodel'"),
        (["decode", "in", "out", "--model", "nomodel"], "unknown model 'nomodel'"),
        (["decode", "in", "out", "--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["encode", "in", "in/a.flac"], "in/a.flac: is a file; several files need a folder"),
    ],
)
def test_what_is_wrong_for_every_file_is_said_once(run, speech, arguments, message):
    Path("in").mkdir()
    for name in ("a.flac", "b.flac", "a.codes", "b.codes"):
        shutil.copy(speech, f"in/{name}")
    assert message in run.refuses(*arguments, left={"in"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_ends_the_work_on_a_folder(run, speech):
    for name in ("in", "codes"):
        Path(name).mkdir()
    for name in "ab":
        shutil.copy(speech, f"in/{name}.flac")
        Path(f"codes/{name}.codes").symlink_to("/dev/full")
    arguments = ("encode", "in", "codes", "--overwrite", "--model", run.model)
    assert "codes/a.codes: No space left" in run.refuses(*arguments, left={"in", "codes"})


def test_two_files_for_one_output_are_refused(run, speech):
    Path("in").mkdir()
    shutil.copy(speech, "in/a.flac")
    write_sound("in/a.wav", np.zeros(100))
    assert run("encode", "in", "codes", "--model", run.model, "--quiet", "--overwrite") == 2
    assert "in/a.wav: would be written to codes/a.codes, as in/a.flac was" in run.err


def test_control_characters_of_a_name_do_not_reach_the_terminal(run, speech):
    shutil.copy(speech, "a\x1b[31m\tred.flac")
    assert run("encode", "a\x1b[31m\tred.flac", "a.codes", "--model", run.model) == 0
    assert run.err.startswith("a\\x1b[31m\\tred.flac -> a.codes: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "-dash.wav", "a.codes"], "No such option '-d'; a file -name is given as ./-name; see codec encode"),
        (["train", "--steps", "3"], "'--steps'; a setting is given as key=value; see codec train --help"),
        (["import", "a", "b"], "Missing option '--from'. Choose from: wavtokenizer, simvq; see codec import --help"),
    ],
)
def test_options_that_are_none_or_missing_are_told_in_one_line(run, arguments, said):
    assert said in run.refuses(*arguments, left=set())


def test_outputs_that_exist_are_told_with_the_way_to_pass_over_them(run, speech):
    Path("in").mkdir()
    shutil.copy(speech, "in/a.flac")
    assert run("encode", "in", "out", "--model", run.model) == 0
    assert run("encode", "in", "out", "--model", run.model) == 2
    assert run.err.endswith("codec: 1 of 1 file could not be used; --skip-existing passes over outputs that exist\n")
    assert run("encode", "in", "out", "--model", run.model, "--skip-existing") == 0


def test_codes_are_not_written_to_a_terminal(run, speech):
    pty = pytest.importorskip("pty", reason="needs terminals")
    mine, its = pty.openpty()
    command = [sys.executable, "-m", "codec", "encode", str(speech), "-", "--model", run.model]
    done = subprocess.run(command, stdout=its, stderr=subprocess.PIPE, text=True, check=False)
    os.close(its)
    os.close(mine)
    assert done.returncode == 2
    assert "would fill the terminal with bytes; pipe it into a program, or name a file" in done.stderr


def test_no_input_is_written_over(run, speech):
    Path("in").mkdir()
    write_sound("in/a.flac", np.full(400, 0.1))
    write_sound("in/a.wav", np.zeros(400))
    before = Path("in/a.wav").read_bytes()
    assert run("roundtrip", "in/a.flac", "in/a.wav", "in", "--model", run.model, "--quiet", "--overwrite") == 2
    assert "in/a.flac: would be written over in/a.wav, another input; name another folder" in run.err
    assert Path("in/a.wav").read_bytes() == before


def test_sound_that_cannot_be_read_is_named_and_not_passed_over_in_silence(run, speech):
    Path("phone/today").mkdir(parents=True)
    Path("phone/today/memo.M4A").write_bytes(b"\0\0\0\x20ftypM4A ")
    sentence = "phone: sound in .m4a cannot be read (such as memo.M4A); convert it to wav"
    assert sentence in run.refuses("encode", "phone", "out", "--model", run.model, left={"phone"})
    shutil.copy(speech, "phone/today/a.flac")
    assert run("encode", "phone", "out", "--model", run.model) == 0
    assert sentence in run.err
    assert Path("out/today/a.codes").is_file()
    assert run("decode", "out", "back", "--model", run.model) == 0
    assert sentence not in run.err


def test_whole_corpora_name_it_too(run, speech):
    Path("phone").mkdir()
    Path("phone/memo.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    sentence = "codec: phone: sound in .m4a cannot be read (such as memo.m4a); convert it to wav\n"
    assert run("prepare", "folder", "phone", "--out", "lists") == 2
    assert run.err == sentence
    shutil.copy(speech, "phone/a.flac")
    assert run("tokenize", "phone", "tokens", "--model", run.model, "--jobs", 0) == 0
    assert sentence in run.err
    assert run("prepare", "folder", "phone", "--out", "lists", "--jobs", 0) == 0
    assert sentence.replace("codec: ", "codec: warning: ") in run.err


def test_file_into_a_folder_keeps_its_name(run, speech):
    Path("codes").mkdir()
    assert run("encode", speech, "codes", "--model", run.model) == 0
    assert os.listdir("codes") == ["speech.codes"]
    assert "standard input has no name" in run.refuses("encode", "-", "codes", left={"codes"})


def test_overwrite_replaces(run, talk, speech):
    before = talk.read_bytes()
    talk.write_bytes(b"old")
    assert run("encode", speech, talk, "--model", run.model, "--overwrite") == 0
    assert talk.read_bytes() == before


def test_json_reports_are_one_object_a_line(run, talk, speech):
    assert run("encode", speech, "a.codes", "--model", run.model, "--json") == 0
    report = json.loads(run.out)
    assert report["num_frames"] == 356
    assert report["bitrate"] == pytest.approx(Path("a.codes").stat().st_size * 8 / report["seconds"] / 1000)
    assert report["payload_bitrate"] == pytest.approx(356 * 12 / report["seconds"] / 1000)
    assert run.err == ""
    assert run("decode", talk, "a.wav", "--model", run.model, "--json") == 0
    assert json.loads(run.out)["num_samples"] == soundfile.info(speech).frames


def test_quiet_says_nothing(run, speech):
    assert run("encode", speech, "a.codes", "--model", run.model, "--quiet") == 0
    assert (run.out, run.err) == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "deep"],
        ["encode", "SPEECH", "a.codes", "--model", "deep"],
        ["decode", "deep/config.json", "a.wav"],
        ["info", "tokens"],
        ["decode", "tokens", "wavs"],
        ["evaluate", "--compare", "results", "results"],
    ],
    ids=" ".join,
)
def test_json_without_end_is_refused(run, speech, arguments):
    for name in ("deep/config.json", "tokens/tokens.json", "results/summary.json"):
        Path(name).parent.mkdir()
        Path(name).write_text("[" * 200_000)
    shutil.copy(Path(run.model) / "model.safetensors", "deep")
    arguments = [speech if word == "SPEECH" else word for word in arguments]
    said = run.refuses(*arguments, left={"deep", "tokens", "results"})
    assert re.search(r"\w+/\w+\.json: .*(nested too deeply|not the summary of an evaluation)", said)


@pytest.mark.parametrize(("command", "target"), [("encode", "a.codes"), ("roundtrip", "a.wav")])
@pytest.mark.parametrize(("peak", "said"), [(2.0, ""), (-3.0, "; peaks at 3.0 times full scale")])
def test_sound_far_beyond_full_scale_is_told_of(run, command, target, peak, said):
    soundfile.write("loud.wav", np.linspace(0, peak, 24000), 24000, subtype="FLOAT")
    assert run(command, "loud.wav", target, "--model", run.model, "--quiet", "--json") == 0
    assert json.loads(run.out)["peak"] == abs(peak)
    assert said in run.err
    assert bool(said) == bool(run.err)


@pytest.mark.parametrize(("command", "target"), [("encode", "a.codes"), ("roundtrip", "a.wav")])
@pytest.mark.parametrize("gain", [-1, 1], ids=["opposite", "equal"])
def test_channels_that_cancel_each_other_are_told_of(run, speech, command, target, gain):
    samples = soundfile.read(speech)[0]
    write_sound("stereo.wav", np.stack([samples, gain * samples], axis=1))
    assert run(command, "stereo.wav", target, "--model", run.model, "--quiet", "--json") == 0
    assert json.loads(run.out)["channels_cancel"] == (gain == -1)
    assert ("; the channels cancel each other: encode one of them" in run.err) == (gain == -1)
    assert bool(run.err) == (gain == -1)


def test_sound_that_a_format_cuts_off_is_told_of_with_the_one_that_keeps_it(run):
    Path("odd.txt").write_text("410 " * 40)
    assert run("decode", "odd.txt", "cut.wav") == 0
    assert "beyond full scale, cut off; --format wav-float keeps them" in run.err
    assert run("decode", "odd.txt", "kept.wav", "--format", "wav-float") == 0
    assert "full scale" not in run.err
    assert np.abs(soundfile.read("cut.wav")[0]).max() <= 1 < np.abs(soundfile.read("kept.wav")[0]).max()


def test_info_tells_what_a_file_of_codes_holds(run, talk, speech):
    assert run("info", talk, "--json") == 0
    facts = json.loads(run.out)
    assert facts["seconds"] == pytest.approx(soundfile.info(speech).duration)
    assert facts["num_frames"] == 356
    assert facts["bitrate"] == pytest.approx(talk.stat().st_size * 8 / facts["seconds"] / 1000)
    assert facts["payload_bitrate"] == pytest.approx(356 * 12 / facts["seconds"] / 1000)
    assert (facts["model"], facts["damage"]) == ("tiny", None)
    assert run("info", talk) == 0
    assert "payload bitrate" in run.out


@pytest.mark.parametrize("format", ["codes", "npy", "json", "txt"])
def test_codes_are_known_without_a_suffix(run, speech, format):
    assert run("encode", speech, "plain", "--format", format, "--model", run.model) == 0
    assert run("info", "plain", "--json") == 0
    assert json.loads(run.out)["num_frames"] == 356
    assert run("decode", "plain", "again.wav", "--model", run.model) == 0


def test_sound_that_begins_with_a_digit_is_no_list_of_codes(run):
    write_sound("a.avr", np.zeros(100), format="AVR")
    assert Path("a.avr").read_bytes().startswith(b"2BIT")
    assert run("info", "a.avr", "--json") == 0
    assert json.loads(run.out)["format"] == "AVR PCM_16"


def test_info_tells_damage(run, talk):
    content = bytearray(talk.read_bytes())
    content[200] ^= 1
    talk.write_bytes(content)
    assert run("info", talk, "--json") == 2
    assert json.loads(run.out)["num_lost_frames"] == 256
    assert "1 of 1 file" in run.err


def test_info_tells_of_models_and_sounds(run, speech):
    assert run("info", run.model, speech, "stream", "--json") == 0
    model, sound, boxed = map(json.loads, run.out.splitlines())
    assert (model["bitrate"], model["sample_rate"]) == (0.9, 24000)
    assert model["fingerprint"] == codec.load(run.model).fingerprint
    assert (sound["channels"], sound["num_samples"]) == (1, soundfile.info(speech).frames)
    assert boxed["fingerprint"] == codec.load().fingerprint


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can be opened and not be read")
def test_info_names_a_file_that_cannot_be_read(run):
    assert run.refuses("info", "/proc/self/mem", left=set()) == "/proc/self/mem: Input/output error"


def test_models_lists_what_is_in_the_box(run, monkeypatch, model_directory):
    from codec.model import catalogue

    monkeypatch.setattr(catalogue, "boxed_models", lambda: {"tiny": model_directory})
    assert run("models") == 0
    assert "tiny" in run.out
    assert "0.9 kbit/s" in run.out


def test_boxed_model_is_found_by_fingerprint(run, talk, monkeypatch, model_directory, other_model_directory):
    from codec.model import catalogue

    monkeypatch.setattr(catalogue, "boxed_models", lambda: {"a": other_model_directory, "b": model_directory})
    assert run("decode", talk, "a.wav") == 0


# -- Python


def test_python_functions_do_what_the_commands_do(run, talk, speech):
    report = codec.encode_file(speech, "python.codes", model=run.model)
    assert Path("python.codes").read_bytes() == talk.read_bytes()
    seconds: list[float] = []
    decoded = codec.decode_file(
        "python.codes", "a.wav", model=codec.load(run.model), progress=lambda done, total: seconds.append(done)
    )
    assert report.num_samples == decoded.num_samples == soundfile.info("a.wav").frames
    assert seconds == sorted(seconds)
    header = codec.header_of(codec.load(run.model), Path(run.model).name)
    write_codes("said.codes", codec.read_codes("python.codes").codes, header=header, num_samples=report.num_samples)
    assert len(talk.read_bytes()) == len(Path("said.codes").read_bytes())
    codec.decode_file("said.codes", "said.wav", model=run.model)
    assert Path("said.wav").read_bytes() == Path("a.wav").read_bytes()
    with pytest.raises(ModelError, match="unknown model"):
        codec.encode_file(speech, "b.codes", model="nothing")
    with pytest.raises(FileExistsError, match="already exists"):
        codec.encode_file(speech, "python.codes", model=run.model)


# -- bad sound


BAD_SOUNDS = {
    "no audio": (lambda path: Path(path).write_text("hello " * 100), "is not a sound file"),
    "empty file": (lambda path: Path(path).write_bytes(b""), "is empty"),
    "zero samples": (lambda path: write_sound(path, np.zeros(0)), "has no samples"),
    "NaN": (lambda path: write_sound(path, np.array([0, np.nan, 0]), subtype="FLOAT"), "sample 1 .* is NaN"),
    "infinity": (lambda path: write_sound(path, np.array([0, np.inf]), subtype="FLOAT"), "sample 1 .* is inf"),
    "late NaN": (lambda path: write_sound(path, np.r_[np.zeros(600_000), np.nan], subtype="FLOAT"), "sample 600000"),
    "cut": (lambda path: _write_cut(path), "cut off"),
    "a directory": (lambda path: Path(path).mkdir(), "has no sound files"),
    "missing": (lambda path: None, "cannot be opened"),
}


def _write_cut(path: str) -> None:
    write_sound(path, np.zeros(600_000))
    Path(path).write_bytes(Path(path).read_bytes()[:700_000])


@pytest.mark.parametrize("kind", BAD_SOUNDS)
@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_bad_sound_is_refused(run, kind, command):
    make, message = BAD_SOUNDS[kind]
    make("bad.wav")
    output = "out.codes" if command == "encode" else "out.wav"
    sentence = run.refuses(command, "bad.wav", output, "--model", run.model, left=set(os.listdir()))
    assert sentence.startswith("bad.wav: ")
    assert re.search(message, sentence)


# -- bad outputs


def test_existing_output_is_refused_and_kept(run, speech):
    Path("out.codes").write_text("old")
    sentence = run.refuses("encode", speech, "out.codes", "--model", run.model, left={"out.codes"})
    assert "out.codes: already exists" in sentence
    assert Path("out.codes").read_text() == "old"


@pytest.mark.parametrize("output", ["/proc/out.codes", "/proc/self/out.codes"])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody may write")
def test_missing_write_permission_is_refused(run, speech, output):
    assert output in run.refuses("encode", speech, output, "--model", run.model, left=set())


def test_missing_output_folder_is_refused(run, speech):
    assert "there is no such folder" in run.refuses("encode", speech, "no/out.codes", "--model", run.model, left=set())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_refused(run, talk, speech):
    left = {"talk.codes"}
    assert "No space left" in run.refuses("encode", speech, "/dev/full", "--model", run.model, left=left)
    for format in ("wav", "flac", "ogg"):
        arguments = ("decode", talk, "/dev/full", "--model", run.model, "--format", format)
        assert "No space left" in run.refuses(*arguments, left=left)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU has not enough memory; use --device cpu"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
    ],
    ids=["GPU", "torch", "Python"],
)
def test_memory_that_does_not_suffice_is_one_sentence(error, sentence, capsys):
    def main() -> None:
        raise error

    assert cli.exit_code(main) == 2
    assert capsys.readouterr().err == f"codec: {sentence}\n"


def test_other_mistakes_of_the_program_are_not_hidden():
    def main() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cli.exit_code(main)


@pytest.mark.parametrize("text", ["-1", "nan", "inf"])
def test_numbers_of_recipes_are_finite_and_not_negative(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be a number from 0 on, got {text}"):
        cli.not_negative(text)
    assert cli.not_negative("0") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["info", "talk.codes"]], ids=["help", "info"])
def test_full_standard_output_is_named(run, talk, arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "codec", *arguments], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"codec: standard output: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [[], ["info", "missing"]], ids=["nothing", "missing"])
def test_full_standard_error_does_not_change_the_exit_code(arguments):
    with open("/dev/full", "wb") as full:
        assert subprocess.run([sys.executable, "-m", "codec", *arguments], stderr=full).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_standard_error_does_not_end_the_work_on_a_folder(tmp_path, speech, model_directory):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        shutil.copy(speech, tmp_path / "in" / f"{name}.flac")
    for command, made in (("encode", {"a.codes", "b.codes"}), ("tokenize", {"tokens.json", "00000.npy", "00000.tsv"})):
        with open("/dev/full", "wb") as full:
            arguments = [command, "in", command, "--model", str(model_directory)]
            assert (
                subprocess.run([sys.executable, "-m", "codec", *arguments], stderr=full, cwd=tmp_path).returncode == 0
            )
        assert set(os.listdir(tmp_path / command)) == made


def test_warnings_stay_warnings_where_they_are_to_be_errors(tmp_path, speech, model_directory):
    (tmp_path / "in").mkdir()
    shutil.copy(speech, tmp_path / "in" / "a.flac")
    (tmp_path / "in" / "b.m4a").touch()
    command = [sys.executable, "-W", "error::UserWarning", "-m", "codec", "encode", "in", "out"]
    done = subprocess.run([*command, "--model", str(model_directory)], stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith(b"codec: in: sound in .m4a cannot be read")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sample_rate", float("nan")), ("sample_rate", 10**400), ("sample_rate", 0), ("other", float("-inf"))],
    ids=["nan", "huge", "zero", "other"],
)
def test_model_with_impossible_numbers_is_not_described(run, setting, value):
    shutil.copytree(run.model, "model")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {setting: value}))
    for more in ([], ["--json"]):
        assert "model/config.json: " in run.refuses("info", "model", *more, left={"model"})


def test_sound_is_not_written_where_it_would_be_read_the_next_time(run, speech):
    Path("in").mkdir()
    shutil.copy(speech, "in/a.flac")
    for arguments in (["roundtrip", "in", "in/heard"], ["evaluate", "--data", "in", "--output", "in/scores"]):
        said = run.refuses(*arguments, "--model", run.model, left={"in"})
        assert said == (
            f"{arguments[-1]}: lies within in, so its sound would be taken for more of them the next time; "
            f"name a folder outside"
        )
    said = run.refuses("roundtrip", "in", "in", "--model", run.model, left={"in"})
    assert said.startswith("in: is the folder of the originals, so its sound would be taken for more of them")
    assert os.listdir("in") == ["a.flac"]
    Path("in/deep").mkdir()
    shutil.copy(speech, "in/deep/b.flac")
    assert run("roundtrip", "in/deep", "in", "--model", run.model) == 0  # what is read lies within what is written to
    assert {"a.flac", "b.wav", "deep"} == set(os.listdir("in"))


@pytest.mark.parametrize(
    ("part", "setting", "value", "message"),
    [
        ("encoder", "width", 10**9, "no model of these sizes can be made"),
        ("encoder", "kind", ["spectral"], "encoder.kind must be one of"),
        ("decoder", "sample_rate", 16000, "sample_rate and decoder.sample_rate must be equal"),
    ],
)
def test_model_with_a_hostile_configuration_is_refused(run, speech, part, setting, value, message):
    shutil.copytree(run.model, "model")
    config = json.loads(Path("model/config.json").read_text())
    config[part][setting] = value
    Path("model/config.json").write_text(json.dumps(config))
    sentence = run.refuses("encode", speech, "a.codes", "--model", "model", left={"model"})
    assert sentence.startswith(str(Path("model/config.json").resolve()))
    assert message in sentence


def test_linked_folders_are_followed_once(run, speech, tmp_path):
    Path("tree").mkdir()
    Path("elsewhere").mkdir()
    shutil.copy(speech, "elsewhere/b.flac")
    os.symlink("../elsewhere", "tree/link")
    os.symlink("..", "elsewhere/back")
    assert run("encode", "tree", "codes", "--model", run.model) == 0
    assert [path.as_posix() for path in sorted(Path("codes").rglob("*.codes"))] == ["codes/link/b.codes"]


def test_files_that_exist_are_left_when_asked(run, speech):
    Path("in").mkdir()
    for name in ("a.flac", "b.flac"):
        shutil.copy(speech, f"in/{name}")
    Path("out").mkdir()
    Path("out/a.codes").write_bytes(b"kept")
    assert run("encode", "in", "out", "--model", run.model, "--skip-existing") == 0
    assert Path("out/a.codes").read_bytes() == b"kept"
    assert "b.codes" in run.err
    assert "a.codes" not in run.err
    assert run("encode", "in/a.flac", "out/a.codes", "--model", run.model, "--skip-existing") == 0
    assert Path("out/a.codes").read_bytes() == b"kept"
    os.link("out/a.codes", "out/c.codes")  # equal files may share their place on purpose
    shutil.copy(speech, "in/c.flac")
    assert run("encode", "in", "out", "--model", run.model, "--skip-existing") == 0


def test_nothing_is_needed_where_all_files_exist(run, speech):
    Path("in").mkdir()
    shutil.copy(speech, "in/a.flac")
    assert run("encode", "in", "codes", "--model", run.model, "--quiet") == 0
    assert run("encode", "in", "codes", "--model", "moved/away/since", "--skip-existing") == 0


def test_skipping_and_overwriting_exclude_each_other(run, speech):
    arguments = ("encode", speech, "a.codes", "--skip-existing", "--overwrite")
    assert "exclude each other" in run.refuses(*arguments, left=set())
    Path("a.codes").write_bytes(b"kept")
    assert "there is no such file" in run.refuses("encode", "none.wav", "a.codes", "--skip-existing", left={"a.codes"})


def test_without_a_command_there_is_help(run):
    assert run() == 2
    assert run.err.startswith("Usage: codec ")


@pytest.mark.parametrize("arguments", [["encode", "", "a.codes"], ["info", ""], ["tokenize", "", "tokens"]])
def test_empty_name_is_refused(run, arguments):
    assert "it is empty" in run.refuses(*arguments, left=set())


@pytest.mark.parametrize("content", [None, b"no sound"], ids=["missing", "no sound"])
def test_what_is_said_of_odd_names_is_one_line_with_the_name_as_it_is(run, content):
    for name, shown in (("a  b.wav", "a  b.wav"), ("a\nb.wav", "a b.wav")):
        if content:
            Path(name).write_bytes(content)
        assert run.refuses("info", name, left=set(os.listdir())).startswith(f"{shown}: ")


def encode_in_a_shell(sound, codes, model, closed: str) -> subprocess.CompletedProcess[str]:
    """Encode with some of the standard streams closed, as a shell writes it."""
    words = [sys.executable, "-m", "codec", "encode", str(sound), codes, "--model", model]
    return subprocess.run(["sh", "-c", f"{shlex.join(words)} {closed}"], stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors by their numbers")
@pytest.mark.parametrize(("number", "name"), [(0, "standard input"), (1, "standard output")])
def test_closed_standard_streams_cannot_be_used(run, speech, number, name):
    sound, codes = ("-", "a.codes") if number == 0 else (speech, "-")
    used = encode_in_a_shell(sound, codes, run.model, f"{number}>&-")
    assert used.returncode == 2
    assert re.fullmatch(rf"codec: {name}: .*Bad file descriptor.*\n", used.stderr)


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors by their numbers")
def test_closed_standard_streams_harm_no_file(run, talk, speech):
    assert encode_in_a_shell(speech, "b.codes", run.model, "<&- >&- 2>&-").returncode == 0
    assert Path("b.codes").read_bytes() == talk.read_bytes()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"], ids=["in most languages", "in the language C"])
def test_names_that_are_no_text_are_printed(tmp_path, speech, errors):
    odd = shutil.copy(speech, tmp_path / os.fsdecode(b"caf\xe9.flac"))
    environment = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}  # Python's own choice
    process = spawn("info", odd, env=environment)
    printed, complaint = process.communicate()
    assert (process.returncode, complaint) == (0, b"")
    assert b"caf\\udce9.flac" in printed


@pytest.mark.parametrize("name", ["a.mp3", "a.codes"])
def test_sound_that_cannot_be_written_is_refused(run, talk, name):
    sentence = run.refuses("decode", talk, name, "--model", run.model, left={"talk.codes"})
    assert "can be written: wav, flac, ogg" in sentence


def test_codes_are_not_written_as_sound(run, speech):
    assert "can be written: codes" in run.refuses("encode", speech, "a.wav", "--model", run.model, left=set())


# -- bad codes


def test_every_kind_of_cut_and_flip_is_refused_and_recovered(run, talk):
    """Some twenty places of the real file; the format's own tests try them all."""
    content = talk.read_bytes()
    places = sorted({*range(0, len(content), 37), 1, 4, 29, len(content) - 1})
    for place in places:
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
            Path("bad.codes").write_bytes(damaged)
            left = {"talk.codes", "bad.codes"}
            sentence = run.refuses("decode", "bad.codes", "out.wav", "--model", run.model, left=left)
            assert sentence.startswith("bad.codes: ")


def test_recovery_keeps_the_rest_at_its_place_and_is_silent_in_the_hole(run, talk, speech):
    content = bytearray(talk.read_bytes())
    content[200] ^= 1  # in block 0 of two
    Path("bad.codes").write_bytes(content)
    assert run("decode", "bad.codes", "out.wav", "--model", run.model, "--recover", "--json") == 0
    report = json.loads(run.out)
    assert (report["num_lost_frames"], report["num_samples"]) == (256, soundfile.info(speech).frames)
    assert "lost in block 0" in run.err
    samples = soundfile.read("out.wav")[0]
    assert len(samples) == soundfile.info(speech).frames
    assert not samples[: 256 * 320].any()
    assert samples[256 * 320 :].any()


def test_recovered_speech_far_behind_a_hole_sounds_as_undamaged(run, speech):
    samples = np.tile(soundfile.read(speech)[0], 4)
    write_sound("long.wav", samples)
    assert run("encode", "long.wav", "long.codes", "--model", run.model) == 0
    assert run("decode", "long.codes", "good.wav", "--model", run.model) == 0
    content = bytearray(Path("long.codes").read_bytes())
    content[600] ^= 1  # in block 1 of six
    Path("long.codes").write_bytes(content)
    assert run("decode", "long.codes", "bad.wav", "--model", run.model, "--recover") == 0
    good, bad = soundfile.read("good.wav")[0], soundfile.read("bad.wav")[0]
    hole = slice(256 * 320, 512 * 320)
    assert not bad[hole].any()
    np.testing.assert_array_equal(bad[: hole.start - 320], good[: hole.start - 320])
    # The decoder's memory, some attention windows, is past. Samples differ all the same, since the phase of a voice's
    # pulses is the sum of all pitch before; what is heard, the level of every fifth of a second, does not.
    bad_level, good_level = (level_of(wav[hole.stop + 600 * 320 :]) for wav in (bad, good))
    np.testing.assert_allclose(bad_level, good_level, rtol=0.05)


def level_of(wav: np.ndarray, length: int = 4800) -> np.ndarray:
    """Root mean square of successive stretches."""
    return np.sqrt(np.square(wav[: len(wav) // length * length].reshape(-1, length)).mean(axis=1))


def test_codes_of_another_model_are_refused_unless_forced(run, talk, other_model_directory):
    arguments = ("decode", talk, "out.wav", "--model", other_model_directory)
    sentence = run.refuses(*arguments, left={"talk.codes"})
    assert codec.load(run.model).fingerprint in sentence
    assert codec.load(other_model_directory).fingerprint in sentence
    assert run(*arguments, "--force") == 0


@pytest.mark.parametrize("change", [{"sample_rate": 16000}, {"hop_length": 640}, {"codebook_size": 8192}], ids=str)
def test_codes_of_other_rates_than_the_models_are_refused_even_when_forced(run, change):
    fields = {"sample_rate": 24000, "hop_length": 320, "codebook_size": 4096, "fingerprint": "0" * 16}
    write_codes("a.codes", np.zeros(3, np.int64), header=Header(**fields | change))
    sentence = run.refuses("decode", "a.codes", "a.wav", "--model", run.model, "--force", left={"a.codes"})
    assert "sample rate, hop length and codebook size" in sentence
    assert "do not fit (24000, 320, 4096)" in sentence


def test_codes_of_a_model_that_is_not_in_the_box_are_refused(run, talk):
    assert "made by model 'tiny'" in run.refuses("decode", talk, "out.wav", left={"talk.codes"})


@pytest.mark.parametrize(("fingerprint", "version"), RETIRED.items())
def test_codes_of_a_model_that_has_left_the_box_name_the_version_that_had_it(run, fingerprint, version):
    write_codes("old.codes", np.zeros(3, np.int64), header=Header(24000, 320, 4096, fingerprint, "stream"))
    sentence = run.refuses("decode", "old.codes", "out.wav", left={"old.codes"})
    assert f"up to version {version}:" in sentence


def test_newer_version_is_refused(run, talk):
    content = bytearray(talk.read_bytes())
    content[4] = 2
    end = 26 + content[25]
    content[end : end + 4] = struct.pack(">I", zlib.crc32(content[:end]))
    Path("new.codes").write_bytes(content)
    sentence = run.refuses("decode", "new.codes", "out.wav", "--model", run.model, left={"talk.codes", "new.codes"})
    assert "version 2" in sentence


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1 2 4096", "code 4096 at frame 2 is not one of the model's 4096"),
        ("a.txt", b"1 " * 300 + b"4096", "code 4096 at frame 300 is not one of the model's 4096"),
        ("a.txt", b"1 2 x", "'x' is no code"),
        ("a.txt", b"1 -2", "'-2' is no code"),
        ("a.txt", b"1 4294967296", "beyond 32 bits"),
        ("a.txt", b" \n", "has no codes"),
        ("a.json", b'{"codes": [1, 2.5]}', "one list of integers, entry 1 is 2.5"),
        ("a.json", b'{"code": [1]}', "no entry 'codes'"),
        ("a.json", b"[1, 2", "is not JSON"),
        ("a.json", b"[true]", "one list of integers, entry 0 is true"),
        ("a.json", b'{"codes": 5}', "one list of integers, got 5"),
        ("a.json", b"[99999999999999999999]", "beyond 32 bits"),
        ("a.json", b"[-1]", "must not be negative"),
        ("a.npy", b"\x93NUMPY", "no whole .npy file"),
        ("a.codes", b"RIFF1234WAVE" * 9, "WAV"),
    ],
)
def test_bad_codes_are_refused(run, name, content, message):
    Path(name).write_bytes(content)
    assert message in run.refuses("decode", name, "out.wav", "--model", run.model, left={name})


@pytest.mark.parametrize("array", [np.zeros((2, 3), int), np.zeros(3), np.zeros(0, int), np.array([None])])
def test_bad_arrays_are_refused(run, array):
    np.save("a.npy", array)
    assert run.refuses("decode", "a.npy", "out.wav", "--model", run.model, left={"a.npy"}).startswith("a.npy: ")


# -- bad models


def test_unknown_model_lists_the_known(run, speech, monkeypatch, model_directory):
    from codec.model import catalogue

    monkeypatch.setattr(catalogue, "boxed_models", lambda: {"stream": model_directory, "stream-large": model_directory})
    sentence = run.refuses("encode", speech, "a.codes", "--model", "straem", left=set())
    assert "'straem'" in sentence
    assert "stream, stream-large" in sentence


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2], "model.safetensors"),
        ("model.safetensors", lambda data: b"", "model.safetensors"),
        ("model.safetensors", lambda data: b"\xff" * 8 + data[8:], "model.safetensors"),
        ("model.safetensors", lambda data: b"<html>not found</html>", "model.safetensors"),
        ("config.json", lambda data: data[:-10], "config.json"),
        ("config.json", lambda data: data.replace(b'"width": 16', b'"width": 32'), "does not fit its config.json"),
        ("config.json", lambda data: data.replace(b'"kind": "predictive"', b'"kind": "magic"'), "'magic'"),
        ("config.json", lambda data: data.replace(b'"num_blocks"', b'"num_blokcs"'), "num_blokcs"),
    ],
)
def test_broken_model_is_refused(run, speech, model_directory, name, change, message):
    shutil.copytree(model_directory, "broken")
    file = Path("broken") / name
    file.write_bytes(change(file.read_bytes()))
    assert message in run.refuses("encode", speech, "a.codes", "--model", "broken", left={"broken"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["encoder.blocks.0.expand.bias", "decoder.pitch.output.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(run, speech, name, value):
    shutil.copytree(run.model, "broken")
    tensors = safetensors.numpy.load_file("broken/model.safetensors")
    tensors[name][-1] = value
    safetensors.numpy.save_file(tensors, "broken/model.safetensors")
    said = run.refuses("roundtrip", speech, "a.wav", "--model", "broken", left={"broken"})
    assert re.search(rf"broken/model\.safetensors: {re.escape(name)} has values that are not finite", said)


def test_what_is_no_model_directory_is_refused(run, speech):
    Path("folder").mkdir()
    Path("file").write_text("")
    left = {"folder", "file"}
    assert "is not a model directory" in run.refuses("encode", speech, "a.codes", "--model", "folder", left=left)
    assert "is a file" in run.refuses("encode", speech, "a.codes", "--model", "file", left=left)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_missing_device_is_refused(run, speech, device):
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]:
        pytest.skip(f"{device} is there")
    arguments = ("encode", speech, "a.codes", "--model", run.model, "--device", device)
    assert "not available" in run.refuses(*arguments, left=set())


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html></html>", b"", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_checkpoint_is_not_imported(run, content):
    Path("model.ckpt").write_bytes(content)
    sentence = run.refuses("import", "model.ckpt", "model", "--from", "simvq", left={"model.ckpt"})
    assert sentence.startswith("model.ckpt: ")


def test_model_without_a_published_counterpart_is_not_exported(run):
    run.refuses("export", run.model, "out.ckpt", left=set())


# -- the command line itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode"], "Missing argument 'INPUT'; see codec encode --help"),
        (["encode", "a", "b", "--modle", "x"], "No such option"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["decode", "a", "b", "--device", "abacus"], "abacus"),
        (["encode", "-", "-", "--json"], "cannot both have standard output"),
    ],
)
def test_misuse_is_one_sentence(run, arguments, message):
    assert message in run.refuses(*arguments, left=set())


@pytest.mark.parametrize(
    ("number", "code", "command", "output"),
    [
        (signal.SIGINT, 130, "encode", "out.codes"),
        (signal.SIGTERM, 143, "roundtrip", "out.wav"),
        (signal.SIGHUP, 129, "encode", "out.npy"),
    ],
)
def test_interruption_leaves_nothing(run, tmp_path, number, code, command, output):
    """The sound never ends, so the command is surely at work when the signal comes."""
    (tmp_path / "temporary").mkdir()
    process = spawn(
        command, "-", output, "--model", run.model, stdin=subprocess.PIPE, env=os.environ | {"TMPDIR": "temporary"}
    )
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(24000 * 5), 24000, format="WAV", subtype="PCM_16")
    process.stdin.write(sound.getvalue()[:40] + b"\xff\xff\xff\xff" + sound.getvalue()[44:])
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not [path for path in tmp_path.rglob("*") if path.suffix == ".part"] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_fingerprint_does_not_change_with_settings_that_are_added_later(run, model_directory):
    """A configuration that does not yet know a setting is read with its default, and keeps its own fingerprint."""
    shutil.copytree(model_directory, "older")
    config = json.loads(Path("older/config.json").read_text())
    del config["decoder"]["attention_window"]
    Path("older/config.json").write_text(json.dumps(config))
    assert run("info", "older", "--json") == 0
    assert json.loads(run.out)["fingerprint"] == codec.load("older").fingerprint
