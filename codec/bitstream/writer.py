"""Codes -> the bytes of a `.codes` file, as they come; the stream needs no seek."""

import io
import operator
from typing import BinaryIO

import numpy as np

from codec.bitstream.header import Header
from codec.bitstream.packing import check_codes
from codec.bitstream.records import MAX_FILE_FRAMES, EndRecord, build_block, build_end
from codec.bitstream.window import name_of
from codec.errors import CodecError, FormatError
from codec.output import naming


class CodesWriter:
    """Writes codes as they come; the stream needs no seek, and the length is not needed before the end.

    Args:
        stream: open for writing bytes; it is flushed after each block and never closed.
        header: written at once.
        name: of the stream, for error messages.

    Raises:
        FormatError: `header` is none.
        CodecError: the stream is not in blocking mode, and has no room (also from `write` and `close`).
        OSError: it cannot be written (the same).
    """

    def __init__(self, stream: BinaryIO, header: Header, name: str | None = None) -> None:
        if not isinstance(header, Header):
            raise FormatError(f"the header of codes must be a Header, got {type(header).__name__}; see codec.header_of")
        self.header = header
        self.num_frames = 0
        self.is_closed = False
        self._stream = stream
        self._name = name or name_of(stream)
        self._pending = np.zeros(0, np.int64)
        self._number = 0
        self._put(header.to_bytes())

    def write(self, codes: np.ndarray) -> None:
        """Append codes.

        Args:
            codes: (n,) of any integer dtype in [0, K), n >= 0.

        Raises:
            FormatError: not one-dimensional, not integers or out of range; nothing of `codes` is written.
        """
        self._refuse_if_closed()
        try:
            codes = np.asarray(codes)
        except ValueError as error:
            raise FormatError("codes must be one sequence of shape (N,), got parts of unequal length") from error
        except (TypeError, RuntimeError) as error:  # tensors on another device, or with a gradient
            raise FormatError(f"codes cannot be taken for an array ({error})") from error
        check_codes(codes, self.header.codebook_size, self.num_frames)
        if self.num_frames + len(codes) > MAX_FILE_FRAMES:
            raise FormatError(f"{self._name}: a .codes file holds at most {MAX_FILE_FRAMES} frames; begin a new one")
        self.num_frames += len(codes)
        pending = np.concatenate([self._pending, codes.astype(np.int64)])
        size = self.header.block_frames
        num_full = len(pending) // size
        self._pending = pending[num_full * size :]
        for start in range(0, num_full * size, size):
            self._put(build_block(self.header, self._number, pending[start : start + size]))
            self._number += 1

    def close(self, num_samples: int | None = None) -> None:
        """Write what makes the file complete; the stream stays open.

        Args:
            num_samples: exact length of the recording, ceil(num_samples / hop_length) = N; by default the last
                frame is full.

        Raises:
            FormatError: `num_samples` is no integer, or N frames cannot hold so many; nothing is written.
        """
        self._refuse_if_closed()
        hop_length, most = self.header.hop_length, self.num_frames * self.header.hop_length
        try:
            num_samples = most if num_samples is None else operator.index(num_samples)
        except TypeError as error:
            raise FormatError(f"{self._name}: the number of samples must be an integer, got {num_samples!r}") from error
        if not (most - hop_length < num_samples <= most and num_samples >= 0):
            raise FormatError(
                f"{self._name}: {self.num_frames} frames of {hop_length} samples hold "
                f"{max(0, most - hop_length + 1)} to {most} samples, got {num_samples}"
            )
        last_frame_samples = num_samples - (most - hop_length) if self.num_frames else 0
        data = build_end(self.header, EndRecord(self.num_frames, last_frame_samples))
        if len(self._pending):
            data += build_block(self.header, self._number, self._pending)
        self.is_closed = True
        self._put(data)

    def _put(self, data: bytes) -> None:
        with naming(self._name):
            while data:
                written = self._stream.write(data)
                if written is None and isinstance(self._stream, io.RawIOBase):
                    raise CodecError(f"{self._name}: cannot be written: no room yet; open it in blocking mode")
                data = b"" if written is None else data[written:]  # unbuffered streams may take a part
            self._stream.flush()

    def _refuse_if_closed(self) -> None:
        if self.is_closed:
            raise ValueError("this CodesWriter is closed")
