"""Sound files are read in blocks with exact lengths, written whole or not at all, and refused in one sentence."""

import io
import itertools
import os
import re
import resource
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec import audio
from codec.errors import AudioError, CodecWarning

RATES = [1, 8000, 11025, 16000, 22050, 24000, 44100, 48000, 47999, 96000, 192000, 768000]


def tone(num_samples: int, sample_rate: int, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / sample_rate)).astype(np.float32)


def write_wav(path: Path, wav: np.ndarray, sample_rate: int, subtype: str = "FLOAT") -> Path:
    """`wav` is (T,) or (T, C)."""
    soundfile.write(path, wav, sample_rate, subtype=subtype)
    return path


def sound_file(wav: np.ndarray, sample_rate: int, format: str, **options: str) -> bytes:
    """The bytes of one."""
    data = io.BytesIO()
    soundfile.write(data, wav, sample_rate, format=format, **options)
    return data.getvalue()


# -- lengths and rates


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("num_samples", [1, 2, 7, 333, 9973])
def test_total_length_is_the_ceiling_whatever_the_rate(tmp_path, sample_rate, num_samples):
    if sample_rate == 1 and num_samples > 7:
        pytest.skip("hours of audio")
    path = write_wav(tmp_path / "a.wav", np.zeros(num_samples, np.float32), sample_rate)
    with audio.SoundReader(path, 24000) as sound:
        assert sum(map(len, sound)) == sound.num_samples == -(-num_samples * 24000 // sample_rate)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 192000])
def test_resampled_tone_is_the_tone_at_the_new_rate(sample_rate):
    """Phase and gain are exact: output sample k lies at k / 24000 s. The edges see the tone's sudden start."""
    seconds = 0.5
    resampled = audio.resample(tone(int(sample_rate * seconds), sample_rate), sample_rate, 24000)
    expected = tone(len(resampled), 24000)
    assert np.abs(resampled - expected)[2000:-2000].max() < 1e-4


def test_resampler_is_ready_for_another_signal_once_one_has_ended():
    for rates in ((48000, 24000), (24000, 24000)):
        resampler, wav = audio.Resampler(*rates), tone(4801, rates[0])
        for _ in range(2):
            again = np.concatenate(
                [resampler.push(wav[:100]), resampler.push(wav[100:].astype(np.float64)), resampler.flush()]
            )
            assert again.dtype == np.float32
            np.testing.assert_array_equal(again, audio.resample(wav, *rates))
            assert len(resampler.flush()) == 0


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("source_rate", [24000, 48000])
def test_what_is_not_mono_is_not_resampled(source_rate, shape):
    with pytest.raises(AudioError, match=re.escape(f"samples to resample must be (T,), got {shape}")):
        audio.resample(np.zeros(shape, np.float32), source_rate, 24000)


def test_tone_above_the_new_nyquist_frequency_vanishes():
    resampled = audio.resample(tone(48000, 48000, 15000.0), 48000, 24000)
    assert np.abs(resampled[2000:-2000]).max() < 1e-5


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("length", [1023, 1024, 3000])  # libsndfile takes up to 1023 bytes
def test_file_of_a_long_path_is_read(tmp_path, suffix, length):
    folder = tmp_path
    while length - len(os.fsencode(folder)) > 200:
        folder = folder / ("x" * 100)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("y" * (length - len(os.fsencode(folder)) - 1 - len(suffix)) + suffix)
    with open(path, "wb") as stream:
        soundfile.write(stream, tone(48000, 24000), 24000, format=suffix[1:].upper())
    assert len(os.fsencode(path)) == length
    assert audio.read(path)[0].shape == (1, 48000)


def test_block_size_does_not_change_samples(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 30011).astype(np.float32), 44100)
    outputs = []
    for block_seconds in (10.0, 0.013):
        with audio.SoundReader(path, 24000, block_seconds) as sound:
            blocks = list(sound)
        assert all(map(len, blocks))
        outputs.append(np.concatenate(blocks))
    np.testing.assert_array_equal(*outputs)


