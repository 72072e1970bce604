"""Whole files and pipes: round trips, sizes, refusals, and what is left when writing fails."""

import dataclasses
import io
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from second_reader import build, read

from codec.bitstream import CodesReader, CodesWriter, Header, read_codes, write_codes
from codec.errors import CodecError, FormatError

HEADER = Header(24000, 320, 4096, "0123456789abcdef", "stream")
SMALL = dataclasses.replace(HEADER, block_frames=8, model="tiny")


def some_codes(num_frames: int, codebook_size: int = 4096) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, codebook_size, num_frames)


def written(codes: np.ndarray, header: Header = SMALL, num_samples: int | None = None) -> bytes:
    stream = io.BytesIO()
    write_codes(stream, codes, header=header, num_samples=num_samples)
    return stream.getvalue()


class Pipe:
    """Bytes that were sent so far; reading more would wait for ever, which here is a failure."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_closed = False

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None: ...

    def read(self, size: int) -> bytes:
        assert self.data or self.is_closed, "would wait"
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


class Dribble(io.RawIOBase):
    """Takes and gives one byte at a time, as an unbuffered stream may."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def write(self, data: bytes) -> int:
        self.data += data[:1]
        return 1

    def read(self, size: int = -1) -> bytes:
        taken = bytes(self.data[:1])
        del self.data[:1]
        return taken


@given(
    num_frames=st.integers(0, 60),
    codebook_size=st.integers(2, 2**32 - 1),
    block_frames=st.sampled_from([8, 16, 24]),
    hop_length=st.integers(1, 65535),
    missing=st.integers(0, 65534),
    model=st.sampled_from(["", "stream", "größer"]),
)
def test_files_are_those_of_the_second_reader(num_frames, codebook_size, block_frames, hop_length, missing, model):
    codes = some_codes(num_frames, codebook_size)
    num_samples = num_frames * hop_length - min(missing, hop_length - 1) if num_frames else 0
    header = Header(16000, hop_length, codebook_size, "00ff" * 4, model, block_frames)
    data = written(codes, header, num_samples)
    fields = dataclasses.asdict(header) | {"model": model.encode()}
    assert data == b"".join(build(codes.tolist(), num_samples, bits=header.bits_per_code, **fields))
    file = read_codes(io.BytesIO(data))
    assert (file.header, file.num_samples, file.num_bytes, bool(file.damage)) == (header, num_samples, len(data), False)
    assert file.codes.dtype == np.int64
    assert np.array_equal(file.codes, codes)


@pytest.mark.parametrize("suffix", [".npy", ".json", ".TXT", ".wav"])
def test_a_name_that_is_read_as_something_else_is_not_written(tmp_path, suffix):
    with pytest.raises(FormatError, match=r"is not the name of a \.codes file; end it in \.codes"):
        write_codes(tmp_path / f"a{suffix}", some_codes(10), header=SMALL)
    assert not list(tmp_path.iterdir())


def test_second_reader_reads_our_file():
    assert read(written(some_codes(29), SMALL, 29 * 320 - 7)) == (some_codes(29).tolist(), 29 * 320 - 7)


@pytest.mark.parametrize("sizes", [[29], [1] * 29, [8, 8, 8, 5], [0, 7, 0, 9, 13], [3, 26]], ids=str)
def test_bytes_do_not_depend_on_how_codes_arrive(sizes):
    stream = io.BytesIO()
    writer = CodesWriter(stream, SMALL)
    for part in np.split(some_codes(29), np.cumsum(sizes)[:-1]):
        writer.write(part)
    writer.close()
    assert stream.getvalue() == written(some_codes(29))


def test_ten_seconds_stay_below_0955_kbit_per_second():
    data = written(some_codes(750), HEADER)
    assert len(data) == 1186
    assert len(data) * 8 / 10 <= 955


def test_long_files_approach_the_rated_bitrate():
    seconds = 600
    assert len(written(some_codes(75 * seconds), HEADER)) * 8 / seconds <= 1.015 * 900


@pytest.mark.parametrize(("num_frames", "size"), [(0, 47), (1, 53), (2, 54)])
def test_very_short_files_are_small(num_frames, size):
    assert len(written(some_codes(num_frames), HEADER)) == size


