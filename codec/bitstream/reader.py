"""The bytes of a `.codes` file -> blocks of codes, as they come; the stream needs no seek.

A strict reader raises at the first damage. A recovering reader gives every intact block at its right place, holes
between them, and a summary of the damage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from codec.bitstream.header import (
    MAGIC,
    MAX_SIZE,
    MIN_SIZE,
    Header,
    header_size,
    is_intact,
    parse_header,
    repair_header,
)
from codec.bitstream.records import (
    BLOCK_TAG,
    END_SIZE,
    END_TAG,
    EndRecord,
    full_block_size,
    last_block_size,
    parse_end,
    parse_full_block,
    parse_last_block,
)
from codec.bitstream.recovery import Damage, find_last_block, skip_to_intact
from codec.bitstream.window import Window, name_of
from codec.errors import FormatError

_WAY_OUT = "copy the file again, or read it with recovery (--recover) to keep the rest"


@dataclass(frozen=True)
class Block:
    """Some consecutive frames, or a hole of the same length.

    Attributes:
        number: of the block, from 0.
        start: number of its first frame in the recording.
        num_frames: at least 1, at most `block_frames` of the header.
        codes: (num_frames,) int64 in [0, K); None in a hole.
    """

    number: int
    start: int
    num_frames: int
    codes: np.ndarray | None

    @property
    def is_hole(self) -> bool:
        """Whether the codes are lost."""
        return self.codes is None


class CodesReader:
    """Gives the blocks of a file or pipe as they come, in memory for one block.

    Iterate once; then `num_frames`, `num_samples`, `num_bytes` and `damage` are known. With `recover` there is one
    `Block` for each block of the file, damaged ones as holes; without, damage raises.

    Args:
        stream: open for reading bytes; never closed. Or a window on one, of which nothing was taken yet.
        recover: keep what is intact instead of raising.
        name: of the stream, for error messages.

    Raises:
        FormatError: the header cannot be used; later, from the iteration, any other damage.
        OSError: the stream cannot be read.
    """

    def __init__(self, stream: BinaryIO | Window, recover: bool = False, name: str | None = None) -> None:
        self.damage = Damage()
        self._recover = recover
        self._name = name or name_of(stream)
        self._window = stream if isinstance(stream, Window) else Window(stream, self._name)
        self.num_frames = 0  # given so far, holes included
        self._num_samples: int | None = None
        self.header = self._read_header()
        self._blocks = self._iterate()

    def __iter__(self) -> Iterator[Block]:
        return self._blocks

    @property
    def num_bytes(self) -> int:
        """Bytes read so far."""
        return self._window.position

    @property
    def num_samples(self) -> int:
        """Exact length of the recording; known after the last block."""
        if self._num_samples is None:
            raise ValueError("the number of samples is known after the last block was read")
        return self._num_samples

    def _read_header(self) -> Header:
        data = self._window.peek(header_size(self._window.peek(MIN_SIZE)))  # a pipe may hold no more yet
        if not is_intact(data):
            data = self._window.peek(MAX_SIZE)
            repaired = repair_header(data) if self._recover else None
            if repaired is not None:
                self.damage.is_header_repaired = True
                self._window.skip(repaired.size)
                return repaired
        try:
            header = parse_header(data)
        except FormatError as error:
            raise FormatError(f"{self._name}: {error}") from error
        self._window.skip(header.size)
        return header

    def _iterate(self) -> Iterator[Block]:
        header, window = self.header, self._window
        number = 0
        while True:
            tag = window.peek(1)
            if tag == END_TAG:
                end = parse_end(header, window.peek(END_SIZE))
                if end is not None and end.num_frames // header.block_frames == number:
                    yield from self._read_last(number, end)
                    return
            elif tag == BLOCK_TAG:
                codes = parse_full_block(header, number, window.peek(full_block_size(header)))
                if codes is not None:
                    window.skip(full_block_size(header))
                    yield self._block(number, header.block_frames, codes)
                    number += 1
                    continue
            if not self._recover:
                raise self._damage_error(number, tag)
            before = window.position
            found = skip_to_intact(window, header, number)
            if found is None:
                yield from self._read_rest(number, before)
                return
            if window.position - before > (found - number) * full_block_size(header):
                self.damage.has_extra_bytes = True
            yield from self._holes(number, found)
            number = found

    def _read_last(self, number: int, end: EndRecord) -> Iterator[Block]:
        """Read the end record, which is intact, and the last block behind it."""
        header, window = self.header, self._window
        window.skip(END_SIZE)
        num_frames = end.num_frames % header.block_frames
        self._num_samples = end.num_samples(header.hop_length)
        if num_frames:
            size = last_block_size(header, num_frames)
            data = window.peek(size)
            codes = parse_last_block(header, number, num_frames, data)
            if codes is None and not self._recover:
                raise self._block_error(number, is_cut=len(data) < size)
            window.skip(len(data))
            yield self._block(number, num_frames, codes)
        extra = window.peek(len(MAGIC))
        if extra and not self._recover:
            other = "another .codes file follows; separate them"
            what = other if extra == MAGIC else "bytes follow that are not codes; cut them off"
            raise FormatError(f"{self._name}: after the last of {end.num_frames} frames {what}, or {_WAY_OUT}")
        self.damage.has_extra_bytes |= bool(extra)

    def _read_rest(self, number: int, before: int) -> Iterator[Block]:
        """Give what can be known when no intact record is left behind the position `before`, in block `number`."""
        header, window = self.header, self._window
        stride = full_block_size(header)
        data = window.peek(2 * stride + END_SIZE)
        reached = number + (window.position - before) // stride
        last = find_last_block(header, number, reached, data)
        window.skip(len(data))
        self.damage.is_end_missing = True
        self.damage.is_length_known = last is not None
        if last is not None:
            last_number, codes = last
            yield from self._holes(number, last_number)
            yield self._block(last_number, len(codes), codes)
        else:
            num_full, rest = divmod(len(data), stride)
            is_cut = rest > 0 and data[num_full * stride :].startswith(BLOCK_TAG)
            yield from self._holes(number, reached + num_full + is_cut)
        self._num_samples = self.num_frames * header.hop_length

    def _block(self, number: int, num_frames: int, codes: np.ndarray | None) -> Block:
        """Count a block that is about to be given."""
        if codes is None:
            self.damage.blocks.append(number)
            self.damage.lost_frames += num_frames
        self.num_frames += num_frames
        return Block(number, number * self.header.block_frames, num_frames, codes)

    def _holes(self, start: int, stop: int) -> Iterator[Block]:
        for number in range(start, stop):
            yield self._block(number, self.header.block_frames, None)

    def _damage_error(self, number: int, tag: bytes) -> FormatError:
        """Say what is wrong where neither full block `number` nor a fitting end record is."""
        header, window = self.header, self._window
        if not tag:
            return FormatError(f"{self._name}: cut off after {self.num_frames} frames, the end is missing; {_WAY_OUT}")
        if tag == END_TAG:
            data = window.peek(END_SIZE)
            end = parse_end(header, data)
            if end is not None:
                return FormatError(
                    f"{self._name}: the end record counts {end.num_frames} frames, which does not fit the {number} "
                    f"full blocks of {header.block_frames} before it; blocks are missing or repeated; {_WAY_OUT}"
                )
            state = "damaged" if len(data) == END_SIZE else "cut off"
            return FormatError(f"{self._name}: the end record after {self.num_frames} frames is {state}; {_WAY_OUT}")
        is_cut = tag == BLOCK_TAG and len(window.peek(full_block_size(header))) < full_block_size(header)
        return self._block_error(number, is_cut)

    def _block_error(self, number: int, is_cut: bool) -> FormatError:
        start = number * self.header.block_frames
        state = "cut off inside block" if is_cut else "damaged in block"
        seconds = start / self.header.frame_rate
        return FormatError(
            f"{self._name}: {state} {number}, which begins at frame {start} ({seconds:.1f} s); {_WAY_OUT}"
        )
