"""The model in the box: it is there, small enough, found by its codes, and speech comes through it."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pystoi import stoi

import codec
from codec.model import catalogue


@pytest.fixture(scope="module")
def model() -> codec.Codec:
    return codec.load()


def test_the_box_is_small_enough_for_the_wheel():
    weights = catalogue.boxed_models()["stream"] / catalogue.WEIGHTS_NAME
    assert weights.stat().st_size <= 24 * 2**20


def test_its_rates_are_those_it_is_sold_with(model: codec.Codec):
    assert (model.sample_rate, model.frame_rate, model.codebook_size, model.bitrate) == (24000, 75, 4096, 0.9)
    assert model.is_streamable


def test_its_card_names_its_fingerprint(model: codec.Codec):
    card = (catalogue.boxed_models()["stream"] / catalogue.CARD_NAME).read_text()
    assert model.fingerprint in card


def test_a_training_loop_of_ones_own_trains_every_part(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The one in README, on two seconds of speech."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (loop,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "optimizer.step()" in block)
    monkeypatch.chdir(tmp_path)
    wav = torch.from_numpy(soundfile.read(speech, dtype="float32")[0][12000:60000]).view(2, 1, -1)
    exec(loop, {"codec": codec, "torch": torch, "batches": [wav, wav]})
    before, after = (dict(model.named_parameters()) for model in (codec.load(), codec.load("models/mine")))
    assert [name for name, tensor in before.items() if torch.equal(tensor, after[name])] == []


def test_speech_comes_through_intelligibly_and_exactly_as_long(speech: Path, tmp_path: Path):
    codec.encode_file(speech, tmp_path / "speech.codes")
    codec.decode_file(tmp_path / "speech.codes", tmp_path / "again.wav")
    reference, rate = soundfile.read(speech)
    estimate, again_rate = soundfile.read(tmp_path / "again.wav")
    assert (rate, len(reference)) == (again_rate, len(estimate))
    assert stoi(reference, estimate, rate) > 0.7  # 0.7 is where most words are understood


def test_speech_behind_a_hole_is_at_most_6_db_louder_than_undamaged(model: codec.Codec, speech: Path, tmp_path: Path):
    wav, rate = soundfile.read(speech)
    soundfile.write(tmp_path / "talk.wav", np.tile(wav, 7), rate)
    codec.encode_file(tmp_path / "talk.wav", tmp_path / "talk.codes", model=model)
    content = bytearray((tmp_path / "talk.codes").read_bytes())
    for place in range(200, len(content), 2 * (5 + 384)):  # in blocks 0, 2, 4, 6 and 8 of ten
        content[place] ^= 1
    (tmp_path / "damaged.codes").write_bytes(content)
    options = {"model": model, "format": "wav-float"}
    codec.decode_file(tmp_path / "talk.codes", tmp_path / "good.wav", **options)
    report = codec.decode_file(tmp_path / "damaged.codes", tmp_path / "bad.wav", recover=True, **options)
    assert report.num_lost_frames == 5 * 256
    good, bad = (np.abs(soundfile.read(tmp_path / name)[0]) for name in ("good.wav", "bad.wav"))
    for end in (block * 256 * 320 for block in (1, 3, 5, 7, 9)):
        behind = slice(end, end + 16 * 320)
        assert 0 < bad[behind].max() <= 2 * good[behind].max()


@pytest.mark.parametrize("size", [1234, 24000])
def test_pieces_give_the_codes_of_the_whole_file_or_others_where_two_are_equally_near(
    model: codec.Codec, speech: Path, size: int
):
    wav = torch.from_numpy(soundfile.read(speech, dtype="float32")[0])
    encoder = codec.StreamEncoder(model)
    pieces = torch.cat([encoder.push(piece) for piece in wav.split(size)] + [encoder.flush()])
    whole = model.encode(wav[None, None])[0]
    # Float32 rounds otherwise in pieces of a few frames. Where that decides, codes go apart, but none are better.
    latent = model.encoder(wav[None, None])
    errors = [(model.quantizer.lookup(codes[None]) - latent).square().sum().item() for codes in (pieces, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_silence_stays_quiet(model: codec.Codec):
    silence = torch.zeros(1, 1, 48000)
    assert model.decode(model.encode(silence)).square().mean().sqrt() < 10 ** (-50 / 20)


def test_an_offset_that_ends_with_the_recording_is_not_heard(model: codec.Codec, speech: Path):
    """As cheap sound cards add one; it ends in silence, where a step would click."""
    wav = torch.from_numpy(np.pad(soundfile.read(speech, dtype="float32")[0], (0, 12000)))
    encoder = codec.StreamEncoder(model)
    streamed = torch.cat([encoder.push(wav + 0.01), encoder.flush()])
    batch = model.encode(torch.stack([wav + 0.01, torch.zeros_like(wav)])[:, None], torch.tensor([len(wav) - 99, 320]))
    for codes in (streamed, batch[0]):
        assert model.decode(codes[None])[..., -320:].abs().max() < 10 ** (-70 / 20)
