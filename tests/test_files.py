"""Files through models that look at whole clips: exact up to a documented length, in pieces and windows beyond it."""

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec import files
from codec.audio import SoundReader
from codec.bitstream import read_codes, write_codes
from codec.cli import run
from codec.errors import CodecError, ConfigError, FormatError, ModelError
from codec.model.codec import Codec, CodecConfig
from codec.model.predictive import PredictiveSimVQConfig
from codec.model.quantizer import VQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.model.weights import fingerprint, load, save
from codec.output import open_output
from codec.streaming import StreamDecoder, WindowDecoder
from codec.tokenization.shards import Tokens


@pytest.fixture(scope="module")
def codec() -> Codec:
    """Tiny and random, of the reference family."""
    torch.manual_seed(0)
    encoder = SEANetEncoderConfig(latent_dim=8, num_filters=4, is_causal=False)
    decoder = VocosDecoderConfig(latent_dim=8, width=16, inner_width=24, num_blocks=1, num_groups=4)
    codec = Codec(CodecConfig(24000, encoder, VQConfig(codebook_size=64, codebook_dim=8), decoder)).eval()
    for parameter in codec.decoder.parameters():  # loud enough to be measured in 16 bits
        torch.nn.init.normal_(parameter, std=0.3)
    codec.encoder.first.parametrizations.weight.original0.data.mul_(10)
    codec.quantizer.codebook.data.copy_(codec.encoder(torch.randn(1, 1, 64 * 320) * 0.3)[0].T)
    return codec


@pytest.fixture(scope="module")
def wav(speech: Path) -> np.ndarray:
    """40 s, not a whole number of frames."""
    samples, _ = soundfile.read(speech, dtype="float32")
    return np.tile(samples, 10)[: 40 * 24000 + 77]


@pytest.fixture
def sound(tmp_path: Path, wav: np.ndarray) -> Path:
    soundfile.write(tmp_path / "talk.wav", wav, 24000, subtype="FLOAT")
    return tmp_path / "talk.wav"


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_short_files_give_exactly_the_codes_and_the_sound_of_one_pass(codec, wav, sound, tmp_path):
    files.encode_file(sound, tmp_path / "talk.codes", model=codec)
    files.decode_file(tmp_path / "talk.codes", tmp_path / "again.wav", model=codec, format="wav-float")
    codes = codec.encode(torch.from_numpy(wav)[None, None])
    assert len(codes.unique()) > 20, "a test of few codes tests little"
    assert read_codes(tmp_path / "talk.codes").codes.tolist() == codes[0].tolist()
    assert np.array_equal(read(tmp_path / "again.wav"), codec.decode(codes)[0, 0, : len(wav)].numpy())


