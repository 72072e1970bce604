"""Packed integers, held against a text of zeros and ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_reader import bit_string

from codec.bitstream import pack, packed_size, unpack
from codec.errors import FormatError

bits_and_codes = st.integers(1, 32).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=70))
)


@given(bits_and_codes)
def test_packed_bytes_are_the_bit_string(case):
    bits, codes = case
    data = pack(np.array(codes, np.int64), bits)
    assert data == bit_string(codes, bits)
    assert len(data) == packed_size(len(codes), bits)


@given(bits_and_codes)
def test_unpacking_gives_the_codes_back(case):
    bits, codes = case
    unpacked = unpack(bit_string(codes, bits), bits, len(codes))
    assert unpacked.dtype == np.int64
    assert unpacked.tolist() == codes


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "<i4", ">i4", "uint32", "int64", "uint64"])
def test_every_integer_dtype_gives_the_same_bytes(dtype):
    assert pack(np.array([1, 2, 127], dtype), 12) == bytes.fromhex("001 002 07F 0".replace(" ", ""))


def test_strided_views_are_packed_in_their_order():
    assert unpack(pack(np.arange(20)[::-3], 5), 5, 7).tolist() == [19, 16, 13, 10, 7, 4, 1]


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        ([0, 4096], 12, r"0\.\.4095, got 4096 at frame 1"),
        ([-1], 12, "got -1 at frame 0"),
        ([0.0], 12, "integers, got float64"),
        ([True], 12, "integers, got bool"),
        ([[1, 2]], 12, r"shape \(1, 2\)"),
        (5, 12, r"shape \(\)"),
        ([1], 0, "1 to 32, got 0"),
        ([1], 33, "1 to 32, got 33"),
    ],
)
def test_what_cannot_be_packed_is_named(codes, bits, message):
    with pytest.raises(FormatError, match=message):
        pack(np.array(codes), bits)


def test_unpacking_refuses_a_wrong_number_of_bytes():
    with pytest.raises(FormatError, match="2 codes of 12 bits take 3 bytes, got 4"):
        unpack(bytes(4), 12, 2)


def test_unpacking_refuses_bits_beyond_the_last_code():
    with pytest.raises(FormatError, match="unused bits"):
        unpack(b"\x00\x01", 12, 1)