def test_what_is_read_at_once_is_bounded_however_many_channels_there_are(tmp_path):
    """64 of them: ten seconds would be 117 MiB."""
    path = write_wav(tmp_path / "a.wav", np.zeros((48000 * 3 // 2, 64), np.float32), 48000, "PCM_U8")
    with audio.SoundReader(path) as sound:
        sizes = [block.size for block in sound.channel_blocks()]
    assert sum(sizes) == 64 * 72000
    assert max(sizes) * 4 <= 16 * 2**20


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_mono_is_the_mean_of_the_channels(tmp_path, channels):
    wav = np.random.default_rng(0).uniform(-1, 1, (5000, channels)).astype(np.float32)
    mono, sample_rate = audio.read(write_wav(tmp_path / "a.wav", wav, 24000))
    assert (mono.shape, sample_rate) == ((1, 5000), 24000)
    np.testing.assert_allclose(mono[0], wav.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("gains", "cancel"),
    [
        ([1], False),
        ([1, 1], False),
        ([1, 0], False),
        ([0, 0], False),
        ([1, -1], True),
        ([1, -0.5, -0.5], True),
        ([1, -0.82], True),  # the mean is softer by 10 lg((1 - g)^2 / (2 + 2 g^2)), 20.2 dB
        ([1, -0.81], False),  # 19.6 dB
    ],
)
def test_channels_that_cancel_each_other_are_noticed(tmp_path, gains, cancel):
    wav = np.random.default_rng(0).uniform(-1, 1, (5000, 1)) * gains
    with audio.SoundReader(write_wav(tmp_path / "a.wav", wav, 8000), 24000, block_seconds=0.1) as sound:
        assert len(list(sound)) > 1
        assert sound.channels_cancel == cancel


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"])
def test_every_named_format_is_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    soundfile.write(path, tone(48000, 24000), 24000, **options)
    wav, _ = audio.read(path, 24000)
    assert wav.shape == (1, 48000)
    assert np.abs(np.abs(wav).max() - 0.5) < 0.05  # lossy formats ring a little


def test_reading_costs_no_memory_by_length(tmp_path):
    """A sparse wav of 20 minutes in 16 kHz stereo comes in blocks of at most ten seconds."""
    frames = 1200 * 16000
    path = tmp_path / "long.wav"
    layout = struct.pack("<HHIIHH", 1, 2, 16000, 64000, 4, 16)
    header = b"RIFF" + struct.pack("<I", 36 + frames * 4) + b"WAVEfmt " + struct.pack("<I", 16) + layout
    header += b"data" + struct.pack("<I", frames * 4)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + frames * 4)
    with audio.SoundReader(path, 24000) as sound:
        lengths = [len(block) for block in sound]
    assert max(lengths) <= 10 * 24000 + 4096  # the filter hands out what it held back
    assert sum(lengths) == 1200 * 24000


# -- pipes


@pytest.mark.parametrize("promised", ["true", "unknown"])
def test_wav_is_followed_through_a_pipe(promised):
    content = bytearray(sound_file(tone(24000, 24000), 24000, "WAV"))
    if promised == "unknown":
        content[40:44] = b"\xff\xff\xff\xff"
    wav, _ = _read_through_pipe(bytes(content))
    assert wav.shape == (1, 24000)


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_wav_in_a_pipe_is_live_in_either_byte_order_and_however_slowly_it_begins(monkeypatch, endian):
    data = sound_file(tone(1000, 24000), 24000, "WAV", endian=endian)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, 1))
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as sink:
        sink.write(data)  # less than a pipe holds
    with os.fdopen(reading), audio.SoundReader(f"/dev/fd/{reading}") as sound:
        assert sound.is_live
        np.testing.assert_allclose(np.concatenate(list(sound)), tone(1000, 24000), atol=2**-15)


@pytest.mark.parametrize("format", ["FLAC", "OGG", "AIFF", "MP3"])
def test_other_formats_come_through_a_pipe(format):
    wav, _ = _read_through_pipe(sound_file(tone(24000, 24000), 24000, format))
    assert wav.shape == (1, 24000)


