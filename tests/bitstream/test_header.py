"""The header: limits, derived values, and what is said about files that do not begin with one."""

import dataclasses

import pytest

from codec.bitstream import Header, fit_name
from codec.bitstream.header import MAX_SIZE, parse_header, repair_header
from codec.errors import FormatError

HEADER = Header(24000, 320, 4096, "0123456789abcdef", "stream")


def test_rates_follow_from_the_fields():
    assert (HEADER.bits_per_code, HEADER.frame_rate, HEADER.bitrate) == (12, 75.0, 0.9)


@pytest.mark.parametrize(
    ("codebook_size", "bits"), [(2, 1), (3, 2), (4096, 12), (4097, 13), (262144, 18), (2**31, 31), (2**32 - 1, 32)]
)
def test_bits_hold_the_largest_code_and_no_more(codebook_size, bits):
    assert dataclasses.replace(HEADER, codebook_size=codebook_size).bits_per_code == bits


@pytest.mark.parametrize("model", ["", "stream", "größer", "流" * 10, "x" * 31])
def test_parsing_gives_the_header_back(model):
    header = dataclasses.replace(HEADER, model=model)
    assert parse_header(header.to_bytes() + b"rest") == header
    assert len(header.to_bytes()) == header.size == 30 + len(model.encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 0}, "sample rate must be an integer from 1 to 1000000, got 0"),
        ({"sample_rate": 24000.0}, "sample rate must be an integer"),
        ({"sample_rate": True}, "sample rate must be an integer from 1 to 1000000, got True"),
        ({"hop_length": 65536}, "hop length must be an integer from 1 to 65535, got 65536"),
        ({"codebook_size": 1}, "codebook size"),
        ({"codebook_size": 2**32}, "codebook size"),
        ({"block_frames": 100}, "multiple of 8, got 100"),
        ({"block_frames": 4096}, "block frames must be an integer from 8 to 2048"),
        ({"fingerprint": "123"}, "16 hexadecimal digits in lower case, got '123'"),
        ({"fingerprint": "0123456789ABCDEF"}, "16 hexadecimal digits in lower case"),
        ({"model": "x" * 32}, "at most 31 bytes"),
        ({"model": "é" * 16}, "at most 31 bytes"),
        ({"model": "a\nb"}, "no control characters"),
        ({"model": "a\udc80b"}, "no control characters"),
    ],
)
def test_a_value_out_of_range_is_named(change, message):
    with pytest.raises(FormatError, match=message):
        dataclasses.replace(HEADER, **change)


@pytest.mark.parametrize(
    ("name", "fitted"),
    [("stream", "stream"), ("x" * 40, "x" * 31), ("é" * 16, "é" * 15), ("a\tb\udc80", "a?b?"), ("", "")],
)
def test_any_name_can_be_made_to_fit(name, fitted):
    assert fit_name(name) == fitted
    dataclasses.replace(HEADER, model=fit_name(name))


def test_a_name_is_a_string():
    with pytest.raises(FormatError, match="the name of a model must be a string, got 3"):
        fit_name(3)


def test_any_single_wrong_byte_is_repaired():
    data = HEADER.to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xA5
        assert repair_header(bytes(damaged) + b"B" * 25) == HEADER


def test_two_wrong_bytes_are_not_repaired():
    damaged = bytearray(HEADER.to_bytes())
    damaged[6] ^= 1
    damaged[20] ^= 1
    assert repair_header(bytes(damaged)) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a .codes file: it is a WAV"),
        (b"fLaC\0\0\0\x22", "FLAC"),
        (b"OggS\0\2", "Ogg"),
        (b"ID3\4\0", "MP3"),
        (b"\x93NUMPY\1\0", "ends in .npy"),
        (b"PK\3\4\x14\0", ".npz"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"[1, 2, 3]\r\n", "text file"),
        ("größer".encode(), "text file"),
        (("x" * (MAX_SIZE - 1) + "ö").encode()[:MAX_SIZE], "text file"),  # the reader looks no further
        (b"\0\0\0\0\0\0", "begins with the bytes 00 00 00 00 instead of C0 DE 53 0A"),
        (b"\xc0\xdeS\r\n\1", "text mode"),
        (b"\xc0\xdeS\n\2" + bytes(40), "version 2 of the format, this program reads version 1; install a newer one"),
        (b"\xc0\xdeS", "cut off inside the header, after 3 bytes"),
        (HEADER.to_bytes()[:-1], "cut off inside the header, after 35 bytes"),
        (HEADER.to_bytes()[:6] + bytes(60), "damaged beyond repair"),
    ],
)
def test_what_is_no_header_is_named(data, message):
    with pytest.raises(FormatError, match=message):
        parse_header(data)