def test_long_files_give_the_codes_of_one_pass_and_the_sound_of_windows(codec, wav, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_WHOLE_SECONDS", 3.0)
    encoded = files.encode_file(sound, tmp_path / "talk.codes", model=codec)
    decoded = files.decode_file(tmp_path / "talk.codes", tmp_path / "again.wav", model=codec, format="wav-float")
    codes = codec.encode(torch.from_numpy(wav)[None, None])
    assert read_codes(tmp_path / "talk.codes").codes.tolist() == codes[0].tolist()
    decoder = WindowDecoder(codec)
    decoder.push(codes[0, :99])
    decoder.reset()
    windows = torch.cat([decoder.push(codes[0]), decoder.flush()])[: len(wav)].numpy()
    assert np.array_equal(read(tmp_path / "again.wav"), windows)
    assert not np.array_equal(windows, codec.decode(codes)[0, 0, : len(wav)].numpy())
    assert encoded.num_samples == decoded.num_samples == len(wav)
    assert encoded.seconds == decoded.seconds == len(wav) / 24000


@pytest.mark.parametrize("name", ["a.codes", "a.json", "a.txt"])
def test_the_length_that_progress_is_told_is_about_right_or_not_known(codec, sound, tmp_path, name):
    files.encode_file(sound, tmp_path / name, model=codec)
    told: list[tuple[float, float | None]] = []
    files.decode_file(tmp_path / name, tmp_path / "a.wav", model=codec, progress=lambda *of_all: told.append(of_all))
    done, total = told[-1]
    assert total == (pytest.approx(done, rel=0.1) if name == "a.codes" else None)


@pytest.mark.parametrize("longest", [3.0, 300.0], ids=["windows", "one pass"])
def test_holes_are_silent_at_their_place(codec, wav, sound, tmp_path, monkeypatch, longest):
    monkeypatch.setattr(files, "MAX_WHOLE_SECONDS", longest)
    files.encode_file(sound, tmp_path / "talk.codes", model=codec)
    data = bytearray((tmp_path / "talk.codes").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "talk.codes").write_bytes(data)
    with pytest.raises(FormatError, match="block"):
        files.decode_file(tmp_path / "talk.codes", tmp_path / "again.wav", model=codec)
    assert not (tmp_path / "again.wav").exists()
    report = files.decode_file(
        tmp_path / "talk.codes", tmp_path / "again.wav", model=codec, format="wav-float", recover=True
    )
    silent = read(tmp_path / "again.wav") == 0
    start, length = int(silent.argmax()), int(silent.sum())
    assert len(silent) == len(wav)
    assert report.num_lost_frames == 256
    assert abs(start / len(silent) - 0.5) < 0.15
    assert silent[start : start + length].mean() > 0.99
    assert abs(length - 256 * 320) < 20


def test_sound_fades_before_a_hole_and_behind_it(codec, wav, sound, tmp_path):
    files.encode_file(sound, tmp_path / "talk.codes", model=codec)
    codes = torch.from_numpy(read_codes(tmp_path / "talk.codes").codes)[None]
    data = bytearray((tmp_path / "talk.codes").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "talk.codes").write_bytes(data)
    files.decode_file(tmp_path / "talk.codes", tmp_path / "a.wav", model=codec, format="wav-float", recover=True)
    again = read(tmp_path / "a.wav")
    hole = int((again.reshape(-1)[: len(again) // 320 * 320].reshape(-1, 320) == 0).all(axis=1).argmax())
    before, after = (codec.decode(part)[0, 0].numpy() for part in (codes[:, :hole], codes[:, hole + 256 :]))
    before[-320:] *= np.linspace(1, 0, 320, dtype=np.float32)
    after[:320] *= np.linspace(0, 1, 320, dtype=np.float32)
    expected = np.concatenate([before, np.zeros(256 * 320, np.float32), after])[: len(wav)]
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_items_of_a_padded_batch_are_those_of_single_files(codec, wav):
    """Where networks look at whole clips, padding would be heard."""
    wavs, lengths = torch.from_numpy(wav[:64000]).view(2, 1, -1), torch.tensor([32000, 30000])
    codes = codec.encode(wavs, lengths)
    sound = codec.decode(codes, lengths)
    for item, length in enumerate(lengths):
        own = codec.encode(wavs[item : item + 1, :, :length])
        assert torch.equal(codes[item, : own.shape[1]], own[0])
        torch.testing.assert_close(sound[item, :, :length], codec.decode(own)[0, :, :length])


def test_windows_do_not_depend_on_the_pieces_of_codes_that_look_back(codec):
    """A predictive quantizer's code says something of the frames after it, in whatever piece they come."""
    config = codec.config
    quantizer = PredictiveSimVQConfig(codebook_size=64, codebook_dim=8)
    torch.manual_seed(0)
    model = Codec(CodecConfig(24000, config.encoder, quantizer, config.decoder)).eval()
    torch.nn.init.normal_(model.quantizer.taps, std=0.2)
    codes = torch.randint(64, (400,))

    def decoded(size: int) -> torch.Tensor:
        decoder = WindowDecoder(model, window=100, overlap=20)
        return torch.cat([*map(decoder.push, codes.split(size)), decoder.flush()])

    whole = decoded(400)
    torch.testing.assert_close(decoded(7), whole)
    torch.testing.assert_close(decoded(150), whole)
    decoder = WindowDecoder(model, window=100, overlap=20)
    first = decoder.push(codes[:150])
    other = copy.deepcopy(decoder)
    decoder.push(codes[:90])
    torch.testing.assert_close(torch.cat([first, other.push(codes[150:]), other.flush()]), whole)
    assert other.codec is model
    with pytest.raises(ModelError, match="looks at whole clips cannot go on elsewhere"):
        decoder.state_dict()


def test_what_was_changed_has_another_name(codec, sound, tmp_path, model_directory):
    model = load(model_directory)
    made_by = model.fingerprint
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), load(model_directory).to("cpu")):
        assert same.fingerprint == made_by
    assert load(model_directory).half().float().fingerprint == ""
    replaced = load(model_directory)
    replaced.load_state_dict(load(model_directory).state_dict(), assign=True)
    assert replaced.fingerprint == ""
    with torch.no_grad():
        model.quantizer.projection.weight.mul_(1.01)
    assert model.fingerprint == copy.deepcopy(model).fingerprint == ""
    files.encode_file(sound, tmp_path / "a.codes", model=model)
    assert read_codes(tmp_path / "a.codes").header.fingerprint not in ("", made_by)
    with pytest.raises(ModelError, match="made by model"):
        files.decode_file(tmp_path / "a.codes", tmp_path / "a.wav", model=model_directory)


def test_a_copy_of_a_compiled_model_runs_its_own_weights(model_directory):
    model = load(model_directory)
    model.compile(backend="eager")
    copied, wav = copy.deepcopy(model), torch.randn(1, 1, 640)
    assert copied.fingerprint == pickle.loads(pickle.dumps(model)).fingerprint == model.fingerprint
    with torch.no_grad():
        for parameter in copied.decoder.parameters():
            parameter.zero_()
        assert torch.equal(copied(wav).wav, copied.forward(wav).wav)
        assert not torch.equal(copied(wav).wav, model.forward(wav).wav)


def test_a_model_that_was_sent_to_another_process_has_its_name_still(model_directory):
    model = load(model_directory)
    made_by = model.fingerprint
    wav = model.decode(torch.tensor([[1, 2, 3]]))  # and so keeps derived weights, which stay behind
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    queue.put(model)  # moves its weights to shared memory
    received = queue.get()
    assert model.fingerprint == received.fingerprint == made_by
    torch.testing.assert_close(received.decode(torch.tensor([[1, 2, 3]])), wav)
    with torch.no_grad():
        model.quantizer.projection.weight.mul_(1.01)
    assert model.fingerprint == ""


def test_a_model_that_is_replaced_in_its_place_is_loaded_anew(tmp_path, model_directory, other_model_directory):
    for directory in (model_directory, other_model_directory):
        shutil.copytree(directory, tmp_path / "model", dirs_exist_ok=True)
        model, _ = files.load_model(tmp_path / "model", "cpu")
        assert model.fingerprint == load(directory).fingerprint


def test_a_model_in_training_mode_decodes_as_it_does_outside(model_directory):
    """It may be part of a larger one that is trained."""
    model = load(model_directory)
    codes = torch.randint(model.codebook_size, (1, 50), generator=torch.Generator().manual_seed(0))
    wav = model.decode(codes)
    torch.testing.assert_close(model.train().decode(codes), wav, atol=1e-6, rtol=1e-4)
    assert torch.equal(model.encode(wav), model.eval().encode(wav))


def test_a_loaded_model_is_saved_as_it_was(model_directory, tmp_path):
    model = load(model_directory)
    save(model, tmp_path / "float32", dtype=torch.float32)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half())
    save(model, tmp_path / "first")  # in 16 bit, since nothing is lost
    save(load(tmp_path / "first"), tmp_path / "second")
    assert load(tmp_path / "first").fingerprint == load(tmp_path / "second").fingerprint == fingerprint(model)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "first")]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_recording_that_can_no_longer_be_read_is_named_and_not_what_is_made_of_it(sound, tmp_path):
    """Its descriptor comes to be one of a folder, which stands for a disk that fails."""

    with SoundReader(sound) as reader, pytest.raises(OSError, match=r"talk\.wav") as caught:
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, reader._bytes.fileno())
        os.close(folder)
        with open_output(tmp_path / "talk.codes"):
            list(reader)
    assert caught.value.filename == str(sound)