@pytest.mark.parametrize("loud", ["first", "last"])
def test_mp3_that_does_not_say_its_length_is_read_to_its_end(tmp_path, loud):
    """libsndfile guesses the length from the first bit rate, and of a loud start stops in the middle."""
    wav = np.random.default_rng(0).standard_normal(6 * 24000) * 0.1
    (wav[72000:] if loud == "first" else wav[:72000])[:] = 0
    content = sound_file(wav, 24000, "MP3", bitrate_mode="VARIABLE")
    (tmp_path / "a.mp3").write_bytes(content[content.index(b"\xff\xf3", content.index(b"LAME")) :])
    assert abs(soundfile.info(tmp_path / "a.mp3").frames - len(wav)) > 24000
    assert audio.info(tmp_path / "a.mp3").num_samples is None
    for read, _ in (audio.read(tmp_path / "a.mp3"), _read_through_pipe((tmp_path / "a.mp3").read_bytes())):
        assert 0 <= read.shape[1] - len(wav) < 4000
        halves = [np.abs(read[0, 12000:60000]).mean(), np.abs(read[0, 84000:132000]).mean()]
        assert max(halves) > 0.05
        assert np.argmax(halves) == (loud == "last")


@pytest.mark.parametrize("sample_rate", [16000, 48000])  # of frames of 576 and of 1152 samples
def test_mp3_that_counts_the_frame_that_says_its_length_is_whole(tmp_path, sample_rate):
    content = bytearray(sound_file(tone(sample_rate, sample_rate), sample_rate, "MP3"))
    at = content.index(b"Xing") + 8
    content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") + 1).to_bytes(4, "big")
    content[at + 112 : at + 148] = bytes(36)  # where the encoder says how much silence it put before and behind
    (tmp_path / "a.mp3").write_bytes(content)
    frame = 576 if sample_rate == 16000 else 1152
    assert audio.info(tmp_path / "a.mp3").num_samples == audio.read(tmp_path / "a.mp3")[0].shape[1] + frame


def test_sound_behind_what_an_mp3_says_is_not_left_out_in_silence(tmp_path):
    data = sound_file(tone(24000, 24000), 24000, "MP3")
    (tmp_path / "once.mp3").write_bytes(b"ID3\4\0\0\0\0\1\0" + b"\xff\xf3" * 64 + data + b"TAG" + bytes(125))
    assert audio.read(tmp_path / "once.mp3")[0].shape == (1, 24000)
    (tmp_path / "twice.mp3").write_bytes(2 * data)
    with pytest.raises(AudioError, match=r"twice\.mp3: has \d+ frames and says \d+, so that the rest would be"):
        audio.read(tmp_path / "twice.mp3")


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("counted", [0, 1000, 1001, 47998])  # bytes of 48000
def test_sound_behind_what_a_wav_counts_is_not_left_out_in_silence(tmp_path, endian, counted):
    data = bytearray(sound_file(tone(24000, 24000), 24000, "WAV", endian=endian))
    data[40:44] = counted.to_bytes(4, endian.lower())
    (tmp_path / "a.wav").write_bytes(data + bytes(100))
    with pytest.raises(AudioError, match=rf"goes on for {48100 - counted} bytes behind the {counted} bytes of samples"):
        audio.read(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "more",
    [
        *(b"", b"\n", bytes(5000)),
        *(b"LIST\4\0\0\0INFO", b"\0LIST\4\0\0\0INFO", b"id3 \x05\0\0\0title\0"),
        *(b"TAG" + b"song" * 31 + b"\0", b"APETAGEX\xd0\x07\0\0" + b"artist" * 4),
    ],
    ids=str,
)
def test_what_is_no_sound_may_stand_behind_the_samples_of_a_wav(tmp_path, more):
    data = bytearray(sound_file(tone(1001, 24000), 24000, "WAV", subtype="PCM_U8"))
    assert data[-1] == 0  # which makes the number of bytes even
    (tmp_path / "a.wav").write_bytes((data if more[:1] != b"\0" else data[:-1]) + more)
    assert audio.read(tmp_path / "a.wav")[0].shape == (1, 1001)


