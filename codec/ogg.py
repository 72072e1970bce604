"""Pages of Ogg files (RFC 3533), looked at because libsndfile passes over damaged ones without a word.

What follows a lost page would take its place, so that codes would say something that nobody has recorded.
"""

import zlib
from typing import BinaryIO

CAPTURE_PATTERN = b"OggS"
_HEADER_SIZE = 27  # bytes, up to and with the number of segments
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def first_damage(stream: BinaryIO) -> int | None:
    """Where the first page that is damaged or cut off begins, in bytes; None where all are whole.

    Other bytes behind the last page, such as tags, are no damage. The stream is read to its end.
    """
    offset = 0
    while header := stream.read(_HEADER_SIZE):
        if not header.startswith(CAPTURE_PATTERN):
            return offset if CAPTURE_PATTERN in header + stream.read() else None
        lengths = stream.read(header[-1])
        page = header + lengths + stream.read(sum(lengths))
        if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            return offset
        offset += len(page)
    return None


def checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04C11DB7 without reflection, from 0 on: zlib's, of which everything is reversed."""
    reversed_crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reversed_crc:032b}"[::-1], 2)
