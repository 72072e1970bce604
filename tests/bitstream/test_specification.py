"""FORMAT.md is right: its worked example and its sizes are what the code reads and writes."""

import io
import re
import zlib
from importlib import resources

import numpy as np
import pytest
from second_reader import read

from codec.bitstream import Header, read_codes, write_codes

TEXT = resources.files("codec.bitstream").joinpath("FORMAT.md").read_text(encoding="utf-8")
HEADER = Header(24000, 320, 4096, "0123456789abcdef", "tiny", block_frames=8)
CODES = [0x000, 0x001, 0x002, 0x123, 0x456, 0x789, 0xABC, 0xDEF, 0xFFF, 0x00A]


@pytest.fixture(scope="module")
def example() -> bytes:
    """The bytes of the worked example: hexadecimal pairs at the start of each line, before the remark."""
    listing = re.search(r"```hex\n(.*?)```", TEXT, re.DOTALL).group(1)
    return b"".join(bytes.fromhex(re.split(r"  +", line)[0]) for line in listing.splitlines())


def test_worked_example_is_read(example):
    file = read_codes(io.BytesIO(example))
    assert (file.header, file.codes.tolist(), file.num_samples) == (HEADER, CODES, 3000)


def test_worked_example_is_written(example):
    stream = io.BytesIO()
    write_codes(stream, np.array(CODES), header=HEADER, num_samples=3000)
    assert stream.getvalue() == example


def test_worked_example_is_read_by_the_second_reader(example):
    assert read(example) == (CODES, 3000)


def test_crc_is_the_one_described():
    assert "`CBF43926`" in TEXT
    assert zlib.crc32(b"123456789") == 0xCBF43926


def test_size_of_ten_seconds_is_as_stated():
    assert "1,186 bytes, of them 1,125 payload" in " ".join(TEXT.split())
    stream = io.BytesIO()
    header = Header(24000, 320, 4096, "0" * 16, "stream")
    write_codes(stream, np.zeros(750, np.int64), header=header)
    assert len(stream.getvalue()) == 1186
    assert 750 * header.bits_per_code // 8 == 1125