def test_wav_that_was_never_closed_is_read_to_its_end(tmp_path):
    data = bytearray(sound_file(tone(1000, 24000), 24000, "WAV"))
    data[4:8], data[40:44] = b"\x08\0\0\0", bytes(4)
    (tmp_path / "a.wav").write_bytes(data)
    assert audio.read(tmp_path / "a.wav")[0].shape == (1, 1000)


@pytest.mark.parametrize("format", ["FLAC", "AIFF"])
def test_length_that_whoever_wrote_into_a_pipe_did_not_know(tmp_path, format):
    path = tmp_path / "a"
    content = bytearray(sound_file(tone(24000, 24000), 24000, format))
    if format == "FLAC":  # the last 36 bits of the 8 bytes in front of the MD5 sum
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    else:
        for name in (b"FORM", b"SSND"):
            at = content.index(name) + 4
            content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    assert audio.info(path).num_samples in (None, 24000)
    np.testing.assert_allclose(audio.read(path)[0][0], tone(24000, 24000), atol=2**-15)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"RIFF", "not a sound file"), (b"hello, hello", "not a sound file")]
)
def test_pipe_without_sound_is_refused(content, message):
    with pytest.raises(AudioError, match=message):
        _read_through_pipe(content)


def test_cut_wav_in_a_pipe_is_refused():
    with pytest.raises(AudioError, match="cut off"):
        _read_through_pipe(sound_file(tone(24000, 24000), 24000, "WAV")[:-1000])


@pytest.mark.parametrize("size", [8, 44, 10_000])  # bytes that come before there are none
def test_pipe_that_does_not_wait_is_not_taken_for_one_that_has_ended(monkeypatch, size):
    data = bytearray(sound_file(tone(24000, 24000), 24000, "WAV"))
    data[40:44] = b"\xff\xff\xff\xff"
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as sink:
        sink.write(data[:size])
        sink.flush()
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(AudioError, match=r"cannot be read to its end .no data yet; open it in blocking mode"):
            audio.read("-")


def test_standard_input_that_is_no_file_of_the_system_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"RIFF")))
    with pytest.raises(AudioError, match=r"standard input: cannot be read \(fileno\)"):
        audio.read("-")


def _read_through_pipe(content: bytes) -> tuple[np.ndarray, int]:
    import threading

    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as sink:
            sink.write(content)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return audio.read(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        thread.join()


# -- bad input


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".ogg", ".opus", ".mp3"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.985])
def test_cut_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 240_000), 24000, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(AudioError, match=r"a\..*cut off"):
        audio.read(path)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *itertools.product(["AU", "W64", "RF64"], ["PCM_16", "FLOAT", "DOUBLE", "ULAW"]),
        *itertools.product(["NIST"], ["PCM_16", "PCM_32", "ULAW"]),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_cut_files_of_long_recordings_are_refused_and_whole_ones_are_read(tmp_path, format, subtype, channels):
    path = tmp_path / f"a.{format.lower()}"
    wav = np.random.default_rng(0).uniform(-0.9, 0.9, (48000, channels))
    soundfile.write(path, wav, 24000, format=format, subtype=subtype)
    assert audio.read(path)[0].shape == (1, 48000)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(AudioError, match="cut off"):
        audio.read(path)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "ULAW"])
@pytest.mark.parametrize("num_samples", range(20008, 20017))
def test_padding_of_w64_is_no_sound_that_is_missing(tmp_path, subtype, num_samples):
    soundfile.write(tmp_path / "a.w64", np.zeros(num_samples), 16000, format="W64", subtype=subtype)
    assert audio.read(tmp_path / "a.w64")[0].shape == (1, num_samples)


