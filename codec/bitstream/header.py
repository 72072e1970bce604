"""What stands at the start of a `.codes` file, and the checks that tie everything behind it to this header.

See FORMAT.md, which comes first; this module holds the fields, their limits and what their damage looks like.
"""

import codecs
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from functools import cached_property

from codec.bitstream.packing import packed_size
from codec.errors import FormatError
from codec.limits import MAX_SAMPLE_RATE
from codec.rates import Rates

MAGIC = b"\xc0\xdeS\n"
VERSION = 1
MAX_NAME = 31
MAX_BLOCK_FRAMES = 2048

_FIELDS = struct.Struct(">4sBIHIH8sB")  # magic, version, rate, hop, K, block frames, fingerprint, length of the name
_CHECK = struct.Struct(">I")
_NAME_LENGTH = _FIELDS.size - 1  # where the length of the name stands
MIN_SIZE = _FIELDS.size + _CHECK.size
MAX_SIZE = MIN_SIZE + MAX_NAME

# The start of other files a user may take for codes, and what to say.
_FOREIGN = (
    (b"RIFF", "it is a WAV sound file"),
    (b"fLaC", "it is a FLAC sound file"),
    (b"OggS", "it is an Ogg sound file"),
    (b"ID3", "it is an MP3 sound file"),
    (b"\xff\xfb", "it is an MP3 sound file"),
    (b"\x93NUMPY", "it is a NumPy array; give it a name that ends in .npy"),
    (b"PK\x03\x04", "it is a zip archive or .npz file"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"\xc0\xdeS\r", "line ends were rewritten by a transfer in text mode; copy it again in binary mode"),
)


@dataclass(frozen=True)
class Header(Rates):
    """How to read the codes, and which model they belong to.

    Attributes:
        sample_rate: of the recording, Hz, 1 to 1,000,000.
        hop_length: samples per frame, 1 to 65,535.
        codebook_size: K, 2 to 2**32 - 1; codes are in [0, K).
        fingerprint: 16 hexadecimal digits that name the configuration and weights of the model.
        model: its name for people, at most 31 bytes of UTF-8 without control characters (see `fit_name`).
        block_frames: frames per block, 8 to 2048, a multiple of 8; what one flipped bit costs, and the delay of a pipe.

    Raises:
        FormatError: a value is out of its range.
    """

    sample_rate: int
    hop_length: int
    codebook_size: int
    fingerprint: str
    model: str = ""
    block_frames: int = 256

    def __post_init__(self) -> None:
        _check_range("sample rate", self.sample_rate, 1, MAX_SAMPLE_RATE)
        _check_range("hop length", self.hop_length, 1, 0xFFFF)
        _check_range("codebook size", self.codebook_size, 2, 0xFFFFFFFF)
        _check_range("block frames", self.block_frames, 8, MAX_BLOCK_FRAMES)
        if self.block_frames % 8:
            raise FormatError(f"block frames must be a multiple of 8, got {self.block_frames}")
        if len(self.fingerprint) != 16 or not set(self.fingerprint) <= set("0123456789abcdef"):
            raise FormatError(f"the fingerprint must be 16 hexadecimal digits in lower case, got {self.fingerprint!r}")
        if not _is_plain(self.model) or len(self._name_bytes()) > MAX_NAME:
            raise FormatError(
                f"the model name must have at most {MAX_NAME} bytes and no control characters, got {self.model!r}"
            )

    @property
    def size(self) -> int:
        """Bytes the header takes."""
        return MIN_SIZE + len(self._name_bytes())

    @property
    def payload_size(self) -> int:
        """Bytes the codes of one full block take."""
        return packed_size(self.block_frames, self.bits_per_code)

    @cached_property
    def check(self) -> int:
        """CRC-32 of all bytes before it; all later checks begin with it."""
        return zlib.crc32(self._unchecked())

    def to_bytes(self) -> bytes:
        """The header as it stands in a file."""
        return self._unchecked() + _CHECK.pack(self.check)

    def block_check(self, number: int, num_frames: int, payload: bytes) -> int:
        """CRC-32 that must stand before the payload of block `number` with `num_frames` frames."""
        return zlib.crc32(payload, zlib.crc32(struct.pack(">IIH", self.check, number, num_frames)))

    def end_check(self, fields: bytes) -> int:
        """CRC-32 that must stand behind the other bytes of the end record."""
        return zlib.crc32(fields, zlib.crc32(_CHECK.pack(self.check)))

    def _unchecked(self) -> bytes:
        name = self._name_bytes()
        fields = (self.sample_rate, self.hop_length, self.codebook_size, self.block_frames)
        return _FIELDS.pack(MAGIC, VERSION, *fields, bytes.fromhex(self.fingerprint), len(name)) + name

    def _name_bytes(self) -> bytes:
        return self.model.encode("utf-8")


