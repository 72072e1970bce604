"""Ogg pages against files by libvorbis and libopus, and a page of the specification's own kind."""

import io

import numpy as np
import pytest
import soundfile

from codec import audio, ogg
from codec.errors import AudioError


@pytest.fixture(params=["VORBIS", "OPUS"])
def file(request, tmp_path):
    path = tmp_path / "a.ogg"
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * 24000)
    soundfile.write(path, wav, 24000, format="OGG", subtype=request.param)
    return path


def pages(data: bytes) -> list[int]:
    starts = [0]
    while (start := data.find(ogg.CAPTURE_PATTERN, starts[-1] + 1)) >= 0:
        starts.append(start)
    return starts


def test_checksum_is_the_crc_of_the_specification():
    def bit_by_bit(data: bytes) -> int:
        remainder = 0
        for byte in data:
            remainder ^= byte << 24
            for _ in range(8):
                remainder = (remainder << 1 ^ (0x04C11DB7 if remainder >> 31 else 0)) & 0xFFFF_FFFF
        return remainder

    data = np.random.default_rng(0).bytes(300)
    assert ogg.checksum(data) == bit_by_bit(data)
    assert ogg.checksum(b"") == 0


def test_a_whole_file_has_no_damage(file):
    data = file.read_bytes()
    assert ogg.find_fault(io.BytesIO(data)) is None
    assert ogg.find_fault(io.BytesIO(data + b"TAG" + bytes(125))) is None
    assert ogg.find_fault(io.BytesIO(data + bytes(3 * ogg.BLOCK_BYTES))) is None
    starts = pages(data)
    assert ogg.find_fault(io.BytesIO(data[: starts[2]] + data[starts[4] :])) is None  # a broadcast, from its middle on


def test_a_second_recording_is_not_left_out_in_silence(file):
    data = file.read_bytes()
    file.write_bytes(data + data)
    with pytest.raises(AudioError, match=rf"holds a second recording from byte {len(data)} on"):
        audio.read(file)


def test_lost_and_swapped_pages_are_found(file):
    data = file.read_bytes()
    a, b, c = pages(data)[4:7]
    for damaged in (data[:a] + data[b:], data[:a] + data[b:c] + data[a:b] + data[c:]):
        assert ogg.find_fault(io.BytesIO(damaged)) == f"damaged or cut off at byte {a}; copy it again"


def test_every_damaged_page_is_found(file):
    """libsndfile says nothing of any of them but the headers, and gives other sound in their place."""
    data = file.read_bytes()
    starts = pages(data)
    assert len(starts) > 5
    for start in starts:
        damaged = bytearray(data)
        damaged[start + 40] ^= 1
        assert ogg.find_fault(io.BytesIO(damaged)) == f"damaged or cut off at byte {start}; copy it again"
        file.write_bytes(damaged)
        with pytest.raises(AudioError, match=rf"a\.ogg: (damaged or cut off at byte {start};|is not a sound file)"):
            audio.read(file)


def test_a_lost_beginning_of_a_page_and_a_cut_are_found(file):
    data = file.read_bytes()
    first, second = pages(data)[-2:]
    for damaged, place in (
        (data[:first] + data[first + 9 :], first),
        (data[: second + 20], second),
        (data[:-1], second),
    ):
        assert ogg.find_fault(io.BytesIO(damaged)) == f"damaged or cut off at byte {place}; copy it again"