def test_folders_are_searched_for_files_in_their_own_place(tmp_path, speech):
    (tmp_path / "zoe").mkdir()
    (tmp_path / "zoe" / "a.flac").write_bytes(speech.read_bytes())
    os.symlink("zoe", tmp_path / "alias")
    os.mkfifo(tmp_path / "b.wav")
    assert audio.find_sounds(tmp_path) == [tmp_path / "zoe" / "a.flac"]


def test_a_file_that_cannot_be_looked_at_is_found_and_named_when_it_is_opened(tmp_path, speech):
    """As in a folder that can be listed and not entered, which for root there is not."""
    (tmp_path / "a.flac").write_bytes(speech.read_bytes())
    (tmp_path / "b.flac").symlink_to("x" * 300)
    assert audio.find_sounds(tmp_path) == [tmp_path / "a.flac", tmp_path / "b.flac"]
    audio.require_regular(tmp_path / "b.flac")
    with pytest.raises(AudioError, match=r"b\.flac: cannot be opened \(File name too long\)"):
        audio.info(tmp_path / "b.flac")


def test_hidden_files_are_not_searched_for(tmp_path, speech):
    for name in ("a.flac", ".b.flac", "._a.flac"):
        (tmp_path / name).write_bytes(speech.read_bytes())
    assert audio.find_sounds(tmp_path) == [tmp_path / "a.flac"]


def test_sound_beside_others_that_cannot_be_read_is_told(tmp_path, speech):
    (tmp_path / "a.flac").write_bytes(speech.read_bytes())
    (tmp_path / "b.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (tmp_path / "._a.m4a").write_bytes(b"left by macOS")
    with pytest.warns(CodecWarning, match=r": sound in \.m4a cannot be read \(such as b\.m4a\); convert it to wav$"):
        assert audio.find_sounds(tmp_path) == [tmp_path / "a.flac"]


def test_folders_are_searched_for_corpora_in_nist_sphere_too(tmp_path):
    soundfile.write(tmp_path / "a.sph", np.zeros(100, np.int16), 16000, format="NIST")
    assert audio.find_sounds(tmp_path) == [tmp_path / "a.sph"]
    assert audio.read(tmp_path / "a.sph")[0].shape == (1, 100)


def test_other_sound_is_refused_with_advice(tmp_path):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(AudioError, match=r"a\.m4a: is not a sound file that can be read .*; convert it to wav or flac"):
        audio.read(tmp_path / "a.m4a")


@pytest.mark.parametrize("promise", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_wav_of_unknown_length_is_no_cut_file(tmp_path, promise):
    path = write_wav(tmp_path / "a.wav", tone(1000, 24000), 24000, "PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[:40] + struct.pack("<I", promise) + content[44:])
    assert audio.read(path)[0].shape == (1, 1000)


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf"), (32000.0, "full scale is 1"), (-32000.0, "full scale is 1")],
)
@pytest.mark.parametrize("channel", [0, 1])
def test_samples_that_are_no_sound_are_refused_with_their_place(tmp_path, value, said, channel):
    wav = np.zeros((30000, 2), np.float32)
    wav[12345, channel] = value
    with pytest.raises(AudioError, match=rf"sample 12345 \(0\.514 s\) is .*{said}"):
        audio.read(write_wav(tmp_path / "a.wav", wav, 24000))


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(AudioError, match="has no samples"):
        audio.read(write_wav(tmp_path / "a.wav", np.zeros(0, np.float32), 24000))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"The birch canoe slid on the smooth planks.\n" * 30, "not a sound file"),
        ("noise.mp3", bytes(range(256)) * 40, "not a sound file"),
        ("zeros.flac", bytes(5000), "not a sound file"),
        ("headerless.raw", bytes(5000), "without a header"),
    ],
)
def test_what_is_no_sound_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=rf"{name}: .*{message}"):
        audio.read(tmp_path / name)


