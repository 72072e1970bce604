"""The parts that follow the header of a `.codes` file, one at a time: bytes <-> block, bytes <-> end record.

See FORMAT.md. These functions decide whether bytes are an intact record; what to do when they are not is decided by
`reader` (refuse) and `recovery` (look for the next one).
"""

import struct
from dataclasses import dataclass

import numpy as np

from codec.bitstream.header import Header
from codec.bitstream.packing import check_codes, pack, packed_size, unpack
from codec.errors import FormatError

BLOCK_TAG = b"B"
END_TAG = b"E"
MAX_FILE_FRAMES = 0xFFFFFFFF

_CHECK = struct.Struct(">I")
_END = struct.Struct(">cIH")  # tag, number of frames, samples in the last frame
CHECK_SIZE = _CHECK.size
END_SIZE = _END.size + CHECK_SIZE


@dataclass(frozen=True)
class EndRecord:
    """How long the recording is.

    Attributes:
        num_frames: N, in the whole file.
        last_frame_samples: samples in the last frame, 1 to hop length; 0 if there is no frame.
    """

    num_frames: int
    last_frame_samples: int

    def num_samples(self, hop_length: int) -> int:
        """Exact number of samples."""
        return max(0, self.num_frames - 1) * hop_length + self.last_frame_samples


def full_block_size(header: Header) -> int:
    """Bytes of a full block with its tag and check."""
    return 1 + CHECK_SIZE + header.payload_size


def last_block_size(header: Header, num_frames: int) -> int:
    """Bytes of a last block with `num_frames` frames, at least 1."""
    return CHECK_SIZE + packed_size(num_frames, header.bits_per_code)


def build_block(header: Header, number: int, codes: np.ndarray) -> bytes:
    """Block `number` with its check, and with its tag if it is full."""
    payload = pack(codes, header.bits_per_code)
    tag = BLOCK_TAG if len(codes) == header.block_frames else b""
    return tag + _CHECK.pack(header.block_check(number, len(codes), payload)) + payload


def parse_full_block(header: Header, number: int, data: bytes) -> np.ndarray | None:
    """Codes (block_frames,) int64 of full block `number` if `data` begins with it, else None."""
    if not data.startswith(BLOCK_TAG):
        return None
    return parse_last_block(header, number, header.block_frames, data[1 : full_block_size(header)])


def parse_last_block(header: Header, number: int, num_frames: int, data: bytes) -> np.ndarray | None:
    """Codes (num_frames,) int64 of block `number` if `data` is its check and its payload, else None."""
    payload = data[CHECK_SIZE:]
    if len(data) != last_block_size(header, num_frames):
        return None
    if _CHECK.unpack_from(data)[0] != header.block_check(number, num_frames, payload):
        return None
    try:
        codes = unpack(payload, header.bits_per_code, num_frames)
        check_codes(codes, header.codebook_size)
    except FormatError:
        return None
    return codes


def build_end(header: Header, end: EndRecord) -> bytes:
    """The end record with its check."""
    fields = _END.pack(END_TAG, end.num_frames, end.last_frame_samples)
    return fields + _CHECK.pack(header.end_check(fields))


def parse_end(header: Header, data: bytes) -> EndRecord | None:
    """The end record if `data` begins with it and it is intact, else None."""
    if len(data) < END_SIZE or not data.startswith(END_TAG):
        return None
    if _CHECK.unpack_from(data, _END.size)[0] != header.end_check(data[: _END.size]):
        return None
    _, num_frames, last_frame_samples = _END.unpack_from(data)
    if not min(num_frames, 1) <= last_frame_samples <= (header.hop_length if num_frames else 0):
        return None
    return EndRecord(num_frames, last_frame_samples)