@pytest.mark.parametrize("encode", [True, False])
def test_a_recording_is_not_replaced_by_what_is_made_of_it(codec, sound, tmp_path, encode):
    path = sound.rename(tmp_path / "talk.json") if encode else sound
    before = path.read_bytes()
    call = files.encode_file if encode else files.roundtrip_file
    with pytest.raises(FileExistsError, match="would be replaced by what is made of it"):
        call(path, path, model=codec, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("call", "name", "meant"),
    [(files.encode_file, "a.txt", "sound file"), (files.decode_file, "a.wav", "file of codes")],
)
def test_what_is_no_path_is_refused_where_something_would_be_replaced_too(codec, tmp_path, call, name, meant):
    (tmp_path / name).write_text("old")
    with pytest.raises(CodecError, match=f"path of a {meant} is meant, got list"):
        call([1, 2], tmp_path / name, model=codec, overwrite=True)


@pytest.mark.parametrize("name", ["a\0", "a\ud800"], ids=ascii)
def test_a_name_that_no_file_can_have_is_refused_whatever_it_is_for(codec, sound, tmp_path, name):
    path = f"{tmp_path}/{name}"
    header = files.header_of(codec)
    for call in (
        lambda: files.encode_file(path, tmp_path / "a.codes", model=codec),
        lambda: files.encode_file(sound, path, model=codec),
        lambda: files.decode_file(path, tmp_path / "a.wav", model=codec),
        lambda: files.decode_file(tmp_path / "a.codes", path, model=codec),
        lambda: read_codes(path),
        lambda: write_codes(path, np.zeros(1, int), header=header),
        lambda: save(codec, path),
        lambda: Tokens(path),
    ):
        with pytest.raises(CodecError, match=r"no file can have this name") as caught:
            call()
        assert str(caught.value).isprintable()


