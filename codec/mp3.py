"""Frames of MPEG audio, layer III, looked at because libsndfile passes over sound without a word.

It ends where a file says that it does, or else, where it says nothing, at what its first bit rate lets expect.
"""

from collections.abc import Iterator
from typing import IO

BLOCK_BYTES = 1 << 16
FRAME_SAMPLES = 1152
"""Of each channel, at most: those of version 1; the others have half as many."""
MORE_FRAMES = 10
"""That a file may have beyond what it says: programs that cut it count a little differently."""
_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}  # Hz, by version 2.5, 2 and 1
_FIRST = 3  # version 1
_BIT_RATES = {  # kbit/s, of version 1 and of the others
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MONO = 3  # channel mode
_SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}  # version 1, mono
_VBRI_OFFSET = 36  # from the start of a frame


def states_length(stream: IO[bytes]) -> bool:
    """Whether a file says how many frames it has, in a Xing, Info or VBRI header."""
    first = next(_frames(stream), None)
    return first is not None and _stated_frames(stream, first) is not None


def find_fault(stream: IO[bytes]) -> str | None:
    """Why a file cannot be read to its end, in words that follow its name; None where it can.

    It goes on behind what its header says, as two files do that were put end to end. All of the stream is looked at.
    """
    first = next(_frames(stream), None)
    stated = None if first is None else _stated_frames(stream, first)
    if stated is None:
        return None
    found = sum(1 for _ in _frames(stream)) - 1  # but the frame that states the number
    if found <= stated + MORE_FRAMES:
        return None
    return f"has {found} frames and says {stated}, so that the rest would be left out; split or convert it"


def _frames(stream: IO[bytes]) -> Iterator[int]:
    """Where each frame begins. Tags and other bytes between frames are passed over."""
    offset: int | None = 0
    while offset is not None:
        stream.seek(offset)
        header = stream.read(10)
        if size := _frame_bytes(header):
            yield offset
            offset += size
        elif header.startswith(b"ID3") and len(header) == 10:  # a tag, whose size has 7 bits a byte
            offset += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        else:
            offset = _next_frame(stream, offset + 1)


def _next_frame(stream: IO[bytes], start: int) -> int | None:
    """Where the next two frames begin that follow each other."""
    stream.seek(start)
    while len(block := stream.read(BLOCK_BYTES)) >= 4:
        at = block.find(b"\xff")
        while 0 <= at <= len(block) - 4:
            if size := _frame_bytes(block[at : at + 4]):
                stream.seek(start + at + size)
                if _frame_bytes(stream.read(4)):
                    return start + at
            at = block.find(b"\xff", at + 1)
        start += len(block) - 3
        stream.seek(start)
    return None


def _frame_bytes(header: bytes) -> int:
    """Length of the frame of layer III that begins with these bytes, 0 where none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bit_rate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version not in _RATES or not 0 < bit_rate < 15 or rate == 3:
        return 0
    num_samples = FRAME_SAMPLES if version == _FIRST else FRAME_SAMPLES // 2
    bits = num_samples * 1000 * _BIT_RATES[version == _FIRST][bit_rate - 1]
    return bits // 8 // _RATES[version][rate] + (header[2] >> 1 & 1)


def _stated_frames(stream: IO[bytes], first: int) -> int | None:
    """How many frames follow the first one, if that says so."""
    stream.seek(first)
    frame = stream.read(_VBRI_OFFSET + 18)
    side = _SIDE_BYTES[frame[1] >> 3 & 3 == _FIRST, frame[3] >> 6 == _MONO]
    for start in (4 + side, 6 + side):  # without a checksum, and with one
        name, flags = frame[start : start + 4], frame[start + 4 : start + 8]
        if name in (b"Xing", b"Info") and flags[3:] and flags[3] & 1:
            return int.from_bytes(frame[start + 8 : start + 12], "big")
    if frame[_VBRI_OFFSET:].startswith(b"VBRI"):
        return int.from_bytes(frame[_VBRI_OFFSET + 14 : _VBRI_OFFSET + 18], "big")
    return None