def test_directory_and_missing_file_are_refused(tmp_path):
    with pytest.raises(AudioError, match="is a directory"):
        audio.read(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        audio.read(tmp_path / "nothing.wav")


def test_absurd_sample_rate_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(1000, 24000), 24000, "PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[:24] + struct.pack("<I", 2_000_000_000) + content[28:])
    with pytest.raises(AudioError, match="sample rate must be"):
        audio.read(path)


# -- writing


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("num_samples", [1, 320, 100_003])
def test_written_file_has_exactly_the_samples_written(tmp_path, name, num_samples):
    audio.write(tmp_path / name, tone(num_samples, 24000), 24000)
    assert audio.info(tmp_path / name).num_samples == num_samples
    assert audio.read(tmp_path / name)[0].shape == (1, num_samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sixteen_bit_file_written_back_is_unchanged(tmp_path, name):
    values = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "original.wav", values, 24000)
    wav, _ = audio.read(tmp_path / "original.wav")
    assert audio.write(tmp_path / name, wav, 24000) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / name, dtype="int16")[0], values)


def test_flac_holds_what_wav_holds(tmp_path):
    steps = np.array([-40000, -32768.5, -1.5, -0.5, -0.25, 0.5, 1.5, 2.5, 32766.5, 32767.5, 40000])
    wav = np.concatenate([steps / 32768, np.random.default_rng(0).uniform(-1.2, 1.2, 10_000)]).astype(np.float32)
    for name in ("a.wav", "a.flac"):
        audio.write(tmp_path / name, wav, 24000)
    samples = [soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "a.flac")]
    np.testing.assert_array_equal(*samples)


def test_peaks_saturate_and_are_counted(tmp_path):
    wav = np.array([0.5, 1.5, -2.0, -0.5, 1.0], np.float32)
    assert audio.write(tmp_path / "a.wav", wav, 24000) == 2
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav")[0][0], [0.5, 1.0, -1.0, -0.5, 1.0], atol=2 / 32768)


def test_float_wav_keeps_peaks(tmp_path):
    wav = np.array([0.25, 1.5, -2.0, 1e-9, 0.0, 1.0], np.float32)
    assert audio.write(tmp_path / "a.wav", wav, 48000, format="wav-float") == 0
    samples, sample_rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert sample_rate == 48000
    np.testing.assert_array_equal(samples, wav)


def test_wav_blocks_of_unknown_number_give_a_right_header(tmp_path):
    with audio.SoundWriter(tmp_path / "a.wav", 24000) as sound:
        for _ in range(5):
            sound.write(tone(100, 24000))
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert (file.frames, file.samplerate, file.subtype) == (500, 24000, "PCM_16")
        assert "should be" not in file.extra_info


@pytest.mark.parametrize(("format", "tag", "sample_bytes"), [("wav", 1, 2), ("wav-float", 3, 4)])
def test_header_of_a_wav_is_that_of_the_specification(tmp_path, format, tag, sample_bytes):
    audio.write(tmp_path / "a.wav", np.zeros(1000, np.float32), 48000, format=format)
    data = (tmp_path / "a.wav").read_bytes()
    assert struct.unpack_from("<4sI4s", data) == (b"RIFF", len(data) - 8, b"WAVE")
    chunks, position = {}, 12
    while position < len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        chunks[name] = data[position + 8 : position + 8 + size]
        position += 8 + size
    layout = (tag, 1, 48000, 48000 * sample_bytes, sample_bytes, 8 * sample_bytes)
    assert struct.unpack_from("<HHIIHH", chunks[b"fmt "]) == layout
    assert len(chunks[b"data"]) == 1000 * sample_bytes
    assert chunks.get(b"fact") == (None if tag == 1 else struct.pack("<I", 1000))


def test_peaks_are_cut_off_before_vorbis_sees_them(tmp_path):
    """Which would not keep the shape of a wave that its own reader cuts off."""
    wav = 8 * tone(24000, 24000)
    audio.write(tmp_path / "a.ogg", wav, 24000)
    samples, _ = soundfile.read(tmp_path / "a.ogg")
    assert np.corrcoef(samples, np.clip(wav, -1, 1))[0, 1] > 0.999