def fit_name(name: str) -> str:
    """A model name as a header can hold it: control characters replaced, cut to 31 bytes between two characters."""
    if not isinstance(name, str):
        raise FormatError(f"the name of a model must be a string, got {name!r}")
    visible = "".join(character if _is_plain(character) else "?" for character in name)
    return visible.encode("utf-8")[:MAX_NAME].decode("utf-8", "ignore")


def header_size(data: bytes) -> int:
    """How long the header says to be, from its first MIN_SIZE bytes; MAX_SIZE if that cannot be."""
    is_header = len(data) >= MIN_SIZE and data.startswith(MAGIC) and data[_NAME_LENGTH] <= MAX_NAME
    return MIN_SIZE + data[_NAME_LENGTH] if is_header else MAX_SIZE


def is_intact(data: bytes | bytearray) -> bool:
    """Whether `data` begins with a header of our version whose check is right, whatever its fields hold."""
    if len(data) < MIN_SIZE or not data.startswith(MAGIC) or data[4] != VERSION:
        return False
    end = _FIELDS.size + data[_NAME_LENGTH]
    return len(data) >= end + _CHECK.size and _CHECK.unpack_from(data, end)[0] == zlib.crc32(data[:end])


def parse_header(data: bytes) -> Header:
    """Read the header from the first bytes of a file.

    Args:
        data: as many bytes as the header says to have, or MAX_SIZE for a full diagnosis; fewer if the file ends before.

    Raises:
        FormatError: not a `.codes` file, a newer version, cut off, damaged, or a field out of its range.
    """
    if not data:
        raise FormatError("the file is empty")
    if is_intact(data):
        return _unpack(data)
    if repair_header(data) is not None:
        raise FormatError("the header is damaged; copy the file again, or read it with recovery (--recover)")
    if not MAGIC.startswith(data[:4]):
        raise FormatError(f"not a .codes file: {_what_it_is(data)}")
    if len(data) > 4 and data[4] > VERSION:
        raise FormatError(
            f"made with version {data[4]} of the format, this program reads version {VERSION}; install a newer one"
        )
    if len(data) < MIN_SIZE or len(data) < MIN_SIZE + min(data[_NAME_LENGTH], MAX_NAME):
        raise FormatError(f"cut off inside the header, after {len(data)} bytes; copy the file again")
    raise FormatError("the header is damaged beyond repair; copy the file again")


def repair_header(data: bytes) -> Header | None:
    """The header that `data` begins with if exactly one byte of it is wrong, else None."""
    for position in range(min(len(data), MAX_SIZE)):
        changed = bytearray(data)
        for value in range(256):
            changed[position] = value
            if value != data[position] and is_intact(changed):
                try:
                    return _unpack(changed)
                except FormatError:
                    pass  # passes the check by chance only
    return None


def _unpack(data: bytes | bytearray) -> Header:
    _, _, sample_rate, hop_length, codebook_size, block_frames, fingerprint, length = _FIELDS.unpack_from(data)
    try:
        name = bytes(data[_FIELDS.size : _FIELDS.size + length]).decode("utf-8")
        return Header(sample_rate, hop_length, codebook_size, fingerprint.hex(), name, block_frames)
    except UnicodeDecodeError as error:
        raise FormatError("the header is invalid: the model name is not UTF-8") from error
    except FormatError as error:
        raise FormatError(f"the header is invalid: {error}") from error


def _what_it_is(data: bytes) -> str:
    for start, sentence in _FOREIGN:
        if data.startswith(start):
            return sentence
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < MAX_SIZE)
    except UnicodeDecodeError:
        text = "\0"
    if _is_plain(text.translate({ord(character): " " for character in "\t\r\n"})):
        return "it is a text file; give it a name that ends in .txt or .json if it lists codes"
    return f"it begins with the bytes {data[:4].hex(' ').upper()} instead of {MAGIC.hex(' ').upper()}"


def _is_plain(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # True would be taken for 1
        raise FormatError(f"the {name} must be an integer from {low} to {high}, got {value!r}")
