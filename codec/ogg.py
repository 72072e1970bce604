"""Pages of Ogg files (RFC 3533), looked at because libsndfile passes over damaged ones without a word.

What follows a lost page would take its place, so that codes would say something that nobody has recorded.
"""

import zlib
from typing import IO

CAPTURE_PATTERN = b"OggS"
BLOCK_BYTES = 1 << 20
_HEADER_SIZE = 27  # bytes, up to and with the number of segments
_BEGINS = 2  # flag of a page with which a stream begins
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def find_fault(stream: IO[bytes]) -> str | None:
    """Why a file cannot be read to its end, in words that follow its name; None where it can.

    A page is damaged, cut off, missing or not in its order, or a second recording follows, which libsndfile leaves out.
    Pages may be missing between the head of a stream and its sound, as in recordings of a broadcast, and other bytes
    may follow the last page, such as tags. The stream is read to its end.
    """
    offset = 0
    expected: dict[bytes, int] = {}  # by stream, the number of its next page, once it has come to sound
    has_begun = False
    while header := stream.read(_HEADER_SIZE):
        if not header.startswith(CAPTURE_PATTERN):
            return _damaged(offset) if _occurs(CAPTURE_PATTERN, header, stream) else None
        lengths = stream.read(header[-1])
        page = header + lengths + stream.read(sum(lengths))
        if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            return _damaged(offset)
        serial, number, begins = page[14:18], int.from_bytes(page[18:22], "little"), bool(page[5] & _BEGINS)
        if begins and has_begun:
            return f"holds a second recording from byte {offset} on, which would be left out; split or convert it"
        if number != expected.get(serial, number):
            return _damaged(offset)
        has_begun = not begins
        if page[6:14] != bytes(8):  # a position in the sound
            expected[serial] = (number + 1) & 0xFFFF_FFFF
        offset += len(page)
    return None


def checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04C11DB7 without reflection, from 0 on: zlib's, of which everything is reversed."""
    reversed_crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reversed_crc:032b}"[::-1], 2)


def _damaged(offset: int) -> str:
    return f"damaged or cut off at byte {offset}; copy it again"


def _occurs(pattern: bytes, start: bytes, stream: IO[bytes]) -> bool:
    """Whether the pattern is in `start` or in what is left of the stream."""
    block = start
    while block:
        if pattern in start:
            return True
        block = stream.read(BLOCK_BYTES)
        start = start[1 - len(pattern) :] + block
    return False