@pytest.mark.parametrize(("num_frames", "num_samples"), [(0, 0), (1, 1), (1, 320), (2, 321), (16, 16 * 320 - 319)])
def test_exact_number_of_samples_comes_back(num_frames, num_samples):
    for integer in (num_samples, np.int64(num_samples), np.array(num_samples)):
        assert read_codes(io.BytesIO(written(some_codes(num_frames), SMALL, integer))).num_samples == num_samples


@pytest.mark.parametrize(
    ("num_frames", "num_samples", "held"),
    [(0, 1, "0 to 0"), (0, -1, "0 to 0"), (1, 0, "1 to 320"), (1, 321, "1 to 320"), (3, 640, "641 to 960")],
)
def test_a_number_of_samples_that_does_not_fit_is_refused(num_frames, num_samples, held):
    stream = io.BytesIO()
    with pytest.raises(FormatError, match=f"frames of 320 samples hold {held} samples, got {num_samples}"):
        write_codes(stream, some_codes(num_frames), header=SMALL, num_samples=num_samples)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([5, 4096]), r"0\.\.4095, got 4096 at frame 11"),
        (np.array([-1]), "got -1 at frame 10"),
        (np.array([2**63], np.uint64), "got 9223372036854775808 at frame 10"),
        (np.array([1.0]), "integers, got float64"),
        (np.array(["1"]), "integers, got <U1"),
        (np.zeros((1, 5), np.int64), r"shape \(1, 5\)"),
    ],
)
def test_bad_codes_are_refused_and_not_written(codes, message):
    stream = io.BytesIO()
    writer = CodesWriter(stream, SMALL)
    writer.write(some_codes(10))
    with pytest.raises(FormatError, match=message):
        writer.write(codes)
    writer.close()
    assert stream.getvalue() == written(some_codes(10))


def test_more_frames_than_can_be_counted_are_refused():
    writer = CodesWriter(io.BytesIO(), SMALL)
    writer.num_frames = 2**32 - 1
    with pytest.raises(FormatError, match="at most 4294967295 frames; begin a new one"):
        writer.write(some_codes(1))


def test_a_closed_writer_takes_nothing():
    writer = CodesWriter(io.BytesIO(), SMALL)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(some_codes(1))
    with pytest.raises(ValueError, match="closed"):
        writer.close()


def test_number_of_samples_is_known_at_the_end_only():
    reader = CodesReader(io.BytesIO(written(some_codes(9))))
    with pytest.raises(ValueError, match="after the last block"):
        _ = reader.num_samples
    assert [block.start for block in reader] == [0, 8]
    assert (reader.num_samples, reader.num_frames) == (9 * 320, 9)


@pytest.mark.parametrize("recover", [False, True])
def test_blocks_leave_a_pipe_as_soon_as_they_are_sent(recover):
    pipe = Pipe()
    writer = CodesWriter(pipe, SMALL)
    reader = CodesReader(pipe, recover=recover)
    blocks = iter(reader)
    for start in range(0, 80, 8):
        writer.write(some_codes(80)[start : start + 8])
        assert np.array_equal(next(blocks).codes, some_codes(80)[start : start + 8])
    writer.write(np.array([17, 4]))
    writer.close()
    pipe.is_closed = True
    assert [block.codes.tolist() for block in blocks] == [[17, 4]]


def test_a_real_pipe_carries_a_file():
    read_end, write_end = os.pipe()
    codes = some_codes(50_000)

    def send() -> None:
        with open(write_end, "wb") as stream:
            write_codes(stream, codes, header=HEADER)

    thread = threading.Thread(target=send)
    thread.start()
    with open(read_end, "rb") as stream:
        received = read_codes(stream).codes
    thread.join()
    assert np.array_equal(received, codes)


def test_streams_that_take_and_give_single_bytes_work():
    stream = Dribble()
    write_codes(stream, some_codes(20), header=SMALL)
    assert bytes(stream.data) == written(some_codes(20))
    assert np.array_equal(read_codes(Dribble(bytes(stream.data))).codes, some_codes(20))


def test_a_dash_is_standard_input_and_output():
    code = "import codec; file = codec.read_codes('-'); codec.write_codes('-', file.codes, header=file.header)"
    data = written(some_codes(20))
    assert subprocess.run([sys.executable, "-c", code], input=data, stdout=subprocess.PIPE).stdout == data
    cut = subprocess.run([sys.executable, "-c", code], input=data[:-1], capture_output=True)
    assert b"FormatError: standard input: " in cut.stderr


