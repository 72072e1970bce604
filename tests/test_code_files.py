"""Codes as plain integers: what other programs write is read, and what cannot be right is refused."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from codec.bitstream import Header
from codec.code_files import CODE_FORMATS, format_of, open_code_reader, open_code_writer
from codec.errors import CodecError, FormatError


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def codes_of(path: Path) -> list[int]:
    with open_code_reader(path) as reader:
        return [int(code) for block in reader for code in block.codes]


@pytest.mark.parametrize("suffix", CODE_FORMATS.values())
def test_the_largest_codebook_has_codes_of_32_bits(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with open_code_writer(path, Header(24000, 320, 2**32 - 1, "0" * 16)) as writer:
        writer.write(np.array([0, 2**32 - 2]))
        writer.close()
    assert codes_of(path) == [0, 2**32 - 2]


@pytest.mark.parametrize("suffix", CODE_FORMATS.values())
@pytest.mark.parametrize("code", [-1, 4096, 2**33])
def test_what_is_no_code_is_not_written_in_any_format(tmp_path, suffix, code):
    with pytest.raises(FormatError, match=rf"codes must be in 0\.\.4095, got {code} at frame 3"):
        with open_code_writer(tmp_path / f"a{suffix}", Header(24000, 320, 4096, "0" * 16)) as writer:
            writer.write(np.array([1, 2]))
            writer.write(np.array([3, code]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "codes"),
    [
        ("a.txt", b"\xef\xbb\xbf1, 2,3\r\n", [1, 2, 3]),
        ("A.TXT", b"1\n2\n", [1, 2]),
        ("A.JSON", b"          [1, 2]", [1, 2]),  # no codes by its first bytes
        ("a.npy", npy(np.array([[1, 2]], np.int16)), [1, 2]),  # a batch of one
        ("a.json", b"[[1, 2]]", [1, 2]),
    ],
)
def test_what_other_programs_write_is_read(tmp_path, name, content, codes):
    (tmp_path / name).write_bytes(content)
    assert codes_of(tmp_path / name) == codes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"9" * 30, "'99999999999999999999' is no code"),
        ("a.npy", npy(np.array([2**63 + 5], np.uint64)), "beyond 32 bits"),
        ("a.npy", npy(np.array([2**32])), "beyond 32 bits"),
    ],
    ids=["30 digits", "64 bits", "33 bits"],
)
def test_what_no_codebook_holds_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{name}: .*{message}"):
        codes_of(tmp_path / name)


def described(num_samples: object) -> str:
    rates = {"sample_rate": 24000, "hop_length": 320, "codebook_size": 4096}
    return json.dumps({"model": "tiny", "fingerprint": "0" * 16, **rates, "num_samples": num_samples, "codes": [1]})


@pytest.mark.parametrize("num_samples", [1, 320])
def test_a_length_is_kept(tmp_path, num_samples):
    (tmp_path / "a.json").write_text(described(num_samples))
    with open_code_reader(tmp_path / "a.json") as reader:
        assert reader.num_samples == num_samples


@pytest.mark.parametrize("num_samples", [0, 321, 961, 320.0, True])
def test_a_length_that_does_not_fit_the_codes_is_refused(tmp_path, num_samples):
    (tmp_path / "a.json").write_text(described(num_samples))
    with pytest.raises(FormatError, match=f"num_samples {num_samples} does not fit 1 codes of 320 samples"):
        codes_of(tmp_path / "a.json")


class Dribble(io.RawIOBase):
    """Gives one byte at a time, as a pipe may."""

    def __init__(self, content: bytes):
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        return self._rest.readinto(buffer[:1])


@pytest.mark.parametrize("content", [npy(np.array([1, 2, 3])), b" 1 2 3", b"\n[1, 2, 3]"], ids=["npy", "txt", "json"])
def test_the_format_is_told_however_slowly_a_pipe_begins(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Dribble(content))))
    assert codes_of("-") == [1, 2, 3]


@pytest.mark.parametrize("content", [b"1 2 3", b"[1, 2, 3]", b""])
def test_a_pipe_that_does_not_wait_is_not_taken_for_one_that_has_ended(monkeypatch, content):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", buffering=0) as sink:
        sink.write(content)
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(CodecError, match="standard input: cannot be read: no data yet; open it in blocking mode"):
            codes_of("-")


def test_the_first_bytes_tell_the_format_whatever_comes_then():
    """So that a mistake in a file is named as one of that file."""
    assert format_of(b"1 2 3, 4 five") == "txt"
    assert format_of(b" [1, 2") == "json"
    assert format_of(b"1 two") is None
