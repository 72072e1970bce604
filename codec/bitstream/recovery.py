"""What is lost in a damaged `.codes` file, and where its next intact part begins.

See "What a reader must do" in FORMAT.md. Nothing here guesses codes. What is intact, `records` alone decides: so what
is found here is what the reader takes next, and no input makes it stand still.
"""

import re
import zlib
from dataclasses import dataclass, field

import numpy as np

from codec.bitstream.header import Header
from codec.bitstream.records import (
    BLOCK_TAG,
    CHECK_SIZE,
    END_SIZE,
    END_TAG,
    full_block_size,
    last_block_size,
    parse_end,
    parse_full_block,
    parse_last_block,
)
from codec.bitstream.window import Window

# A block may be this many blocks away from where its offset in the file suggests. More would serve heavier losses, but
# would also let a short forged file claim a longer hole.
MAX_SHIFT = 64

_TAGS = re.compile(b"[" + BLOCK_TAG + END_TAG + b"]")


@dataclass
class Damage:
    """What a recovering reader found wrong; true if anything was.

    Attributes:
        blocks: numbers of the blocks that are lost, in order.
        lost_frames: frames in these blocks, as far as known.
        is_header_repaired: one byte of the header was wrong and was put right.
        is_end_missing: the end record is cut off or damaged, so the last frame counts as full.
        is_length_known: false if an unknown number of frames is lost after the last one given.
        has_extra_bytes: bytes were inserted somewhere, or follow the end.
    """

    blocks: list[int] = field(default_factory=list)
    lost_frames: int = 0
    is_header_repaired: bool = False
    is_end_missing: bool = False
    is_length_known: bool = True
    has_extra_bytes: bool = False

    def __bool__(self) -> bool:
        return self != Damage()

    def describe(self, frame_rate: float) -> str:
        """One line for people; `frame_rate` (frames/s) turns frames into seconds."""
        found = []
        if self.blocks:
            blocks = ", ".join(str(number) for number in self.blocks[:8]) + (", ..." if len(self.blocks) > 8 else "")
            plural = "s" if len(self.blocks) > 1 else ""
            seconds = self.lost_frames / frame_rate
            found.append(f"{self.lost_frames} frames ({seconds:.1f} s) lost in block{plural} {blocks}")
        if not self.is_length_known:
            found.append("the end is missing, and with it an unknown number of frames")
        elif self.is_end_missing:
            found.append("the end record is damaged, so the last frame is kept in full")
        if self.is_header_repaired:
            found.append("one wrong byte in the header was repaired")
        if self.has_extra_bytes:
            found.append("bytes that belong to no block were skipped")
        return "; ".join(found) or "no damage"


def skip_to_intact(window: Window, header: Header, number: int) -> int | None:
    """Take bytes until an intact full block or end record follows.

    Args:
        window: where the record after `number` full blocks is not intact.
        number: of the full block expected here.

    Returns:
        The number of full blocks that belong before the record found, at least `number`. None if none is found: then
        `window` holds all that is left of the file, and has advanced by a multiple of the size of a full block.
    """
    stride = full_block_size(header)
    numbers = _Numbers(header)
    while True:
        data = window.peek(2 * stride + END_SIZE)
        is_rest = len(data) < 2 * stride + END_SIZE
        for match in _TAGS.finditer(data, 0, len(data) if is_rest else stride):
            offset = match.start()
            suggested = (window.position + offset - header.size) // stride
            allowed = range(max(number, suggested - MAX_SHIFT), suggested + MAX_SHIFT + 1)
            if match.group() == END_TAG:
                end = parse_end(header, data[offset : offset + END_SIZE])
                found = end.num_frames // header.block_frames if end is not None else None
            else:
                found = numbers.of(data[offset : offset + stride], allowed)
            if found is not None and found in allowed:
                window.skip(offset)
                return found
        if is_rest:
            return None
        window.skip(stride)


def find_last_block(header: Header, expected: int, number: int, data: bytes) -> tuple[int, np.ndarray] | None:
    """Find the last block at the end of a file whose end record is damaged.

    Args:
        expected: its number where only the end record is damaged.
        number: of the full block that would begin with `data`.
        data: all that is left of the file, without an intact record.

    Returns:
        Number and codes of the last block, or None if it is damaged, too.
    """
    for num_frames in range(1, header.block_frames):
        size = last_block_size(header, num_frames)
        if len(data) < size:
            break
        start = len(data) - size - END_SIZE  # less than 0 where bytes of the record are missing
        suggested = max(number + round(start / full_block_size(header)), expected)
        for last_number in {expected, suggested}:
            codes = parse_last_block(header, last_number, num_frames, data[-size:])
            if codes is not None:
                return last_number, codes
    return None


class _Numbers:
    """Tells for which number a full block was made.

    CRC-32 is linear: the number shows in how the block check differs from the CRC-32 of the payload alone, in the same
    way for all payloads of one length. So one CRC-32 tests all numbers.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._known = range(0)
        self._by_difference: dict[int, int] = {}

    def of(self, block: bytes, allowed: range) -> int | None:
        """The number in `allowed` with which a full block is intact, else None."""
        if allowed.start < self._known.start or allowed.stop > self._known.stop:
            self._known = range(allowed.start, allowed.stop + 1024)  # for what the search will meet next
            zeros = bytes(self._header.payload_size)
            alone = zlib.crc32(zeros)
            block_check, num_frames = self._header.block_check, self._header.block_frames
            self._by_difference = {alone ^ block_check(number, num_frames, zeros): number for number in self._known}
        check = int.from_bytes(block[1 : 1 + CHECK_SIZE], "big")
        number = self._by_difference.get(check ^ zlib.crc32(block[1 + CHECK_SIZE :]))
        if number is None or number not in allowed or parse_full_block(self._header, number, block) is None:
            return None
        return number