@pytest.mark.parametrize("format", ["wav", "wav-float", "flac", "ogg"])
def test_sound_is_written_to_a_pipe(monkeypatch, format):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    audio.write("-", tone(1000, 24000), 24000, format=format)
    samples, _ = soundfile.read(io.BytesIO(pipe.getvalue()))
    assert len(samples) == 1000


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.mp3", None, "cannot be written as .mp3"),
        ("a", "opus", "unknown format of sound"),
        ("a.flac", "wav", "does not fit"),
    ],
)
def test_format_that_cannot_be_written_is_refused(tmp_path, name, format, message):
    with pytest.raises(AudioError, match=message):
        audio.write(tmp_path / name, tone(10, 24000), 24000, format=format)


def test_not_finite_samples_are_not_written(tmp_path):
    with pytest.raises(AudioError, match="must be finite"):
        audio.write(tmp_path / "a.wav", np.array([0.0, np.nan]), 24000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0, -1, 2**32, 1_000_001, 24000.0, "24000", None])
def test_what_is_no_sample_rate_is_refused(tmp_path, rate):
    for name in ("a.wav", "a.flac"):
        with pytest.raises(AudioError, match=r"a sample rate must be an integer from 1 to 1000000 Hz, got"):
            audio.write(tmp_path / name, tone(100, 24000), rate)
    with pytest.raises(AudioError, match=r"a sample rate must be an integer"):
        audio.resample(tone(100, 24000), 24000, rate)
    assert list(tmp_path.iterdir()) == []
    if rate is not None:  # which keeps the file's own
        path = write_wav(tmp_path / "a.wav", tone(100, 24000), 24000)
        with pytest.raises(AudioError, match=r"a sample rate must be an integer"):
            audio.read(path, rate)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.complex64, bool, object])
def test_samples_that_are_no_floats_are_refused(tmp_path, dtype):
    wav = (1000 * tone(100, 24000)).astype(dtype)
    with pytest.raises(AudioError, match="samples must be floats, with full scale at 1, got"):
        audio.write(tmp_path / "a.wav", wav, 24000)
    for rate in (24000, 16000):
        with pytest.raises(AudioError, match="samples must be floats"):
            audio.resample(wav, 24000, rate)
    assert list(tmp_path.iterdir()) == []


def test_recording_without_samples_is_not_written_as_flac(tmp_path):
    with pytest.raises(AudioError, match=r"a\.flac: flac cannot hold a recording without samples; write wav"):
        audio.write(tmp_path / "a.flac", np.zeros(0, np.float32), 24000)
    assert list(tmp_path.iterdir()) == []
    for name in ("a.wav", "a.ogg"):
        audio.write(tmp_path / name, np.zeros(0, np.float32), 24000)
        assert soundfile.info(tmp_path / name).frames == 0


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_full_disk_raises_the_systems_error_and_leaves_nothing(tmp_path, name):
    """A limit on the file size stands for the full disk: the same code path, and no rights needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            audio.write(tmp_path / name, np.random.default_rng(0).uniform(-1, 1, 400_000), 24000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_full_device_raises_the_systems_error(format):
    with pytest.raises(OSError, match="No space left on device"):
        audio.write("/dev/full", tone(100_000, 24000), 24000, format=format)
    assert Path("/dev/full").is_char_device()


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(AudioError, match=r"two\.wav: samples to write must be \(T,\), got \(2, 10\)"):
        audio.write(tmp_path / "two.wav", np.zeros((2, 10), np.float32), 24000)
    for name, rate in (("a.ogg", 200_001), ("a.flac", 1_000_000)):
        with pytest.raises(AudioError, match=f"cannot hold a sample rate of {rate} Hz"):
            audio.write(tmp_path / name, np.zeros(10, np.float32), rate)
    assert not list(tmp_path.iterdir())
    audio.write(tmp_path / "a.ogg", np.zeros(10, np.float32), 200_000)
    assert soundfile.info(tmp_path / "a.ogg").samplerate == 200_000