def test_a_pipe_that_does_not_wait_is_refused():
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with open(read_end, "rb", buffering=0) as stream, open(write_end, "wb"):
        with pytest.raises(CodecError, match="cannot be read: no data yet; open it in blocking mode"):
            read_codes(stream)


def test_a_pipe_that_does_not_wait_and_is_full_is_refused():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(read_end, "rb"), open(write_end, "wb", buffering=0) as stream:
        with pytest.raises(CodecError, match="cannot be written: no room yet; open it in blocking mode"):
            write_codes(stream, some_codes(1_000_000), header=HEADER)


@pytest.mark.parametrize("recover", [False, True])
def test_an_hour_passes_in_memory_for_a_block(recover):
    class HourOfCodes:
        """Writes a file behind the reader's back, block by block."""

        def __init__(self) -> None:
            self.pipe, self.left = Pipe(), 3600 * 75
            self.writer = CodesWriter(self.pipe, HEADER)

        def read(self, size: int) -> bytes:
            if not self.pipe.data and not self.writer.is_closed:
                self.writer.write(np.zeros(min(256, self.left), np.int64))
                self.left -= min(256, self.left)
                if not self.left:
                    self.writer.close()
                    self.pipe.is_closed = True
            return self.pipe.read(size)

    tracemalloc.start()
    try:
        num_frames = sum(block.num_frames for block in CodesReader(HourOfCodes(), recover=recover))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_frames == 3600 * 75
    assert peak < 200_000  # bytes; the codes alone would be 2 MB


def test_a_path_is_written_and_read(tmp_path: Path):
    path = tmp_path / "talk.codes"
    path.write_bytes(b"old")
    write_codes(path, some_codes(20), header=SMALL)
    assert path.read_bytes() == written(some_codes(20))
    assert np.array_equal(read_codes(str(path)).codes, some_codes(20))
    assert os.listdir(tmp_path) == ["talk.codes"]


def test_refused_codes_leave_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "talk.codes"
    path.write_bytes(b"old")
    with pytest.raises(FormatError, match="got 5000 at frame 0"):
        write_codes(path, np.array([5000]), header=SMALL)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["talk.codes"]


def test_codes_that_are_no_array_are_refused(tmp_path: Path):
    with pytest.raises(FormatError, match=r"one sequence of shape \(N,\), got parts of unequal length$"):
        write_codes(tmp_path / "talk.codes", [[1, 2], [3]], header=SMALL)
    with pytest.raises(FormatError, match=r"codes cannot be taken for an array \(.*requires grad"):
        write_codes(tmp_path / "talk.codes", torch.zeros(3, requires_grad=True), header=SMALL)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("num_samples", [320.0, "320"])
def test_a_number_of_samples_that_is_no_integer_is_refused(tmp_path: Path, num_samples):
    with pytest.raises(
        FormatError, match=rf"talk\.codes: the number of samples must be an integer, got {num_samples!r}"
    ):
        write_codes(tmp_path / "talk.codes", some_codes(1), header=SMALL, num_samples=num_samples)
    assert not os.listdir(tmp_path)


def test_what_is_no_header_is_named(tmp_path: Path):
    with pytest.raises(FormatError, match=r"the header of codes must be a Header, got NoneType; see codec\.header_of"):
        write_codes(tmp_path / "talk.codes", some_codes(20), header=None)
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_grow_leaves_nothing(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*talk\.codes"):
            write_codes(tmp_path / "talk.codes", some_codes(20_000), header=HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_named():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_codes("/dev/full", some_codes(20), header=SMALL)
    with open("/dev/full", "wb", buffering=0) as stream:
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            CodesWriter(stream, SMALL)
    assert not os.path.isfile("/dev/full")


def test_a_missing_folder_a_folder_and_a_missing_file_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no such folder to write to: .*no'"):
        write_codes(tmp_path / "no" / "talk.codes", some_codes(1), header=SMALL)
    with pytest.raises(IsADirectoryError, match="is a directory, name a file"):
        write_codes(tmp_path, some_codes(1), header=SMALL)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_codes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*talk\.codes"):
        read_codes(tmp_path / "talk.codes")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_missing_permission_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"Permission denied: .*talk\.codes"):
        write_codes(tmp_path / "talk.codes", some_codes(1), header=SMALL)


def test_a_reader_that_left_raises_broken_pipe():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as stream:
        with pytest.raises(BrokenPipeError):
            write_codes(stream, some_codes(20), header=SMALL)