def test_codes_of_live_sound_leave_before_it_ends(codec, wav, tmp_path):
    """Of models that look at whole clips too, since their encoders do not."""
    save(codec, tmp_path / "model")
    command = [sys.executable, "-m", "codec", "encode", "-", "-", "--model", str(tmp_path / "model"), "-q"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    soundfile.write(tmp_path / "pipe.wav", wav, 24000)
    data = (tmp_path / "pipe.wav").read_bytes()
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    begin = process.stdout.read(500)
    assert len(begin) == 500
    process.stdin.write(data[len(data) // 2 :])
    process.stdin.close()
    (tmp_path / "live.codes").write_bytes(begin + process.stdout.read())
    process.stdout.close()
    assert process.wait() == 0
    assert len(read_codes(tmp_path / "live.codes").codes) == codec.num_frames(len(wav))


def test_bf16_moves_few_codes_and_little_sound(codec, sound, tmp_path, monkeypatch):
    save(codec, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for precision in files.PRECISIONS:
        options = ["--model", "model", "--precision", precision, "--quiet"]
        assert run(["encode", "talk.wav", f"{precision}.codes", *options]) == 0
        assert run(["decode", "float32.codes", f"{precision}.wav", "--format", "wav-float", *options]) == 0
    codes = [read_codes(tmp_path / f"{precision}.codes").codes for precision in files.PRECISIONS]
    assert 0 < (codes[0] != codes[1]).mean() < 0.1
    exact, rounded = (read(tmp_path / f"{precision}.wav") for precision in files.PRECISIONS)
    assert 0 < np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16):  # of a caller, who says what is wanted all the same
        files.encode_file(sound, tmp_path / "again.codes", model=codec)
    assert np.array_equal(read_codes(tmp_path / "again.codes").codes, codes[0])
    with pytest.raises(ConfigError, match="precision must be float32 or bf16, got 'fp8'"):
        files.encode_file(sound, tmp_path / "a.codes", model=codec, precision="fp8")
    assert not (tmp_path / "a.codes").exists()


def test_decoders_are_told_apart(codec, model_directory):
    with pytest.raises(ModelError, match=r"use Codec\.decode, or WindowDecoder"):
        StreamDecoder(codec)
    with pytest.raises(ModelError, match="streams exactly; use StreamDecoder"):
        WindowDecoder(load(model_directory))
    with pytest.raises(ModelError, match=r"shape \(n,\)"):
        WindowDecoder(codec).push(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"must be integers of at least 1 and 8, got 16\.5 and 8"):
        WindowDecoder(codec, 16.5, 8)
    with pytest.raises(ConfigError, match=r"must be integers of at least 1 and 8, got 16\.5 and 8"):
        WindowDecoder(codec, torch.tensor(16.5).numpy(), 8)


def test_what_is_no_model_as_it_was_loaded_is_named(codec, tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(ModelError, match=r"a model as codec\.load gives it, .* is meant, got Sequential"):
        files.decode_file(tmp_path / "a.txt", tmp_path / "a.wav", model=torch.nn.Sequential(codec))
    with pytest.raises(ModelError, match="is meant, got NoneType"):
        files.header_of(None)


def test_a_model_of_which_either_file_has_changed_is_loaded_again(model_directory, tmp_path):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    before, _ = files.load_model(folder, "cpu")
    assert files.load_model(folder, "cpu")[0] is before
    for name in ("config.json", "model.safetensors"):
        os.utime(folder / name, ns=(0, 0))
        after, _ = files.load_model(folder, "cpu")
        assert after is not before
        before = after
