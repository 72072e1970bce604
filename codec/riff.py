"""What stands behind the samples of a wav file, looked at because libsndfile passes over sound without a word.

It reads as many bytes of samples as the header counts, which may be too few: where a recorder was killed before it
counted, and beyond 4 GiB, where the count begins anew.
"""

import os
import struct
from typing import IO

BLOCK_BYTES = 1 << 16
_TAGS = (b"TAG", b"ID3", b"APET")  # of mp3 players; they stand behind the last chunk, and are none
_UNCLOSED = 8  # bytes of which an unfinished file may say to consist; then libsndfile reads to the end


def find_fault(stream: IO[bytes]) -> str | None:
    """Why a file would not be read to its end, in words that follow its name; None where it would."""
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    order = ">" if stream.read(4) == b"RIFX" else "<"
    (stated,) = struct.unpack(f"{order}I", stream.read(4))
    start = 12
    while start + 8 <= num_bytes:
        name, size = _chunk(stream, start, order)
        end = start + 8 + size
        if name == b"data":
            is_read_on = size == 0 and stated == _UNCLOSED
            # An odd number of bytes should be made even, which some programs forget.
            is_whole = is_read_on or any(_is_other(stream, place, num_bytes, order) for place in {end, end + size % 2})
            return None if is_whole else _fault(num_bytes - end, size)
        start = end + size % 2
    return None


def _fault(num_left: int, size: int) -> str:
    return (
        f"goes on for {num_left} bytes behind the {size} bytes of samples that its header counts, and they would be "
        f"left out; have the header mended, for example with sox --ignore-length"
    )


def _chunk(stream: IO[bytes], start: int, order: str) -> tuple[bytes, int]:
    """Name and size of the chunk that begins there."""
    stream.seek(start)
    name, size = struct.unpack(f"{order}4sI", stream.read(8))
    return name, size


def _is_other(stream: IO[bytes], start: int, num_bytes: int, order: str) -> bool:
    """Whether what follows the samples is something else: next to nothing, a tag, another chunk, or zeros."""
    if num_bytes < start + 8:
        return True
    name, size = _chunk(stream, start, order)
    if name.startswith(_TAGS) or (all(0x20 <= byte < 0x7F for byte in name) and start + 8 + size <= num_bytes):
        return True
    stream.seek(start)
    return not any(block.strip(b"\0") for block in iter(lambda: stream.read(BLOCK_BYTES), b""))
